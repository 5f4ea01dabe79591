"""Class data with splits: what every measuring verb refuses, tells and lists alike."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import semmae
from semmae.cli import run
from semmae.formats.folders import save_encoder
from semmae.models.vit import Encoder, EncoderSpec

QUICK: dict[str, dict[str, Any]] = {
    "knn": {},
    "probe": {"epochs": 1},
    "finetune": {"epochs": 1, "val_every": 0, "batch_size": 8},
    "evaluate": {"untrained": False},
}
VERBS = list(QUICK)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    save_encoder(Encoder(EncoderSpec(32, 8, 24, 1, 2)).eval(), folder)
    return folder


@pytest.fixture
def data(creatures: Path, tmp_path: Path) -> Path:
    return tiny.divide(creatures, tmp_path / "data")


def measure(verb: str, encoder: Path, data: Path, **more: Any) -> Path:
    out: Path = getattr(semmae, verb)(
        encoder=encoder, data=data, out=data.parent / "out", workers=0, **{**QUICK[verb], **more}
    ).path
    return out


def refused(verb: str, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    told = ["--encoder", str(encoder), "--data", str(data), "--out", str(data.parent / "out"), "--workers", "0", *more]
    return tiny.refusal([verb, *told], data.parent / "out", capsys)


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_class_of_val_is_refused(
    verb: str, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sorted((data / "val").iterdir())[0]
    folder.rename(folder.with_name(f"{folder.name}s"))
    line = refused(verb, encoder, data, capsys)
    assert f"class '{folder.name}s': has validation images, and none to learn from" in line
    assert f'did you mean "{folder.name}"?' in line


def test_under_a_limit_a_class_may_be_left_out(
    encoder: Path, data: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven of 24 training images cannot have all eight classes."""
    measure("knn", encoder, data, limit=7)
    assert "has validation images, and none to learn from, of which --limit leaves some out" in caplog.text
    assert results(data.parent / "out")["images"] == 7


def test_a_class_that_is_only_in_train_is_told(encoder: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = sorted((data / "val").iterdir())[:2]
    shutil.rmtree(first)
    shutil.rmtree(second)
    out = measure("knn", encoder, data)
    assert f"class '{first.name}' and 1 more: no validation images, so it is not measured" in caplog.text
    assert results(out)["images"] == 6


def test_an_image_alone_in_its_class_is_told(
    encoder: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where every image is asked against all others, no other one has its class."""
    shutil.copytree(creatures / "images", tmp_path / "data")
    folder = sorted((tmp_path / "data").iterdir())[2]
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    measure("knn", encoder, tmp_path / "data")
    assert f"class '{folder.name}': a single image, which counts as wrong" in caplog.text


@pytest.mark.parametrize("verb", VERBS)
def test_names_of_ade20k_are_splits_too(verb: str, encoder: Path, data: Path) -> None:
    expected = {name: value for name, value in results(measure(verb, encoder, data)).items() if name != "protocol"}
    shutil.rmtree(data.parent / "out")
    (data / "train").rename(data / "training")
    (data / "val").rename(data / "validation")
    found = results(measure(verb, encoder, data))
    assert {name: value for name, value in found.items() if name != "protocol"} == expected
    split = found["protocol"]["knn" if verb == "evaluate" else "split"]
    assert "24 train, 8 val" in str(split)


@pytest.mark.parametrize("verb", VERBS)
def test_val_without_train_is_refused(verb: str, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train").rename(data / "trian")
    line = refused(verb, encoder, data, capsys)
    assert "holds val but no train" in line and 'did you mean "trian"?' in line
    (data / "trian").rename(data / "train")
    (data / "val").rename(data / "vall")
    assert 'did you mean "vall"?' in refused(verb, encoder, data, capsys)


def test_a_share_is_not_held_out_of_data_with_a_split(
    encoder: Path, data: Path, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("probe", "finetune", "evaluate"):
        line = refused(verb, encoder, data, capsys, "--val-share", "0.3")
        assert "--val-share 0.3: " in line and "has a validation split, nothing is held out; leave it out" in line
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.copytree(creatures / kind, tmp_path / "pixels" / kind / split)
    line = refused("segment", encoder, tmp_path / "pixels", capsys, "--val-share", "0.3", "--head", "linear")
    assert "has a validation split, nothing is held out; leave it out" in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_broken_image_of_either_split_is_listed(verb: str, encoder: Path, data: Path) -> None:
    broken = [sorted((data / split).rglob("*.png"))[3] for split in ("train", "val")]
    for path in (data / "val").rglob("*.png"):  # so many that one of them is less than may be broken
        for copy in range(3):
            shutil.copy(path, path.with_name(f"{copy}-{path.name}"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    out = measure(verb, encoder, data)
    rows = list(csv.DictReader((out / "skipped.csv").open()))
    assert [row["name"] for row in rows] == [path.relative_to(data).as_posix() for path in broken]


@pytest.mark.parametrize("verb", ["segment", "evaluate"])
def test_a_broken_image_below_masks_is_listed(verb: str, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """Named below the folder of both splits, each of which is opened by itself."""
    images = sorted(path.relative_to(creatures / "images") for path in (creatures / "images").rglob("*.png"))
    for number, name in enumerate(images):
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                target = tmp_path / "data" / kind / split / f"{number:02}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(creatures / kind / name, target)
    for path in (tmp_path / "data/images/train/05.png", tmp_path / "data/images/val/07.png"):
        path.write_bytes(path.read_bytes()[:100])
    told: dict[str, Any] = {"encoder": encoder, "data": tmp_path / "data", "out": tmp_path / "out", "workers": 0}
    if verb == "segment":
        semmae.segment(head="linear", steps=1, val_steps=1, pictures=0, **told)
        again = {**told, "encoder": tmp_path / "out", "out": tmp_path / "again"}
        semmae.segment(eval_only=True, pictures=0, **again)
        rows = list(csv.DictReader((tmp_path / "again" / "skipped.csv").open()))
        assert [row["name"] for row in rows] == ["07.png"]
    else:
        semmae.evaluate(steps=1, untrained=False, **told)
    rows = list(csv.DictReader((tmp_path / "out" / "skipped.csv").open()))
    assert [row["name"] for row in rows] == ["train/05.png", "val/07.png"]


def test_the_command_tells_the_class_in_one_line(encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sorted((data / "val").iterdir())[0], data / "val" / "quite another")
    told = ["--encoder", str(encoder), "--data", str(data), "--out", str(data.parent / "out"), "--workers", "0"]
    assert run(["knn", *told]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "rename the folder, or leave these images out\n" in line


@pytest.mark.parametrize("verb", VERBS)
def test_classes_that_lie_elsewhere_are_refused_with_the_remedy(
    verb: str, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((data / "val").glob("*/*")):
        path.rename(data / "val" / f"{path.parent.name}-{path.name}")
    assert "the images of val lie in it directly" in refused(verb, encoder, data, capsys)
    shutil.rmtree(data / "val")
    (data / "train").rename(data / "photos")
    assert "give the folder photos in --data" in refused(verb, encoder, data, capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_what_can_be_no_data_is_refused_in_one_line(
    verb: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for data in ("https://example.org/x", tmp_path / "photos.zip", "a" * 300, "~nobody-of-this-name", "/dev/null"):
        line = refused(verb, encoder, Path(data), capsys)
        assert str(Path(data))[:20] in line
