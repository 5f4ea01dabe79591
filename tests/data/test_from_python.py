"""Python objects as data: read as the same images given by a path."""

import copy
import csv
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader, IterableDataset, Subset, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from semmae.data.classes import open_classes
from semmae.data.loaders import CropDataset, make_loader
from semmae.data.manifest import ImageSet, open_images, write_skipped
from semmae.data.segmentation import is_divided
from semmae.data.sources import has_split, split_names, splits_of
from semmae.objects import described, recordable

Write = Callable[..., Path]
NAMES = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of PNG files: what is decoded of them is what was drawn, byte for byte."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 28, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def paths_in(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES]


def table_of(folder: Path) -> datasets.Dataset:
    """As a hub data set: encoded images, labels that are numbers."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [{"bytes": path.read_bytes(), "path": None} for path in paths_in(folder)]
    return datasets.Dataset.from_dict({"image": cells, "label": [0] * 4 + [1] * 4}, features=features)


class Pairs:
    """A map-style data set as people write them; `broken` items raise."""

    classes = ["cat", "dog"]

    def __init__(self, folder: Path, transform: Callable[[Any], Any] = copy.copy, broken: int = -1) -> None:
        self.paths, self.transform, self.broken = paths_in(folder), transform, broken

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i == self.broken:
            raise RuntimeError("the disk\nhas gone")
        return self.transform(Image.open(self.paths[i])), int(i >= 4)


def crops(images: ImageSet, workers: int = 0) -> torch.Tensor:
    loader = make_loader(CropDataset(images, 16, seed=3), 4, workers=workers)
    return torch.cat([batch["images"] for batch in loader])


GIVEN: dict[str, Callable[[Path], Any]] = {
    "paths": paths_in,
    "ImageFolder": lambda folder: ImageFolder(str(folder)),
    "ImageFolder of tensors": lambda folder: ImageFolder(str(folder), v2.PILToTensor()),
    "ImageFolder of floats": lambda folder: ImageFolder(
        str(folder), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    ),
    "Dataset": table_of,
    "Subset": lambda folder: Subset(Pairs(folder), range(8)),  # type: ignore[arg-type]
    "pairs": Pairs,
    "dicts": lambda folder: [
        {"image": image, "label": np.array(["cat", "dog"])[label]} for image, label in Pairs(folder)
    ],  # type: ignore[attr-defined]
    "PIL": lambda folder: [Image.open(path) for path in paths_in(folder)],
    "arrays": lambda folder: tuple(np.array(Image.open(path)) for path in paths_in(folder)),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_the_same_images_as_of_the_folder(folder: Path, kind: str) -> None:
    given, expected = open_images(GIVEN[kind](folder), workers=2), open_images(folder)
    assert torch.equal(crops(given), crops(expected))
    for row in range(8):
        assert torch.equal(given.read(row), expected.read(row)) and given.size(row) == expected.size(row)
    assert given.labels == (None if kind in ("paths", "PIL", "arrays") else expected.labels)
    if kind in ("paths", "ImageFolder"):
        assert given.digest == expected.digest and given.names == expected.names
    again = open_images(GIVEN[kind](folder), workers=0)
    assert again.digest == given.digest and len(set(given.names)) == 8
    other = open_images(GIVEN[kind](folder), limit=5, seed=1)
    assert other.digest != given.digest and other.names == [name for name in given.names if name in other.names]
    assert torch.equal(pickle.loads(pickle.dumps(again)).read(3), expected.read(3))


@pytest.mark.parametrize("kind", ["ImageFolder", "Dataset", "pairs", "PIL"])
def test_processes_load_them_too(folder: Path, kind: str) -> None:
    images = open_images(GIVEN[kind](folder), workers=2)
    assert torch.equal(crops(images, workers=2), crops(open_images(folder)))


def test_many_items_are_examined_by_processes(folder: Path) -> None:
    pairs = Pairs(folder)
    pairs.paths *= 10
    apart, here = open_images(pairs, workers=2), open_images(pairs, workers=0)
    assert apart.digest == here.digest and len(apart) == 80 and apart.labels == here.labels


def test_digest_is_of_the_pixels_and_the_same_in_another_process(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from PIL import Image; from semmae.data.manifest import open_images\n"
        "paths = sorted(Path(sys.argv[1]).rglob('*.png'))\n"
        "print(open_images([Image.open(path) for path in paths]).digest)"
    )
    images = [Image.open(path) for path in paths_in(folder)]
    digest = open_images(images).digest
    found = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == digest
    images[5] = images[5].copy()
    images[5].putpixel((3, 3), (1, 2, 3))
    assert open_images(images).digest != digest


def test_a_table_known_by_its_content_not_its_history(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder)
    table.to_parquet(tmp_path / "t.parquet")
    read = datasets.Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))
    assert open_images(table.select(range(8))).digest == open_images(table).digest
    assert list(open_images(read).manifest.sizes) == list(open_images(table).manifest.sizes)


def test_a_table_of_paths_and_one_with_a_transform(folder: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [str(path) for path in paths_in(folder)]})
    table = table.cast_column("image", datasets.Image())
    table.set_transform(lambda rows: {"pixel_values": [0] * len(rows["image"])})
    images = open_images(table)
    assert torch.equal(images.read(6), open_images(folder).read(6)) and images.labels is None


def test_splits_of_objects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(folder)
    both = datasets.DatasetDict({"train": table.select([0, 1, 4, 5]), "validation": table.select([2, 6])})
    assert has_split(both) and split_names(both) == {"train", "validation"} and splits_of(both) == ("train", "val")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: both)
    assert open_images("hf:owner/set").digest == open_images(both).digest
    assert open_images(both).names[3:5] == ["train#3", "validation#0"] and len(open_images(both)) == 6
    val = open_images(both, split="val")
    assert val.labels == ["cat", "dog"] and torch.equal(val.read(1), open_images(folder).read(6))
    for data in (table, ImageFolder(str(folder)), paths_in(folder)):
        assert not has_split(data) and splits_of(data) == (None,)
        with refused("val"):
            open_images(data, split="val")
    assert splits_of(folder) == splits_of(str(folder)) == (None,)
    (folder / "cat").rename(folder / "train")
    with refused("train", "val"):
        splits_of(folder)


def test_rows_of_a_subset_keep_their_names(folder: Path) -> None:
    for whole in (ImageFolder(str(folder)), Pairs(folder)):
        train, rest = (open_images(part) for part in random_split(whole, [5, 3], torch.Generator().manual_seed(1)))  # type: ignore[arg-type, var-annotated]
        everything = open_images(whole)
        assert sorted([*train.names, *rest.names]) == sorted(everything.names)
        row = list(everything.names).index(rest.names[2])
        assert torch.equal(rest.read(2), everything.read(row)) and rest.labels is not None and everything.labels
        assert rest.labels[2] == everything.labels[row]
    with refused("row 3", "twice"):
        open_images(Subset(ImageFolder(str(folder)), [3, 1, 3]))


def test_damaged_items_are_skipped_and_listed(folder: Path, tmp_path: Path) -> None:
    pairs = Pairs(folder, broken=77)
    pairs.paths *= 10
    images = open_images(pairs, workers=2)
    assert images.manifest.skipped == (("77", "RuntimeError: the disk has gone"),)
    assert len(images) == 79 and "77" not in images.names and images.labels is not None
    assert torch.equal(images.read(77), open_images(folder).read(78 % 8)) and images.labels[77] == "dog"
    write_skipped([images], tmp_path / "skipped.csv")
    with open(tmp_path / "skipped.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [list(images.manifest.skipped[0])]
    (folder / NAMES[1]).write_bytes((folder / NAMES[1]).read_bytes()[:90])
    for data in (Pairs(folder), [Image.open(path) for path in paths_in(folder)], paths_in(folder)):
        with refused("1 of 8 images"):
            open_images(data)


def test_an_item_that_breaks_later_is_named(folder: Path) -> None:
    images = open_images(Pairs(folder))
    images.source._items.broken = 4  # type: ignore[attr-defined]
    with refused("Pairs of 8 images/4"):
        images.read(4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "RGB turned"])
def test_images_of_any_mode_as_their_file(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8), "RGBA")
    exif = Image.Exif()
    if mode == "I;16":
        image = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000)
    elif mode == "RGB turned":
        image, exif[0x0112] = image.convert("RGB"), 6
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    path = tmp_path / ("0.tif" if mode == "CMYK" else "0.png")
    image.save(path, exif=exif)
    given, expected = open_images([Image.open(path)]), open_images(path)
    assert torch.equal(given.read(0), expected.read(0)) and given.size(0) == expected.size(0)


class Endless(IterableDataset[int]):
    """Without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(())


