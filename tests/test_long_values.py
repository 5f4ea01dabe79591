"""However long a value is that comes from outside, the message about it fits a screen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semmae.cli import run
from semmae.data.augment import augmentation
from semmae.data.classes import check_classes
from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError
from semmae.evaluation.keypoints import read_keypoints
from semmae.formats.folders import CONFIG, read_encoder, save_encoder
from semmae.formats.open import load_encoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options import VERBS, kind_of
from semmae.options.fields import command_options, flag

LONG = "x" * 10_000
LENGTHS = (200, 10_000)  # a name that a file may have, and one that none may
MOST = 500  # letters, with the path of a temporary folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What most verbs need."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / "photos" / name)
    save_encoder(Encoder(EncoderSpec.named("vit_tiny", 16, 8)), folder / "encoder")
    return {"data": str(folder / "photos"), "encoder": str(folder / "encoder"), "out": str(folder / "out")}


@pytest.mark.parametrize("verb", VERBS)
def test_of_every_option(verb: str, given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = command_options(kind_of(verb))
    for name, each in options.items():
        beside = [f"{flag(other)}={value}" for other, value in given.items() if other in options and other != name]
        for length in LENGTHS[each.facts.writes :]:
            assert run([verb, *beside, f"{flag(name)}={'x' * length}"]) == 2, name
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and len(error) < MOST, error


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def keypoints(line: str) -> Callable[[Path], object]:
    return lambda folder: read_keypoints(write(folder / "points.csv", f"image,part,x,y,visible\n{line}\n"), ["a.jpg"])


def cub(images: str, classes: str = "1 1", names: str = "1 crow", train: str = "1 1") -> Callable[[Path], object]:
    def opened(folder: Path) -> object:
        files = ("images", "image_class_labels", "classes", "train_test_split")
        for file, text in zip(files, (images, classes, names, train), strict=True):
            write(folder / f"{file}.txt", text + "\n")
        (folder / "images").mkdir()
        return open_images(folder)

    return opened


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def opened(folder: Path) -> object:
        save_encoder(Encoder(EncoderSpec.named("vit_tiny", 16, 8)), folder / "encoder")
        content = json.loads((folder / "encoder" / CONFIG).read_text())
        change(content)
        write(folder / "encoder" / CONFIG, json.dumps(content))
        return read_encoder(folder / "encoder")

    return opened


def one_class(folder: Path) -> None:
    images: ImageSet = open_images([(np.zeros((8, 8, 3), np.uint8), LONG)])
    check_classes(folder, [images], None)


FIELDS: dict[str, Callable[[Path], object]] = {
    "image of a keypoint": keypoints(f"{LONG}.jpg,eye,1,1,1"),
    "part of a keypoint": keypoints(f"a.jpg,{LONG},1,1,1\na.jpg,{LONG},1,1,1"),
    "place of a keypoint": keypoints(f"a.jpg,eye,{LONG},1,1"),
    "visible": keypoints(f"a.jpg,eye,1,1,{LONG}"),
    "image twice": cub(f"1 {LONG}.jpg\n2 {LONG}.jpg", "1 1\n2 1", train="1 1\n2 1"),
    "image outside": cub(f"1 ../{LONG}.jpg"),
    "number of an image": cub(f"{LONG} a.jpg"),
    "line without a value": cub(LONG),
    "name of a class": one_class,
    "column of a list": lambda folder: open_images(write(folder / "list.csv", f"{LONG}\na.jpg\n")),
    "path in a list": lambda folder: open_images(write(folder / "list.txt", f"{LONG}.jpg\n")),
    "architecture": edited(lambda content: content.update(architecture=LONG)),
    "argument of timm": edited(lambda content: content.update(model_args={LONG: 1})),
    "sizes": edited(lambda content: content.update(semmae={"kind": "encoder", "spec": {LONG: LONG}})),
    "name of a policy": lambda folder: augmentation(LONG, 32, (0.5, 0.5, 0.5)),
    "name of timm": lambda folder: load_encoder(f"timm:{LONG}"),
    "name on the hub": lambda folder: load_encoder(f"timm:hf-hub:me/{LONG}"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_of_fields_of_files(field: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        FIELDS[field](tmp_path)
    assert len(str(refused.value)) < MOST + len(str(tmp_path)), str(refused.value)
