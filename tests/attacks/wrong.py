"""Silently wrong: numbers that are none, files passed over, orientation, votes, labels of another origin."""

import functools
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from formats import test_forms as forms
from PIL import Image
from refusals import check_refusal
from train import test_teacher

import semmae
from attacks.desk import TRAIN, Desk, attack, picture, refused, works
from semmae.data.decode import decode
from semmae.errors import UserError
from semmae.options import kind_of
from semmae.reporting import verdicts

NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**20, -(10**20))


def numbers(verb: str, desk: Desk) -> int:
    import dataclasses
    import typing

    kind = kind_of(verb)
    tried = 0
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
        if not {int, float} & set(allowed):
            continue
        for value in NO_NUMBERS:
            try:
                getattr(semmae, verb)(**{"data": "photos", "encoder": "run", "out": "new", field.name: value})
            except UserError as error:
                check_refusal(str(error))
            else:
                raise AssertionError(f"{verb} {field.name}={value} passed")
            tried += 1
    assert not Path("new").exists()
    return tried


for verb in semmae.VERBS:
    if verb not in ("report", "demo", "export", "reconstruct"):
        attack("B1", f"numbers that are none, of every option of {verb}")(functools.partial(numbers, verb))
for words in (
    "knn --temperature nan", "knn --workers 5000", "knn --batch-size 100000000000000000000", "knn --k 0",
    "knn --image-size 8000000", "parts --grid 1000000", "parts --blur 999999", "teacher --prototypes 1000000000",
    "pretrain --blr inf", "pretrain --mask-ratio nan", "pretrain --seed -1", "finetune --mixup nan",
):  # fmt: skip
    verb, option, value = words.split()
    given = {"teacher": "", "parts": " --teacher run", "pretrain": ""}.get(verb, " --encoder run")
    line = f"{words} --data photos --out new{given}"
    attack("B1", words)(
        functools.partial(lambda desk, line, option: refused(desk, line, option), line=line, option=option)
    )


