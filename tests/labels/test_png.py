"""Label maps as PNG: the labels themselves, under the images' names, and never two origins in one folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from refusals import refused

from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.labels.png import export_labels
from semmae.reporting.pictures import label_colours

NAMES = ["background", "part 1", "part 2"]
GRID = 4


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for name, size in (("a/1.jpg", (30, 20)), ("a/1.png", (7, 5)), ("b/2.jpg", (16, 16))):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / name)
    return open_images(tmp_path / "images")


def labels_of(images: ImageSet, out: Path, learner: str = "l") -> PartStore:
    store = PartStore.create(
        out, images=3, grid=GRID, label_names=NAMES, teacher_digest="t", learner_digest=learner,
        manifest_digest=images.digest,
    )  # fmt: skip
    store.write(np.arange(3), np.random.default_rng(0).integers(0, 3, (3, GRID, GRID)))
    store.finish()
    return store


def test_a_png_holds_the_labels_in_our_colours(images: ImageSet, tmp_path: Path) -> None:
    store, out = labels_of(images, tmp_path / "p"), tmp_path / "png"
    export_labels(store, images, out)
    names = ["a/1.jpg.png", "a/1.png.png", "b/2.png"]
    for row, name in enumerate(names):
        with Image.open(out / name) as picture:
            assert picture.mode == "P" and np.array_equal(np.asarray(picture), store.labels[row])
            coloured = np.asarray(picture.convert("RGB"))
        colours = np.array([colour or (0, 0, 0) for colour in label_colours(NAMES)])
        assert np.array_equal(coloured, colours[store.labels[row]])
    about = json.loads((out / "labels.json").read_text())
    assert about["label_names"] == NAMES and about["colours"][0] == "#000000"
    assert about["labels"]["manifest_digest"] == images.digest
    assert sorted(tiny.listing(out)) == sorted(["a", "b", "labels.json", *names])


def test_at_image_size_a_pixel_has_the_label_under_its_centre(images: ImageSet, tmp_path: Path) -> None:
    store, out = labels_of(images, tmp_path / "p"), tmp_path / "png"
    export_labels(store, images, out, "image")
    for row, (name, (width, height)) in enumerate({"a/1.jpg": (30, 20), "a/1.png": (7, 5), "b/2": (16, 16)}.items()):
        found = np.asarray(Image.open(out / f"{name}.png"))
        expected = [
            [store.labels[row][int((y + 0.5) / height * GRID)][int((x + 0.5) / width * GRID)] for x in range(width)]
            for y in range(height)
        ]
        assert np.array_equal(found, expected)


def test_it_goes_on_where_it_was_stopped(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = labels_of(images, tmp_path / "p"), tmp_path / "png"
    written: list[str] = []

    def stop(path: Path, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("semmae.labels.png.write_bytes", stop)
        export_labels(store, images, out, workers=1)
    assert written == ["1.jpg.png"]
    before = (out / "a" / "1.jpg.png").stat().st_mtime_ns
    export_labels(store, images, out, workers=1)
    assert (out / "a" / "1.jpg.png").stat().st_mtime_ns == before
    assert len(list(out.rglob("*.png"))) == 3


def test_other_labels_and_foreign_files_are_refused(images: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "png"
    export_labels(labels_of(images, tmp_path / "p"), images, out)
    before = tiny.listing(out)
    with refused("'learner_digest': 'l'", "'learner_digest': 'm'", "another folder"):
        export_labels(labels_of(images, tmp_path / "q", learner="m"), images, out)
    with refused("grid", "image"):
        export_labels(labels_of(images, tmp_path / "p"), images, out, "image")
    assert tiny.listing(out) == before
    with refused(tmp_path / "images"):
        export_labels(labels_of(images, tmp_path / "p"), images, tmp_path / "images")
