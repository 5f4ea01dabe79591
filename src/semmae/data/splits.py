"""Which part of a data set is for training and which is held out, by names of folders, files or the hub."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from semmae.errors import UserError, listed, near_only

TRAIN = ("train", "training")
_TRAIN_FOLDERS = (*TRAIN, "train_mini")  # iNaturalist 2021 gives a tenth of its images apart
# In order of preference: where there is no validation set, the test set is what results are measured on.
VAL = ("val", "validation", "valid", "test")

_BEGIN = re.compile(rf"({'|'.join(sorted(TRAIN + VAL, key=len, reverse=True))})(?![a-z])")

ANNOTATION_FOLDERS = ("masks", "annotations")  # beside a folder `images`, what belongs to these


def side_by_side(root: Path) -> tuple[Path, Path] | None:
    """The images and the annotations of a folder that holds both, as `images` and one of `ANNOTATION_FOLDERS`."""
    annotations = next((root / name for name in ANNOTATION_FOLDERS if (root / name).is_dir()), None)
    return (root / "images", annotations) if annotations and (root / "images").is_dir() else None


def are_splits(names: Iterable[str]) -> bool:
    """Whether first-level names are splits. `test`, `valid` or `training` alone may be a class or any other folder."""
    names = set(names)
    return not names.isdisjoint(("train", "val", "validation")) or ("training" in names and not names.isdisjoint(VAL))


def find_split(split: str, names: Iterable[str]) -> str | None:
    """The name among `names` that stands for `split` ("train" or "val"), None when there is none."""
    if split not in ("train", "val"):
        raise ValueError(f'split must be "train" or "val", not {split!r}')
    available = set(names)
    return next((name for name in (_TRAIN_FOLDERS if split == "train" else VAL) if name in available), None)


def split_in(name: str) -> str | None:
    """The name of a split that the name of an image begins with, such as `test/1.jpg` or `test-000.parquet#1`."""
    found = _BEGIN.match(name.lower())
    return None if found is None else found.group()


def has_both(names: Iterable[str]) -> bool:
    """Whether first-level names hold both a training and a validation split."""
    names = set(names)
    return are_splits(names) and None not in (find_split("train", names), find_split("val", names))


def check_whole(names: Iterable[str], data: str) -> None:
    """Refuse folders of which one is a split and another may be its misspelt counterpart.

    Taken together they would be one set of images to learn from and to measure on.
    """
    names = set(names)
    train, val = (find_split(split, names) for split in ("train", "val"))
    others = sorted(names.difference(_TRAIN_FOLDERS, VAL))
    if not are_splits(names) or has_both(names) or (train and not others):
        return
    there, lacking = (train, "val") if train else (val, "train")
    raise UserError(
        f"{data}: holds {there} but no {lacking}; give {data.rstrip('/')}/{there} alone, or name the other folder "
        f"{lacking}{near_only(lacking, others)}"
    )


def pick_split(split: str, names: Iterable[str], data: str) -> str:
    """As `find_split`; UserError when there is none."""
    names = sorted(set(names))
    found = find_split(split, names) if are_splits(names) else None
    if found is None:
        shown = listed(names, 5) or "no folders"
        raise UserError(f"{data}: no {split!r} split, found {shown}; put the images into {data}/train and {data}/val")
    return found


def held_out(labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out, both ascending: `share` of every class, drawn by the seed.

    Of a class of several images at least one is held out and at least one is kept; a single image is kept.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows[label].append(row)
    out: list[int] = []
    for of_class in rows.values():
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        out += rng.permutation(of_class)[:count].tolist()
    kept = sorted(set(range(len(labels))).difference(out))
    return kept, sorted(out)


def folds(labels: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """Every row in one of `count` parts, ascending: each class is dealt out evenly, in an order drawn by the seed."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    dealt = shuffled[np.argsort(np.array(labels)[shuffled], kind="stable")]
    return [sorted(dealt[first::count].tolist()) for first in range(count)]