SIZED = torch.zeros(3, 8, 8, dtype=torch.uint8)
WRONG: dict[str, Any] = {
    "a number": 5,
    "nothing": None,
    "bytes": b"photos",
    "a dict": {"train": ["a.jpg"]},
    "a generator": (i for i in range(3)),
    "a set": {"a.jpg"},
    "an iterable": Endless(),
    "batches": DataLoader([1, 2]),  # type: ignore[arg-type, var-annotated]
    "a class": ImageFolder,
    "an empty list": [],
    "mixed": ["a.jpg", Image.new("RGB", (8, 8))],
    "numbers": [1, 2],
    "bytes in a list": [b"\xff\xd8"],
    "paths with labels": [("a.jpg", "cat")],
    "no image in it": [{"pixel_values": SIZED}],
    "three values": [(SIZED, 1, 2)],
    "normalised": [SIZED.float() - 1.5],
    "of 0 to 255": [SIZED.float() + 200],
    "not a number": [SIZED.float() * float("nan")],
    "whole numbers": [SIZED.long()],
    "four channels": [torch.zeros(4, 8, 8)],
    "a batch": [torch.zeros(2, 3, 8, 8)],
    "floats in an array": [np.zeros((8, 8, 3))],
    "channels first": [np.zeros((3, 8, 8), np.uint8)],
    "an empty array": [np.zeros((0, 8, 3), np.uint8)],
}


