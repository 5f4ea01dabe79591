"""Pairs of images and masks: layouts, how numbers are meant, and every fault in one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from semmae.data.coding import IGNORED, Coding
from semmae.data.segmentation import check_pairs, open_measured, open_segmentation

Pair = Callable[..., None]
SPLITS = (("training", 3), ("validation", 2))


def write_pair(
    root: Path, name: str, mask: np.ndarray, *, folder: str = "masks", size: tuple[int, int] = (0, 0)
) -> None:
    """An image of noise and its mask; `size` is the image's (height, width), the mask's by default."""
    height, width = size if size[0] else mask.shape
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
    for kind, suffix, content in (("images", ".jpg", pixels), (folder, ".png", mask)):
        path = root / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


def striped(*numbers: int, height: int = 10) -> np.ndarray:
    """Columns of these numbers, two pixels wide each."""
    return np.repeat(np.array([numbers], np.uint8), height, 0).repeat(2, 1)


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    """Named and numbered as ADE20K comes: 0 is nothing, classes begin at 1."""
    for split, count in SPLITS:
        for index in range(count):
            write_pair(tmp_path, f"{split}/{index}", striped(0, 1, 2, 3, 255), folder="annotations")
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t9\twall\n2\t0.1\t9\t9\tbuilding, edifice\n3\t0.1\t9\t9\tsky\n"
    (tmp_path / "objectInfo150.txt").write_text(table)
    return tmp_path


def test_ade20k_is_read_as_it_lies(ade20k: Path) -> None:
    data = open_segmentation(ade20k, Coding(reduce_zero=True))
    assert (data.names, data.named) == (("wall", "building", "sky"), True)
    assert (len(data.train), len(data.val), data.split) == (3, 2, "3 training, 2 validation")
    image, labels = data.train.read(1)
    assert image.shape == (3, 10, 10)
    assert torch.equal(labels, torch.from_numpy(striped(IGNORED, 0, 1, 2, IGNORED)))


def test_numbers_as_they_are_and_another_one_ignored(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}/a", striped(0, 1, 4, 7))
    data = open_segmentation(tmp_path, Coding(ignore=7))
    assert (data.names, data.named) == (("0", "1", "2", "3", "4"), False)  # of 2 and 3 there is nothing to see
    assert torch.equal(data.val.labels(0), torch.from_numpy(striped(0, 1, 4, IGNORED)))


def test_names_of_a_list_of_names_and_of_numbers(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}/a", striped(0, 1, 2))
    (tmp_path / "classes.json").write_text(json.dumps(["background", "hair", "skin", "shoe"]))
    assert open_segmentation(tmp_path, Coding()).names == ("background", "hair", "skin", "shoe")
    assert open_segmentation(tmp_path, Coding(reduce_zero=True)).names == ("hair", "skin", "shoe")
    (tmp_path / "classes.json").write_text(json.dumps(["hair", "skin", "hair"]))
    assert open_segmentation(tmp_path, Coding()).names == ("hair (0)", "skin", "hair (2)")
    (tmp_path / "classes.json").write_text(json.dumps({"0": "background", "2": "skin", "1": "hair"}))
    assert open_segmentation(tmp_path, Coding()).names == ("background", "hair", "skin")


def test_without_folders_of_splits_a_share_is_held_out(creatures: Path) -> None:
    found = [open_segmentation(creatures, Coding(), val_share=0.25, seed=seed) for seed in (0, 0, 1)]
    names = [(data.train.images.names, data.val.images.names) for data in found]
    assert names[0] == names[1] != names[2]
    assert [len(part) for part in names[0]] == [24, 8]
    assert set(names[0][0]).isdisjoint(names[0][1])
    assert found[0].digest == found[1].digest != found[2].digest
    for data in found:  # each row's mask is its image's
        for row, name in enumerate(data.val.images.names):
            assert data.val.annotations[row].relative_to(creatures / "masks").with_suffix("") == Path(name).with_suffix(
                ""
            )


def test_another_mask_is_another_digest(ade20k: Path) -> None:
    before = open_segmentation(ade20k, Coding(reduce_zero=True)).digest
    write_pair(ade20k, "training/0", striped(0, 1, 2, 2, 255), folder="annotations")
    assert open_segmentation(ade20k, Coding(reduce_zero=True)).digest != before


def test_masks_are_counted_together_and_digested_one_by_one(ade20k: Path) -> None:
    write_pair(ade20k, "training/1", striped(3, 3, 2, 2, 255), folder="annotations")
    data = open_segmentation(ade20k, Coding(reduce_zero=True))
    digest = hashlib.sha256()
    masks = [np.array(Image.open(path)) for path in data.train.annotations]
    counts = check_pairs(data.train, digest, workers=2)
    assert counts.tolist() == np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256).tolist()
    wanted = hashlib.sha256()
    for path, mask in zip(data.train.annotations, masks, strict=True):
        wanted.update(f"{path.name}\0".encode() + np.bincount(mask.ravel(), minlength=256).tobytes())
    assert digest.hexdigest() == wanted.hexdigest()


def test_only_what_is_measured_is_opened(ade20k: Path) -> None:
    """What lies in `training` may be missing or broken."""
    whole = open_segmentation(ade20k, Coding(reduce_zero=True))
    colours(ade20k)
    data = open_measured(ade20k, Coding(reduce_zero=True), lambda images: range(len(images)))
    assert (data.val.annotations, data.names, data.split) == (whole.val.annotations, whole.names, "2 validation")
    shutil.rmtree(ade20k / "images" / "training")
    one = open_measured(ade20k, Coding(reduce_zero=True), lambda images: [1])
    assert one.val.images.names == ("1.jpg",)
    assert one.split.startswith("1 validation, 1 more left out")
    with refused("validation", "2 images"):
        open_measured(ade20k, Coding(reduce_zero=True), lambda images: [])


def test_training_images_alone_are_not_measured(ade20k: Path) -> None:
    shutil.rmtree(ade20k / "images" / "validation")
    with refused("training", "val"):
        open_measured(ade20k, Coding(reduce_zero=True), lambda images: range(len(images)))


def test_without_folders_of_splits_all_are_measured(creatures: Path) -> None:
    data = open_measured(creatures, Coding(), lambda images: range(len(images)))
    assert (len(data.val), data.split) == (32, "32 images")


def test_a_photo_that_lies_on_its_side_fits_an_upright_mask(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}/a", striped(0, 1, height=12), size=(4, 12))
        path = tmp_path / "images" / split / "a.jpg"
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = 6  # to be turned by a quarter
            image.save(path, exif=exif)
    image, labels = open_segmentation(tmp_path, Coding()).train.read(0)
    assert image.shape[1:] == labels.shape == (12, 4)


def test_a_photo_that_only_xmp_turns_fits_a_mask_as_stored(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}/a", striped(0, 1, height=12), size=(12, 4))
        path = tmp_path / "images" / split / "a.jpg"
        with Image.open(path) as image:
            image.save(path, xmp=b'<rdf:Description tiff:Orientation="6"/>')
    image, labels = open_segmentation(tmp_path, Coding()).train.read(0)
    assert image.shape[1:] == labels.shape == (12, 4)


def no_mask(root: Path) -> None:
    (root / "annotations/validation/1.png").unlink()


def other_size(root: Path) -> None:
    write_pair(root, "training/2", striped(1, 2), folder="annotations", size=(10, 6))


def beyond(root: Path) -> None:
    write_pair(root, "training/2", striped(1, 2, 9), folder="annotations")


def colours(root: Path) -> None:
    Image.new("RGB", (10, 10)).save(root / "annotations/training/0.png")


def nothing(root: Path) -> None:
    for index in range(2):
        write_pair(root, f"validation/{index}", striped(0, 255), folder="annotations")


def no_split(root: Path) -> None:
    (root / "images/validation").rename(root / "images/other")


def no_masks(root: Path) -> None:
    (root / "annotations").rename(root / "labels")


def no_names(root: Path) -> None:
    (root / "classes.json").write_text("3")


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (no_mask, ["images/validation", "1 of 2 images", "1.jpg", "validation/1.png"]),
        (other_size, ["training/2.png", "4×10 pixels", "6×10"]),
        (beyond, ["9", "objectInfo150.txt", "1 to 3"]),
        (colours, ["training/0.png", "8 bits", "mode RGB"]),
        (nothing, ["0, 255", "--ignore-index"]),
        (no_split, ["images", "training", "val"]),
        (no_masks, ["masks"]),
        (no_names, ["classes.json", "names"]),
    ],
)
def test_a_fault_is_one_line(fault: Callable[[Path], None], named: list[str], ade20k: Path) -> None:
    fault(ade20k)
    with refused(*named):
        open_segmentation(ade20k, Coding(reduce_zero=True))


def test_what_can_be_no_class(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"{split}/a", striped(0, 1, 255))
    with refused("255", "--ignore-index 255"):
        open_segmentation(tmp_path, Coding(ignore=0))
    with refused("single class ('1')"):
        open_segmentation(tmp_path, Coding(reduce_zero=True))


def two_valued(root: Path, *numbers: int) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for index in range(count):
            write_pair(root, f"{split}/{index}", striped(*numbers))
    return root


@pytest.mark.parametrize("coding", [Coding(), Coding(ignore=7)])
def test_0_and_255_alone_are_two_classes(coding: Coding, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = open_segmentation(two_valued(tmp_path, 0, 255, 255), coding)
    assert (data.names, data.named) == (("0", "255"), True)  # so a network of other classes is not measured on them
    assert torch.equal(data.train.read(1)[1], torch.from_numpy(striped(0, 1, 1)))
    assert torch.equal(data.val.labels(0), torch.from_numpy(striped(0, 1, 1)))
    assert "0 and 255" in caplog.text
    measured = open_measured(tmp_path, coding, lambda images: range(len(images)))
    assert measured.names == data.names and torch.equal(measured.val.labels(0), data.val.labels(0))


def test_one_other_number_and_255_is_ignored(tmp_path: Path) -> None:
    write_pair(two_valued(tmp_path, 0, 255), "train/more", striped(0, 1, 255))
    data = open_segmentation(tmp_path, Coding())
    assert data.names == ("0", "1") and torch.equal(data.val.labels(0), torch.from_numpy(striped(0, 255)))


def test_what_255_is_beside_given_names(tmp_path: Path) -> None:
    """Never dropped without a word, and the remedy that the message gives is one."""
    root = two_valued(tmp_path, 0, 255)
    (root / "classes.json").write_text(json.dumps(["background", "road"]))
    with refused("0 and 255", "classes.json", "0, 1") as caught:
        open_segmentation(root, Coding())
    remedy = str(caught.value).split("two, ")[1].split(", or")[0]
    (root / "classes.json").write_text(remedy)
    data = open_segmentation(root, Coding())
    assert data.names == ("background", "object")
    assert torch.equal(data.val.labels(0), torch.from_numpy(striped(0, 1)))
    for index in range(2):  # a share of the images may hold one of the two
        write_pair(root, f"train/{index}", striped(0, 0))
    assert open_segmentation(root, Coding()).names == ("background", "object")


def test_no_message_about_255_leads_to_another(tmp_path: Path) -> None:
    """Every option that a message names is tried: what it says it does."""
    root = two_valued(tmp_path, 0, 255)
    with refused("--ignore-index 255"):
        open_segmentation(root, Coding(ignore=0))
    assert open_segmentation(root, Coding(ignore=255)).names == ("0", "255")
    with refused("0, 255", "--ignore-index", "--reduce-zero-label"):
        open_segmentation(root, Coding(reduce_zero=True))
    assert open_segmentation(root, Coding(reduce_zero=False)).names == ("0", "255")


@pytest.mark.parametrize("content", ["[[[", "[{}]", "3", '{"a": "b"}', "\xff", "[" * 100_000, '{"300": "x"}', "[]"])
def test_a_classes_json_of_another_form(content: str, tmp_path: Path) -> None:
    root = two_valued(tmp_path, 0, 1)
    (root / "classes.json").write_bytes(content.encode("latin-1"))
    with refused("classes.json:"):
        open_segmentation(root, Coding())