@attack("B2", "2 JPEG and 30 HEIC")
def _(desk: Desk) -> None:
    with desk.copy() as own:
        for number in range(30):
            (own.root / "phone").mkdir(exist_ok=True)
            (own.root / f"phone/{number}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
        for number in range(2):
            picture(np.random.default_rng(number)).save(own.root / f"phone/{number}.jpg")
        refused(own, "pretrain --data phone --masking random --out new", "30", ".heic")


@attack("B4", "orientation by EXIF, by XMP and by both, at every decoding size")
def _(desk: Desk) -> int:
    for exif in range(1, 9):
        for xmp in (1, 6):
            for large in (False, True):
                image = picture(np.random.default_rng(0), 700 if large else 60).crop((0, 0, 600 if large else 40, 700))
                block = Image.Exif()
                block[0x0112] = exif
                packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{xmp}"/></x:xmpmeta>'.encode()
                raw = io.BytesIO()
                image.save(raw, "JPEG", exif=block, xmp=packet, quality=95)
                for least in (None, 100, 10**6):
                    _, height, width = decode(raw.getvalue(), least).shape
                    assert (height < width) == (exif >= 5), (exif, xmp, large, least, height, width)
    return 8 * 2 * 2 * 3


@attack("B5", "top-5 of a single vote")
def _(desk: Desk) -> None:
    with desk.copy():
        works("knn --encoder run --data photos --out knn --workers 0 --k 1")
        found = json.loads(Path("knn/results.json").read_text())
        assert found["top5"] == found["top1"], found


def tampered(name: str, act: Callable[[Path], object], desk: Desk) -> None:
    with desk.copy() as own:
        act(own.root / "parts")
        refused(own, f"pretrain --data photos --parts parts --out new {TRAIN}", "parts")


def other_labels(value: int, rows: slice = slice(None)) -> Callable[[Path], object]:
    def act(parts: Path) -> None:
        labels = np.load(parts / "parts.npy")
        labels[rows] = value
        np.save(parts / "parts.npy", labels)

    return act


def other_json(**values: Any) -> Callable[[Path], object]:
    def act(parts: Path) -> None:
        content = json.loads((parts / "parts.json").read_text())
        (parts / "parts.json").write_text(json.dumps(content | values))

    return act


for name, act in {
    "swapped for another array": other_labels(1),
    "a label beyond the names": other_labels(9, slice(3, 4)),
    "an image that is not labelled": other_labels(255, slice(3, 4)),
    "an empty array": lambda parts: os.truncate(parts / "parts.npy", 0),
    "a cut array": lambda parts: os.truncate(parts / "parts.npy", 200),
    "no array": lambda parts: (parts / "parts.npy").unlink(),
    "an array of other numbers": lambda parts: np.save(parts / "parts.npy", np.zeros((24, 4, 4), np.float32)),
    "an array of objects": lambda parts: np.save(parts / "parts.npy", np.array([{}]), allow_pickle=True),
    "names of another type": other_json(label_names=3),
    "a negative grid": other_json(grid=-4),
    "other images": other_json(manifest_digest="0" * 64),
    "a list": lambda parts: (parts / "parts.json").write_text("[]"),
    "no UTF-8": lambda parts: (parts / "parts.json").write_bytes(b"\xff\xfe{}"),
}.items():
    attack("B7", f"part labels: {name}")(functools.partial(tampered, name, act))


def labels_in_parquet(labels: Any, desk: Desk) -> None:
    with desk.copy() as own:
        rows = own.rows[:6]
        table = {"image": rows, "label": labels if isinstance(labels, pa.Array) else pa.array(labels)}
        pq.write_table(pa.table(table), own.root / "bad.parquet")
        refused(own, "knn --encoder run --data bad.parquet --out new", "bad.parquet")


for name, labels in {
    "NaN": [0.0, 1.0, math.nan, 0.0, 1.0, 0.0],
    "lists": [[1, 0]] * 6,
    "fractions": [0.5, 1.0, 0.0, 0.0, 1.0, 1.0],
    "none": [0, None, 1, 0, 1, 0],
    "bytes": [b"a", b"b"] * 3,
}.items():
    attack("B8", f"labels in Parquet: {name}")(functools.partial(labels_in_parquet, labels))


def of_tests(function: Callable[..., object], *arguments: Any) -> Callable[[Desk], None]:
    """A test that takes these, the last of them a folder of its own where that is named."""

    def work(desk: Desk) -> None:
        with tempfile.TemporaryDirectory() as folder:
            function(*(Path(folder) if argument is FOLDER else argument for argument in arguments))

    return work


FOLDER = object()

for function in (
    test_teacher.test_under_autocast_koleo_takes_the_neighbours_of_float32,
    functools.partial(test_teacher.test_under_autocast_terms_and_centres_are_those_of_float32, "sinkhorn"),
):
    attack("B3", "losses under autocast")(of_tests(function))
for where in ("args", "options", "config.json", "patches"):
    attack("B6", f"a grid of 64 x 16 pixels, given by {where}")(
        of_tests(forms.test_a_grid_that_is_no_square_is_one_where_anything_says_so, where, FOLDER)
    )


@attack("B8", "annotations of 0 and 255 alone are two classes")
def _(desk: Desk) -> None:
    with desk.copy():
        for name in ("images", "masks"):
            shutil.copytree("photos/cat", f"two/{name}")
        for path in Path("two/masks").iterdir():
            Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)).save(path)
        data = semmae.open_segmentation("two", semmae.AnnotationCoding(), val_share=0.5)
        assert len(data.names) == 2, data.names


@attack("B9", "an encoder below its untrained self, a teacher that collapsed, labels out of use, said first")
def _(desk: Desk) -> int:
    figures = {"top1": 20.0, "top1_low": 18.0, "top1_high": 22.0, "top5": 50.0, "images": 1000}
    better = {**figures, "top1": 40.0, "top1_low": 37.0, "top1_high": 43.0}
    assert verdicts.encoder_below({**figures, "untrained": better})
    assert not verdicts.encoder_below({**better, "untrained": figures})
    assert verdicts.parts_unused([900, 100, 0, 0, 0, 0, 0], [f"part {number}" for number in range(7)])
    stuck = {"stage": "teacher", "loss_dino": math.log(1024), "teacher_information": 0.0}
    assert verdicts.teacher_collapsed([{**stuck, "step": step} for step in (1, 2)], 1024)
    return 4
