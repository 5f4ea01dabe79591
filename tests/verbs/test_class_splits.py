"""Class data with splits: what every measuring verb refuses, reports and lists alike."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import semmae

QUICK: dict[str, dict[str, Any]] = {
    "knn": {},
    "probe": {"epochs": 1},
    "finetune": {"epochs": 1, "val_every": 0, "batch_size": 8},
    "evaluate": {"untrained": False},
}
VERBS = list(QUICK)


@pytest.fixture
def data(creatures: Path, tmp_path: Path) -> Path:
    return tiny.divide(creatures, tmp_path / "data")


def measure(verb: str, encoder: Path, data: Path, **more: Any) -> Path:
    out: Path = getattr(semmae, verb)(
        encoder=encoder, data=data, out=data.parent / "out", workers=0, **{**QUICK[verb], **more}
    ).path
    return out


@pytest.fixture
def refuse_data(encoder: Path, tmp_path: Path, refuse: tiny.Refuse) -> Callable[..., str]:
    """A verb refuses some data in a line with all facts."""

    def refuse_data(verb: str, data: Path, *facts: str, more: str = "") -> str:
        given = ["--encoder", str(encoder), "--data", str(data), "--out", str(tmp_path / "out"), "--workers", "0"]
        return refuse([verb, *given, *more.split()], tmp_path / "out", *facts)

    return refuse_data


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_class_of_val_is_refused(verb: str, data: Path, refuse_data: Callable[..., str]) -> None:
    folder = sorted((data / "val").iterdir())[0]
    folder.rename(folder.with_name(f"{folder.name}s"))
    refuse_data(verb, data, f"class '{folder.name}s'", f'"{folder.name}"?')


def test_under_a_limit_a_class_may_be_left_out(encoder: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Seven of 24 training images cannot have all eight classes."""
    measure("knn", encoder, data, limit=7)
    assert "--limit" in caplog.text
    assert tiny.results(data.parent / "out")["images"] == 7


def test_a_class_that_is_only_in_train_is_named(encoder: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = sorted((data / "val").iterdir())[:2]
    shutil.rmtree(first)
    shutil.rmtree(second)
    out = measure("knn", encoder, data)
    assert f"class '{first.name}' and 1 more: " in caplog.text
    assert tiny.results(out)["images"] == 6


def test_an_image_alone_in_its_class_is_named(
    encoder: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where every image is asked against all others, no other one has its class."""
    shutil.copytree(creatures / "images", tmp_path / "data")
    folder = sorted((tmp_path / "data").iterdir())[2]
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    measure("knn", encoder, tmp_path / "data")
    assert f"class '{folder.name}': a single image" in caplog.text


@pytest.mark.parametrize("verb", VERBS)
def test_names_of_ade20k_are_splits_too(verb: str, encoder: Path, data: Path) -> None:
    expected = {name: value for name, value in tiny.results(measure(verb, encoder, data)).items() if name != "protocol"}
    shutil.rmtree(data.parent / "out")
    (data / "train").rename(data / "training")
    (data / "val").rename(data / "validation")
    found = tiny.results(measure(verb, encoder, data))
    assert {name: value for name, value in found.items() if name != "protocol"} == expected
    split = found["protocol"]["knn" if verb == "evaluate" else "split"]
    assert "24 train, 8 val" in str(split)


@pytest.mark.parametrize("verb", VERBS)
def test_val_without_train_is_refused(verb: str, data: Path, refuse_data: Callable[..., str]) -> None:
    (data / "train").rename(data / "trian")
    refuse_data(verb, data, "val", "no train", '"trian"?')
    (data / "trian").rename(data / "train")
    (data / "val").rename(data / "vall")
    refuse_data(verb, data, '"vall"?')


def test_a_share_is_not_held_out_of_data_with_a_split(
    data: Path, creatures: Path, tmp_path: Path, refuse_data: Callable[..., str]
) -> None:
    for verb in ("probe", "finetune", "evaluate"):
        refuse_data(verb, data, "--val-share 0.3: ", "validation split", more="--val-share 0.3")
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.copytree(creatures / kind, tmp_path / "pixels" / kind / split)
    refuse_data(
        "segment", tmp_path / "pixels", "--val-share 0.3", "validation split", more="--val-share 0.3 --head linear"
    )


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
    given: dict[str, Any] = {"encoder": encoder, "data": tmp_path / "data", "out": tmp_path / "out", "workers": 0}
    if verb == "segment":
        semmae.segment(head="linear", steps=1, val_steps=1, pictures=0, **given)
        again = {**given, "encoder": tmp_path / "out", "out": tmp_path / "again"}
        semmae.segment(eval_only=True, pictures=0, **again)
        rows = list(csv.DictReader((tmp_path / "again" / "skipped.csv").open()))
        assert [row["name"] for row in rows] == ["07.png"]
    else:
        semmae.evaluate(steps=1, untrained=False, **given)
    rows = list(csv.DictReader((tmp_path / "out" / "skipped.csv").open()))
    assert [row["name"] for row in rows] == ["train/05.png", "val/07.png"]


@pytest.mark.parametrize("verb", VERBS)
def test_classes_that_lie_elsewhere_are_refused_with_the_remedy(
    verb: str, data: Path, refuse_data: Callable[..., str]
) -> None:
    for path in sorted((data / "val").glob("*/*")):
        path.rename(data / "val" / f"{path.parent.name}-{path.name}")
    refuse_data(verb, data, "images of val")
    shutil.rmtree(data / "val")
    (data / "train").rename(data / "photos")
    refuse_data(verb, data, "photos in --data")
    alone = next((data / "photos").iterdir())
    refuse_data(verb, alone, str(alone), "classes")


@pytest.mark.parametrize("verb", VERBS)
def test_what_can_be_no_data_is_refused_in_one_line(verb: str, tmp_path: Path, refuse_data: Callable[..., str]) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for data in ("https://example.org/x", tmp_path / "photos.zip", "a" * 300, "~nobody-of-this-name", "/dev/null"):
        refuse_data(verb, Path(data), str(Path(data))[:20])
