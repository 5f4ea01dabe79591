"""Attacks, replayed through the command itself: `python tests/attacks.py` (`make attacks`), under two minutes.

Everything that once lost data, misled in silence or ended in a traceback is tried again, on inputs that are made here:
each attack is handled rightly, or is listed and the exit code is 1. The tests prove the same of single functions, on
more inputs; the tables of attacks are theirs.

What "refused" means is the same for all: exit code 2, one line that names the value, within seconds, and no file of
the user's is touched, none is left behind.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CACHES = tempfile.TemporaryDirectory(prefix="semmae-attacks-cache-", ignore_cleanup_errors=True)
os.environ |= {"SEMMAE_CACHE": _CACHES.name, "HF_HOME": _CACHES.name, "HF_HUB_OFFLINE": "1"}  # read when imported

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from commands import test_damaged_resume, test_places  # noqa: E402
from data import test_damaged  # noqa: E402
from forked import Forked  # noqa: E402
from interop import test_files as hostile  # noqa: E402
from interop import test_forms as forms  # noqa: E402
from PIL import Image  # noqa: E402

import semmae  # noqa: E402
from semmae import checkpoint  # noqa: E402
from semmae.cli import run  # noqa: E402
from semmae.data.decode import decode  # noqa: E402
from semmae.data.part_store import PartStore  # noqa: E402
from semmae.errors import UserError  # noqa: E402
from semmae.files import PART  # noqa: E402
from semmae.models.mae import DecoderSpec, MaskedAutoencoder  # noqa: E402
from semmae.models.vit import Encoder, EncoderSpec  # noqa: E402

SECONDS = 20.0  # in which anything is refused, on a slow core that does other work too
CLASSES, IMAGES = ("cat", "dog", "eel"), 8  # of each class
TRAIN = "--model vit_tiny --image-size 32 --patch-size 8 --batch-size 8 --workers 0 --precision float32 --epochs 1"


@dataclass(frozen=True)
class Attack:
    """One of them: its section, what is done, and the work that raises where it is not handled rightly."""

    section: str
    name: str
    work: Callable[["Desk"], object]
    count: int = 1  # inputs that the work tries


ATTACKS: list[Attack] = []


def attack(section: str, name: str, count: int = 1) -> Callable[[Callable[["Desk"], object]], None]:
    """Add a function to the attacks."""
    return lambda work: ATTACKS.append(Attack(section, name, work, count))


class Desk:
    """A user's folder: photos by class, a run, part labels, a table. The working folder while attacks run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(0)
        for label in CLASSES:
            (root / "photos" / label).mkdir(parents=True)
            for number in range(IMAGES):
                picture(random).save(root / "photos" / label / f"{number}.png")
        torch.manual_seed(0)
        mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), DecoderSpec(32, 1, 4))
        checkpoint.save_encoder(mae.encoder, root / "run" / "encoder", {"stage": "pretrain"})
        checkpoint.save_autoencoder(mae, root / "run" / "autoencoder")
        images = semmae.open_images(root / "photos")
        store = PartStore.create(
            root / "parts", images=len(images), grid=4, label_names=["background", "part 1"], teacher_digest="t",
            manifest_digest=images.digest,
        )  # fmt: skip
        store.write(np.arange(len(images)), random.integers(0, 2, (len(images), 4, 4)).astype(np.uint8))
        store.finish()
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((root / "photos").rglob("*.png"))]
        self.rows = rows
        pq.write_table(pa.table({"image": rows, "label": [n % 3 for n in range(len(rows))]}), root / "x.parquet")

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file, with its size and time."""
        found = (path for path in self.root.rglob("*") if not path.is_dir())
        return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}

    @contextlib.contextmanager
    def copy(self) -> Iterator["Desk"]:
        """The same desk, to be spoilt."""
        other = object.__new__(Desk)
        with tempfile.TemporaryDirectory(prefix="semmae-attacks-") as folder:
            other.root, other.rows = Path(shutil.copytree(self.root, Path(folder) / "desk")), self.rows
            with contextlib.chdir(other.root):
                yield other


def picture(random: np.random.Generator, side: int = 32) -> Image.Image:
    return Image.fromarray(random.integers(0, 255, (side, side, 3)).astype(np.uint8))


def command(words: str | list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words.split() if isinstance(words, str) else words)
    return code, out.getvalue(), err.getvalue()


def told(err: str) -> str:
    """The one line of an error; AssertionError where there are more, or none."""
    lines = [line for line in err.splitlines() if line.startswith("semmae: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    assert len(lines[0]) < 700, f"{len(lines[0])} characters: {lines[0]}"
    return lines[0]


def refused(desk: Desk, words: str | list[str], *named: str) -> None:
    before, began = desk.listing(), time.monotonic()
    code, _, err = command(words)
    assert code == 2, f"exit code {code}, {err}"
    line = told(err)
    assert all(name in line for name in named), line
    assert time.monotonic() - began < SECONDS, f"after {time.monotonic() - began:.0f} s"
    after = desk.listing()
    assert after == before, sorted(set(after.items()) ^ set(before.items()))[:4]


def works(words: str | list[str]) -> str:
    code, out, err = command(words)
    assert code == 0, f"exit code {code}, {err}"
    return out + err


def child_of(words: str | list[str], prepare: Callable[[], object] = lambda: None) -> Forked:
    def work() -> int:
        prepare()
        return run(words.split() if isinstance(words, str) else words)

    return Forked(work)


# A: data lost

DAMAGED = 1500


@attack("A1", "damaged images of every format, decoded", DAMAGED)
def _(desk: Desk) -> None:
    def all_of_them() -> None:
        import random

        for number in range(DAMAGED):
            rng = random.Random(number)
            kinds = test_damaged.WHOLE
            raw = bytearray(rng.choice(kinds[list(kinds)[number % len(kinds)]]))
            test_damaged.DAMAGES[number % len(test_damaged.DAMAGES)](raw, rng)
            with contextlib.suppress(ValueError):
                decode(bytes(raw))

    child = Forked(lambda: all_of_them())
    assert child.ended(100) == 0, child.told


@attack("A1", "a damaged PNG among photos is a row of skipped.csv")
def _(desk: Desk) -> None:
    with desk.copy() as own:
        path = own.root / "photos/cat/0.png"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        path.write_bytes(raw)
        works("knn --encoder run --data photos --out knn --workers 0")
        assert "cat/0.png" in Path("knn/skipped.csv").read_text()


def overwrites(words: str, desk: Desk) -> None:
    with desk.copy() as own:
        shutil.copytree("run", "R")
        for name in ("photos/a.jpg", "parts/parts.json", "masks/a.png", "config.yaml", "export.json"):
            (own.root / "R" / name).parent.mkdir(exist_ok=True)
            (own.root / "R" / name).write_text("data: elsewhere\n")
        (own.root / "photos/img.png").write_text("mine")
        refused(own, words)


for words in test_places.ATTACKS:
    attack("A2", words)(functools.partial(overwrites, words))


@attack("A3", "two processes started together with one --out")
def _(desk: Desk) -> None:
    with desk.copy():
        start = multiprocessing.get_context("fork").Event()

        def slowly() -> None:
            from semmae.data import manifest

            real = manifest._check
            manifest._check = lambda *a, **k: (time.sleep(2), real(*a, **k))[1]  # type: ignore[assignment]
            os.environ["SEMMAE_CACHE"] = "cache"
            start.wait(30)

        children = [child_of("knn --encoder run --data photos --out knn --workers 0", slowly) for _ in range(2)]
        start.set()
        codes = sorted(child.ended(60) or 0 for child in children)
        assert codes == [0, 2], [child.told for child in children]


@attack("A4", "files of the user's in a run that goes on")
def _(desk: Desk) -> None:
    with desk.copy():

        def killed() -> None:
            from semmae.commands import knn

            knn.write_results = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]

        words = "knn --encoder run --data photos --out knn --workers 0"
        child = child_of(words, killed)
        assert child.ended(60) == -signal.SIGKILL, child.told
        mine = [Path("knn") / name for name in ("notes.tmp", ".x.tmp", ".encoder-x", "parts.npy.tmp")]
        ours = Path("knn") / f".results.json.1{PART}"
        for path in (*mine, ours):
            path.write_text("")
        works(words)
        assert all(path.exists() for path in mine) and not ours.exists()


def full_disk(words: str, most: int, desk: Desk) -> None:
    """As on a disk that fills up: no file grows beyond so many bytes."""
    with desk.copy():
        child = child_of(words, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        assert child.ended(100) == 1, child.told
        told(child.told)
        assert not list(Path().rglob(f"*{PART}"))
        for last in Path().rglob("last.ckpt"):
            torch.load(last, weights_only=True)


for words, most in {
    "export --encoder run --to timm --out new": 20_000,
    "export --encoder run --to hf --out new": 20_000,
    "export --encoder run --to mae --out new": 20_000,
    "export --encoder run --to onnx --out new": 20_000,
    "embed --encoder run --data photos --out x.npz --workers 0": 2_500,
    "embed --encoder run --data photos --out new.parquet --workers 0": 2_500,
    "embed --encoder run --data photos --out x.safetensors --workers 0": 2_500,
    f"pretrain --data photos --masking random --out new {TRAIN}": 300_000,
}.items():
    attack("A5", f"{words}, a disk of {most} bytes")(functools.partial(full_disk, words, most))


# B: silently wrong

NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**20, -(10**20))


def numbers(verb: str, desk: Desk) -> None:
    import dataclasses
    import typing

    kind, _ = semmae.load_verb(verb)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
        if not {int, float} & set(allowed):
            continue
        for value in NO_NUMBERS:
            try:
                getattr(semmae, verb)(**{"data": "photos", "encoder": "run", "out": "new", field.name: value})
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 300, error
            else:
                raise AssertionError(f"{verb} {field.name}={value} passed")
    assert not Path("new").exists()


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


@attack("B4", "orientation by EXIF, by XMP and by both, at every decoding size", 8 * 2 * 2 * 3)
def _(desk: Desk) -> None:
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


# C: tracebacks and endless work


@attack("C1", "names that are not UTF-8, through five verbs and again", 10)
def _(desk: Desk) -> None:
    with desk.copy() as own:
        data = own.root / os.fsdecode(b"f\xf6tos\xff")
        shutil.copytree("photos", data)
        (data / "cat").rename(data / os.fsdecode(b"\xff\xfe"))
        for path in list((data / "dog").iterdir()):
            path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.name))
        os.truncate(next((data / "dog").iterdir()), 50)
        given = ["--data", str(data), "--encoder", "run", "--workers", "0", "--out"]
        for again in range(2):
            works(["knn", *given, "knn"])
            works(["probe", *given, "probe"])
            for suffix in (".npz", ".parquet", ".safetensors"):
                works(["embed", *given, f"{again}{suffix}"])
        assert b"caf\xe9" in Path("knn/skipped.csv").read_bytes()


class Resumed:
    """A run of pretrain that was stopped, made once."""

    folder: Path | None = None

    @classmethod
    def of(cls, desk: Desk) -> Path:
        if cls.folder is None:
            from semmae.tasks import stopping

            out = desk.root.parent / "stopped"
            real = stopping.Keeper._wish
            stopping.Keeper._wish = lambda self, on, due: (
                stopping.Wish.STOP if on.global_step == 2 else real(self, on, due)
            )  # type: ignore[method-assign]
            try:
                words = TRAIN.replace("--epochs 1", "--epochs 2")
                code, _, err = command(f"pretrain --data {desk.root / 'photos'} --masking random --out {out} {words}")
                assert code in (130, 143), err
            finally:
                stopping.Keeper._wish = real  # type: ignore[method-assign]
            cls.folder = out
        return cls.folder


def damaged_checkpoint(damage: str, desk: Desk) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(shutil.copytree(Resumed.of(desk), Path(folder) / "run"))
        test_damaged_resume.DAMAGE[damage](out / test_damaged_resume.LAST)
        code, _, err = command(["pretrain", "--out", str(out), "--resume"])
        assert code == 2 and "last.ckpt" in told(err), err
        assert not (out / "encoder").exists()


for damage in test_damaged_resume.DAMAGE:
    attack("C2", f"last.ckpt: {damage}")(functools.partial(damaged_checkpoint, damage))


def among_photos(make: Callable[[Path], object], desk: Desk) -> None:
    with desk.copy() as own:
        make(own.root / "photos/cat/zz.jpg")
        began = time.monotonic()
        works("knn --encoder run --data photos --out knn --workers 0")
        assert time.monotonic() - began < SECONDS
        assert "zz.jpg" in Path("knn/skipped.csv").read_text()


def claims_to_be_huge(kind: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        raw = io.BytesIO()
        picture(np.random.default_rng(0)).save(raw, kind)
        content = bytearray(raw.getvalue())
        side = (65500).to_bytes(2, "big")
        if kind == "JPEG":
            at = content.index(b"\xff\xc0") + 5
            content[at : at + 4] = side * 2
        else:
            import zlib

            content[16:24] = (65500).to_bytes(4, "big") * 2
            content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)

    return make


for name, make in {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder's name": lambda path: path.symlink_to("/"),
    "terabytes of zeros": lambda path: (path.touch(), os.truncate(path, 2**41)),
    "a JPEG of 65500 x 65500": claims_to_be_huge("JPEG"),
    "a PNG of 65500 x 65500": claims_to_be_huge("PNG"),
}.items():
    attack("C3", f"among the images: {name}")(functools.partial(among_photos, make))


def hostile_checkpoint(name: str, desk: Desk) -> None:
    write, suffix = hostile.REFUSED[name]
    with desk.copy() as own:
        write(own.root / f"evil{suffix}")
        refused(own, f"knn --encoder evil{suffix} --num-heads 1 --data photos --out new", "evil")


for name in hostile.REFUSED:
    attack("C3", f"a checkpoint: {name}")(functools.partial(hostile_checkpoint, name))


def spoilt_config(name: str, content: str | bytes, desk: Desk) -> None:
    with desk.copy() as own:
        path = own.root / "run/encoder/config.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            whole = json.loads(path.read_text())
            section, key = name.split(".")
            whole[section][key] = json.loads(content)
            path.write_text(json.dumps(whole))
        shutil.rmtree("run/autoencoder")
        refused(own, "knn --encoder run/encoder --data photos --out new")


for name, content in {
    "model_args.depth": "1000000000", "model_args.embed_dim": "1000000000", "model_args.num_heads": "0",
    "model_args.patch_size": '"eight"', "model_args.mlp_ratio": "-1", "model_args.img_size": "[]",
    "semmae.spec": "[]", "semmae.kind": "3", "nested": b'{"a":' * 100_000, "no UTF-8": b"\xff\xfe{}", "empty": b"",
    "a list": b"[1, 2]",
}.items():  # fmt: skip
    attack("C3", f"config.json: {name}")(functools.partial(spoilt_config, name, content))


EDITS: dict[str, bytes] = {
    "empty": b"", "a list": b"[]", "text": b'"x"', "cut": b'{"a": ', "no UTF-8": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "other types": b'{"protocol": 3, "top1": "high", "stage": 7, "finished": "no", "minutes": {}, "images": []}',
}  # fmt: skip


def edited(name: str, content: bytes, desk: Desk) -> None:
    with desk.copy():
        works("knn --encoder run --data photos --out knn --workers 0")
        Path("knn", name).write_bytes(content)
        code, _, err = command("report knn")
        assert code in (0, 2), err
        if code:
            assert name in told(err), err


for name in ("results.json", "config.yaml", "skipped.csv", "summary.json", "metrics.jsonl"):
    for edit, content in EDITS.items():
        attack("C4", f"{name}: {edit}")(functools.partial(edited, name, content))


PLACES = (
    "", "nowhere", "~nobody-here/x", "/proc/x", "/dev/null/x", "/dev/zero", "x" * 300, "x/" * 3000, "a\0b",
    "https://example.org/a.tar", "s3://bucket/photos", "photos.zip", "run/encoder/config.json",
)  # fmt: skip
for place in PLACES:
    for option in ("--data", "--encoder", "--config"):
        given = {"--data": "photos", "--encoder": "run", option: place}
        line = ["knn", "--out", "new", *(word for pair in given.items() for word in pair)]
        attack("C5", f"{option} {place[:30]!r}")(functools.partial(lambda desk, line: refused(desk, line), line=line))
for place in ("", "~nobody-here/x", "/proc/x", "/dev/null/x", "x" * 300, "a\0b", "x.parquet", "photos/cat"):
    line = ["knn", "--data", "photos", "--encoder", "run", "--workers", "0", "--out", place]
    attack("C5", f"--out {place[:30]!r}")(functools.partial(lambda desk, line: refused(desk, line), line=line))


@attack("C7", "SIGTERM while embedding")
def _(desk: Desk) -> None:
    with desk.copy():

        def stopped() -> None:
            from semmae.commands import embed

            embed._write = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[assignment]

        words = "embed --encoder run --data photos --out x.npz --workers 0"
        child = child_of(words, stopped)
        assert child.ended(60) == 143, child.told
        assert "go on with: semmae embed --out x.npz --resume" in told(child.told)
        works("embed --out x.npz --resume")


# D: checkpoints that people have


def foreign(form: Callable[..., Any], desk: Desk) -> None:
    scale = {"init_values": 0.1} if form in (forms.dinov2, forms.dinov2_flat, forms.mmpretrain) else {}
    wanted, other = forms.network(1, **scale), forms.network(2, **scale)
    with desk.copy() as own:
        torch.save(form(wanted.state_dict(), other.state_dict()), own.root / "some.pth")
        loaded = semmae.load_encoder(own.root / "some.pth")
        weight = loaded.vit.state_dict()["blocks.0.attn.qkv.weight"]
        assert torch.equal(weight, wanted.state_dict()["blocks.0.attn.qkv.weight"])


for form in forms.FORMS:
    if form is not forms.mmengine_ema:  # needs a stand-in for a library: see its test
        attack("D", f"a checkpoint of {form.__name__} is read")(functools.partial(foreign, form))


def executes(name: str, desk: Desk) -> None:
    with desk.copy() as own:
        content = hostile.attacks(f"touch {own.root / 'executed'}")[name]
        if not isinstance(content, bytes):
            content = pickle.dumps({"model": {}, "args": content}, protocol=2)
        hostile.archive(own.root / "evil.pth", content)
        refused(own, "knn --encoder evil.pth --data photos --out new", "evil.pth")


for name in hostile.attacks(""):
    attack("D", f"code in a checkpoint: {name}")(functools.partial(executes, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="sections to replay, such as A2 C")
    only = tuple(parser.parse_args().only)
    chosen = [one for one in ATTACKS if not only or one.section.startswith(only)]
    torch.set_num_threads(1)
    began, tried, held, failed = time.monotonic(), Counter[str](), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="semmae-attacks-") as folder:
        desk = Desk(Path(folder) / "desk")
        for one in chosen:
            started = time.monotonic()
            tried[one.section] += one.count
            with contextlib.chdir(desk.root):
                try:
                    one.work(desk)
                    held[one.section] += one.count
                except Exception:
                    failed.append(f"{one.section} {one.name}\n{traceback.format_exc(limit=-3)}")
            if time.monotonic() - started > 5:
                print(f"{one.section} {one.name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    print("\n".join(failed), end="")
    print(" ".join(f"{section} {held[section]}/{count}" for section, count in tried.items()))
    print(f"{sum(held.values())} of {sum(tried.values())} attacks handled, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