@pytest.mark.parametrize("kind", WRONG)
def test_anything_else_is_refused_in_one_line(kind: str) -> None:
    with refused():
        open_images(WRONG[kind])
    assert not has_split(WRONG[kind])


def test_a_data_set_that_draws_is_refused(folder: Path) -> None:
    pairs = Pairs(folder, lambda image: image.crop((0, 0, 10, random.randint(5, 18))))
    with refused("Pairs"):
        open_images(pairs)


def test_labels_that_name_no_class(folder: Path) -> None:
    image = Image.open(folder / NAMES[0])
    for labels, note in (([0, None], "no label"), ([0.5, 1], "whole number"), ([{"boxes": []}, 1], "whole number")):
        images = open_images([(image, label) for label in labels])
        assert images.labels is None and note in images.source.class_note
    assert open_images([(image, "a"), (image, torch.tensor(7))]).labels == ["a", "7"]


WITHOUT_CLASSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder": (lambda folder: folder / "cat", "one folder a class"),
    "list of paths": (paths_in, "(image, label)"),
    "list of images": (lambda folder: [Image.open(path) for path in paths_in(folder)], "(image, label)"),
    "some of them": (lambda folder: Subset([Image.open(path) for path in paths_in(folder)], [1, 2]), "(image, label)"),  # type: ignore[arg-type]
    "text file": (lambda folder: listed(folder, "a.txt", ""), "path,label"),
    "CSV file": (lambda folder: listed(folder, "a.csv", "path\n"), "`label`"),
    "table": (lambda folder: table_of(folder).remove_columns("label"), "`label`"),
    "labels": (lambda folder: table_of(folder).rename_column("label", "labels"), '"labels"'),
    "Parquet": (lambda folder: parquet(folder, "fine_label"), '"fine_label"'),
}


def listed(folder: Path, name: str, head: str) -> Path:
    (folder / name).write_text(head + "\n".join(NAMES))
    return folder / name


def parquet(folder: Path, label: str) -> str:
    table_of(folder).rename_column("label", label).to_parquet(folder / "a.parquet")
    return str(folder / "a.parquet")


@pytest.mark.parametrize("kind", WITHOUT_CLASSES)
def test_without_classes_the_remedy_is_that_of_the_kind_of_data(kind: str, folder: Path) -> None:
    given, remedy = WITHOUT_CLASSES[kind]
    data = given(folder)
    with refused(described(data), "no classes", remedy):
        open_classes(data, None, limit=None, seed=0, workers=0)
    with refused("no classes", remedy):
        open_classes(data, None, limit=2, seed=0, workers=0)


def test_what_cannot_be_sent_to_processes_started_anew(folder: Path) -> None:
    images = open_images(Pairs(folder, lambda image: image), workers=2)
    with refused("workers=0"):
        pickle.dumps(images)


def test_rows_of_a_subset_are_those_of_its_data_set(folder: Path) -> None:
    files = ImageFolder(str(folder))
    for rows in ([0, 99], [-9], ["x"], [0.5]):
        for data in (files, Pairs(folder)):
            with refused("rows from 0 to 7"):
                open_images(Subset(data, rows))  # type: ignore[arg-type]
    assert open_images(Subset(files, [0, -1])).names == open_images(Subset(files, [0, 7])).names
    with refused("row 7"):
        open_images(Subset(files, [7, -1]))


def test_annotations_need_a_folder(folder: Path) -> None:
    for data in (paths_in(folder), ImageFolder(str(folder))):
        with refused("path"):
            is_divided(data)


def test_what_is_recorded_and_how_it_is_called(folder: Path) -> None:
    assert recordable("hf:x") == "hf:x" and recordable(folder) == str(folder) == described(folder)
    assert recordable([folder, "b"]) == [str(folder), "b"] and described((folder, "b")) == "tuple of 2 paths"
    for data in (ImageFolder(str(folder)), [1], b"a", [b"a"], None, 3, {}):
        assert recordable(data) is None and len(described(data)) <= 80
    assert described(ImageFolder(str(folder))) == "ImageFolder of 8 images" and described([1]) == "list of 1 image"
    long = type("T" * 200, (), {"__len__": lambda self: 10**9})()
    assert len(described(long)) <= 80 and described(iter(())) == "tuple_iterator"
