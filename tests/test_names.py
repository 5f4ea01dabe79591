"""Names of files, classes and folders that are no UTF-8 are written by everything, and read again as they were."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image
from reporting.test_parts_page import write_samples

import semmae
from semmae import files
from semmae.cli import run
from semmae.data.part_store import PartStore
from semmae.data.token_file import Column, TokenFile, finish
from semmae.formats.folders import read_classifier, save_classifier, save_encoder
from semmae.models.classifier import Classifier
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.knn import KnnOptions
from semmae.reporting.confusion import confusion_picture
from semmae.reporting.model_card import Card, find_run, write_card
from semmae.reporting.page import read_facts
from semmae.reporting.part_samples import FILE, read_samples
from semmae.reporting.parts_page import write_parts_page
from semmae.reporting.results import draw_confusion, write_comparison, write_per_class, write_results
from semmae.reporting.run_page import write_report
from semmae.run.config import read_config, saved_options, to_yaml

STRANGE = os.fsdecode(b"\xff")
IMAGE, OTHER = f"cl{STRANGE}ass/im{STRANGE}age.jpg", "cl\u00e4ss/b.jpg"
CLASSES = [f"cl{STRANGE}ass", "cl\u00e4ss", "$\\frac$", "a,b\n"]
READABLE = ["cl\\xffass", "cl\u00e4ss", "$\\frac$", "a,b\n"]
DATA = f"/photos/da{STRANGE}ta"


def test_options_come_back_from_their_file(tmp_path: Path) -> None:
    options = KnnOptions(encoder=f"en{STRANGE}c", data=DATA, out=tmp_path)
    files.write_text(tmp_path / "config.yaml", to_yaml(options))
    assert read_config(tmp_path / "config.yaml", KnnOptions)["data"] == DATA
    assert saved_options(tmp_path)["encoder"] == f"en{STRANGE}c"


def test_results_and_the_pages_of_a_run(tmp_path: Path) -> None:
    protocol, figures = {"method": "k-NN", "data": DATA, "k": 20}, {"top1": 40.0, "images": 4}
    write_comparison(tmp_path, protocol, {"this encoder": {"knn_top1": 40.0}, f"ot{STRANGE}her": {"knn_top1": 1.0}})
    assert read_facts(tmp_path / "results.json").keys() >= {f"ot{STRANGE}her"}
    write_results(tmp_path, protocol, figures, details=[f"- {CLASSES[0]}"])
    assert read_facts(tmp_path / "results.json")["protocol"]["data"] == DATA
    assert os.fsencode(DATA) in (tmp_path / "results.md").read_bytes()
    files.write_text(tmp_path / "config.yaml", to_yaml(KnnOptions(encoder="e", data=DATA, out=tmp_path)))
    files.write_csv(tmp_path / "skipped.csv", [("name", "reason"), (IMAGE, "truncated")])
    page = write_report(tmp_path).read_bytes()
    assert os.fsencode(DATA) in page and b"1 unreadable image was left out" in page
    encoder = Encoder(EncoderSpec.named("vit_tiny", 16, 8))
    assert f"da{STRANGE}ta" in write_card(Card("x", "timm", encoder, str(tmp_path), find_run(str(tmp_path)), {}))


def test_what_is_reported_of_classes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    chosen, truths = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 2, 3])
    write_per_class(tmp_path / "per_class.csv", CLASSES, chosen, truths)
    assert [row[0] for row in files.read_csv(tmp_path / "per_class.csv")[1:]] == CLASSES
    draw_confusion(tmp_path / "confusion.png", CLASSES, chosen, truths)
    confusion_picture(torch.eye(4, dtype=torch.int64), READABLE, tmp_path / "readable.png")
    confusion_picture(torch.eye(4, dtype=torch.int64), CLASSES, tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "readable.png").read_bytes()
    assert not [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)]
    classifier = Classifier(Encoder(EncoderSpec.named("vit_tiny", 16, 8)), 4, "cls")
    save_classifier(classifier, tmp_path / "classifier", CLASSES, 1.0, {"data": DATA})
    assert read_classifier(tmp_path / "classifier")[1] == CLASSES


def test_the_page_of_parts(tmp_path: Path) -> None:
    write_samples(tmp_path, images=2, names=[IMAGE, OTHER])
    assert read_samples(tmp_path / FILE).names.tolist() == [IMAGE, OTHER]
    assert os.fsencode(IMAGE) in write_parts_page(tmp_path).read_bytes()


def test_part_labels_name_their_teacher(tmp_path: Path) -> None:
    given = {"teacher_digest": "t", "manifest_digest": "m", "label_names": ["a"], "extra": {"teacher": DATA}}
    store = PartStore.create(tmp_path, images=2, grid=2, **given)
    store.write(np.arange(2), np.zeros((2, 2, 2)))
    store.finish()
    assert PartStore.open(tmp_path).extra == {"teacher": DATA}


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
def test_files_of_features(suffix: str, tmp_path: Path) -> None:
    """Arrow and safetensors hold Unicode alone: bytes that are none as backslashes and numbers."""
    file = TokenFile(tmp_path / "rows", 2, [Column("cls", (3,), "float32")], {"encoder": DATA})
    file.create()
    out = tmp_path / f"features{suffix}"
    finish(file, [IMAGE, OTHER], CLASSES[:2], out)
    names = [IMAGE.replace(STRANGE, "\\xff"), OTHER]
    if suffix == ".parquet":
        table = pq.read_table(out)
        given = json.loads(table.schema.metadata[b"semmae"])
        found = [table[key].to_pylist() for key in ("path", "label")]
    elif suffix == ".npz":
        arrays = np.load(out)
        given, found = json.loads(str(arrays["semmae"])), [arrays[key].tolist() for key in ("path", "label")]
    else:
        raw = out.read_bytes()
        given = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["semmae"])
        rows = list(csv.reader(io.StringIO((tmp_path / "features.paths.csv").read_text(encoding="utf-8"))))
        found = [list(column[1:]) for column in zip(*rows, strict=True)]
    assert found == [names, READABLE[:2]] and given == {"encoder": DATA}


def test_an_output_that_is_no_utf_8_is_refused(tmp_path: Path, refuse: tiny.Refuse) -> None:
    """safetensors and TensorBoard open no such file, which would be known after the training."""
    for out in (tmp_path / STRANGE, tmp_path / f"{STRANGE}.parquet", tmp_path / STRANGE / "run"):
        verb = "embed" if out.suffix else "knn"
        save_encoder(Encoder(EncoderSpec.named("vit_tiny", 16, 8)), tmp_path / verb)
        asked = [verb, "--encoder", str(tmp_path / verb), "--data", str(tmp_path / verb), "--out", str(out)]
        refuse(asked, out, "--out", "UTF-8")


@pytest.fixture
def photos(creatures: Path, tmp_path: Path) -> Path:
    """Creatures of two classes, divided, and one image that cannot be read."""
    root = tmp_path / f"da{STRANGE}ta"
    for number, path in enumerate(sorted((creatures / "images").glob("*/*.png"))[:32]):
        folder = root / ("val" if number % 4 == 0 else "train") / f"cl{STRANGE}{number // 4 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"im{STRANGE}{number}.png")
    (folder / f"br{STRANGE}oken.png").write_bytes(b"\x89PNG")
    return root


@pytest.mark.slow
def test_every_stage_of_the_work_on_such_a_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_encoder(Encoder(EncoderSpec.named("vit_tiny", 32, 8)), tmp_path / "encoder")
    measured = {"data": str(photos), "encoder": str(tmp_path / "encoder"), "workers": 0}
    parts = tmp_path / "parts"
    semmae.knn(out=tmp_path / "knn", **measured)
    semmae.probe(out=tmp_path / "probe", **measured)
    semmae.evaluate(out=tmp_path / "evaluate", **measured)
    semmae.finetune(out=tmp_path / "finetune", epochs=1, **measured | tiny.TRAIN)
    semmae.finetune(out=tmp_path / "again", eval_only=True, **measured | {"encoder": str(tmp_path / "finetune")})
    labelled = {"teacher": measured["encoder"], "data": str(photos), "grid": 7, **tiny.TRAIN}
    semmae.parts(out=parts, steps=2, export_png=tmp_path / "png", **labelled)
    assert run(["parts", "--out", str(parts), "--resume"]) == 0
    semmae.pretrain(data=str(photos), parts=parts, out=tmp_path / "run", epochs=1, **tiny.SIZE, **tiny.TRAIN)
    for suffix in (".parquet", ".npz", ".safetensors"):
        semmae.embed(out=tmp_path / f"features{suffix}", tokens="cls,parts", parts=parts, **measured)
    for folder in (parts, tmp_path / "run", tmp_path / "knn"):
        assert os.fsencode(photos) in write_report(folder).read_bytes()
    names = {path.relative_to(photos) for path in photos.rglob("im*.png")}
    assert {path.relative_to(tmp_path / "png") for path in (tmp_path / "png").rglob("*.png")} == names
    with Image.open(next((tmp_path / "png").rglob("*.png"))) as picture:
        assert picture.size == (7, 7)
    assert files.read_csv(parts / "skipped.csv")[1][0].endswith(f"br{STRANGE}oken.png")
    assert {row[0] for row in files.read_csv(tmp_path / "again" / "per_class.csv")[1:]} == {
        f"cl{STRANGE}0", f"cl{STRANGE}1",
    }  # fmt: skip
    assert "Traceback" not in capsys.readouterr().err
