"""Images with a label for every pixel: pairs of files as ADE20K lays them out, checked before anything trains.

    DATA/images/SPLIT/**/NAME.jpg     DATA/masks/SPLIT/**/NAME.png (or DATA/annotations/…)

Notable here:
- SPLIT is `train` or `training`, and `val`, `validation`, `valid` or `test`; without such folders a share is held out;
- an annotation is an 8-bit grey or palette image of its image's size, whose pixels are numbers of classes;
- what the numbers stand for is settled in `semmae.data.coding`, by all annotations together;
- `check_pairs` reads every annotation once: what cannot be trained on is refused before anything is written.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semmae.data.class_names import read_class_names
from semmae.data.coding import Coding, Labels, coding_of, names_of
from semmae.data.decode import MOST_BYTES, decode_labels
from semmae.data.manifest import ImageSet, check_check, open_images, sample_rows
from semmae.data.splits import ANNOTATION_FOLDERS, TRAIN, VAL
from semmae.data.workers import in_threads
from semmae.errors import UserError, reason
from semmae.files import read_bytes
from semmae.names import user_path
from semmae.objects import described
from semmae.options.shared import Check
from semmae.progress import Progress

ANNOTATION_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # lossless: JPEG would blur labels
_SPLITS = {"train": TRAIN, "val": VAL}


@dataclass(frozen=True)
class LabelledImages:
    """Images and their annotations: row i of one belongs to row i of the other. Picklable, fit for workers."""

    images: ImageSet
    annotations: tuple[Path, ...]
    coding: Coding

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int, least: int | None = None) -> tuple[Tensor, Tensor]:
        """An image, uint8 (3, h, w), maybe smaller than its labels, uint8 (H, W), `IGNORED` among them."""
        return self.images.read(row, least), self.labels(row)

    def labels(self, row: int) -> Tensor:
        return torch.from_numpy(self.coding.table[read_annotation(self.annotations[row])])

    def select(self, rows: Sequence[int]) -> "LabelledImages":
        return LabelledImages(self.images.select(rows), tuple(self.annotations[row] for row in rows), self.coding)


@dataclass(frozen=True)
class MeasuredData:
    """What `open_measured` finds."""

    val: LabelledImages
    names: tuple[str, ...]  # of the K classes
    named: bool  # whether the names mean something; else they are but the numbers in the annotations, from 0 on
    digest: str  # sha256 (hex) of what the annotations hold: which numbers on how many pixels of which file
    split: str  # in words, for the protocol

    @property
    def sets(self) -> list[ImageSet]:
        return [self.val.images]


@dataclass(frozen=True)
class SegmentationData(MeasuredData):
    """What `open_segmentation` finds."""

    train: LabelledImages

    @property
    def sets(self) -> list[ImageSet]:
        return [self.train.images, self.val.images]


def open_segmentation(
    data: object,
    coding: Coding,
    *,
    masks: Path | None = None,
    val_share: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
    check: Check = "full",
    channels: int = 3,
) -> SegmentationData:
    """The pairs of `data`, all of them checked; nothing is written but the cache of readable images.

    `data` holds `images` and `masks` (or `annotations`), or the images alone where `masks` is a folder elsewhere.
    `val_share` of the images is held out where there are no folders of splits; `limit` is of each split.
    """
    check_check(check)
    pairs = _Pairs.at(data, masks)
    train, val = (pairs.split_folder(split) for split in ("train", "val"))
    if train and val:
        sets = [pairs.open(below, coding, limit, seed, workers, check, channels) for below in (train, val)]
        words = f"{len(sets[0])} {train}, {len(sets[1])} {val}"
    elif train or val:
        missing = "val" if train else "train"
        raise UserError(f"{pairs.images}: holds {train or val}, but no {missing}; add that folder")
    else:
        sets = _held_out(pairs.open("", coding, limit, seed, workers, check, channels), val_share, seed, pairs.images)
        words = f"{len(sets[0])} train, {len(sets[1])} held out by seed {seed}"
    (train_set, val_set), names, named, digest = _checked(pairs, sets, coding, workers)
    return SegmentationData(val_set, names, named, digest, words, train_set)


def is_divided(data: object, annotations: Path | None = None) -> bool:
    """Whether `open_segmentation` finds folders of splits, and so holds nothing out."""
    pairs = _Pairs.at(data, annotations)
    return any(pairs.split_folder(split) for split in _SPLITS)


def open_measured(
    data: object,
    coding: Coding,
    keep: Callable[[ImageSet], Sequence[int]],
    *,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
    check: Check = "full",
    channels: int = 3,
) -> MeasuredData:
    """The pairs of `data` that a trained network is measured on: of the folder `val`, or all where nothing is split.

    `keep`: which rows to measure, those that the network has not been trained on. A folder `train` is not looked at.
    """
    pairs = _Pairs.at(data, None)
    val = pairs.split_folder("val")
    if not val and (train := pairs.split_folder("train")):
        raise UserError(f"{pairs.images}: holds {train}, but no val; add that folder")
    everything = pairs.open(val, coding, limit, seed, workers, check, channels)
    rows = keep(everything.images)
    if not rows:
        raise UserError(
            f"{pairs.images / val}: the network was trained on all of its {len(everything)} images; give others"
        )
    words, left_out = f"{len(rows)} {val or 'images'}", len(everything) - len(rows)
    if left_out:
        words += f", {left_out} more left out, for the network was trained on them"
    (measured,), names, named, digest = _checked(pairs, [everything.select(rows)], coding, workers)
    return MeasuredData(measured, names, named, digest, words)


@dataclass(frozen=True)
class _Pairs:
    root: Path
    images: Path
    annotations: Path
    named: tuple[Path, Mapping[int, str]] | None  # the file that names classes, and number → name

    @classmethod
    def at(cls, data: object, annotations: Path | None) -> "_Pairs":
        if not isinstance(data, str | os.PathLike):
            raise UserError(f"{described(data)}: annotations lie beside images in a folder; give its path")
        root = user_path(data, "--data")
        if annotations is not None and not annotations.is_dir():
            raise UserError(f"{annotations}: no such folder of annotations; give one that mirrors {root}")
        images, folder = (root / "images", _annotations_folder(root)) if annotations is None else (root, annotations)
        return cls(root, images, folder, read_class_names(root if annotations is None else annotations.parent))

    def split_folder(self, split: str) -> str:
        return next((name for name in _SPLITS[split] if (self.images / name).is_dir()), "")

    def open(
        self, below: str, coding: Coding, limit: int | None, seed: int, workers: int, check: Check, channels: int
    ) -> LabelledImages:
        found = open_images(
            self.images / below, limit=limit, seed=seed, workers=workers, check=check, channels=channels
        )
        return LabelledImages(
            found, tuple(_annotation_paths(found, self.images / below, self.annotations / below)), coding
        )


def _checked(
    pairs: _Pairs, sets: Sequence[LabelledImages], coding: Coding, workers: int
) -> tuple[list[LabelledImages], tuple[str, ...], bool, str]:
    """Read all annotations: sets as their numbers are meant, names of classes, whether these mean something, digest."""
    digest = hashlib.sha256()
    counts = [check_pairs(labelled, digest, workers) for labelled in sets]
    meant = coding_of(pairs.root, coding, counts, pairs.named)
    names = names_of(pairs.root, meant, counts, pairs.named)
    named = pairs.named is not None or meant.binary
    return [replace(labelled, coding=meant) for labelled in sets], names, named, digest.hexdigest()


def read_annotation(path: Path) -> Labels:
    """(H, W) uint8: grey levels or palette indices as stored, upright where its EXIF block turns it."""
    try:
        return decode_labels(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(
            f'the annotation "{path}" cannot be read: {reason(error)}; save it as an 8-bit grey or palette PNG, '
            "0 = background, 1, 2, … = parts, or remove it"
        ) from error


def check_pairs(labelled: LabelledImages, digest: "hashlib._Hash", workers: int = 2) -> npt.NDArray[np.int64]:
    """How often each number occurs in the annotations, int64 (256,), each compared with its image's size.

    `digest` is given of each annotation in turn its file's name and how often each number occurs.
    """
    counts = np.zeros(256, np.int64)
    label = f"checking {labelled.images.source.root.name} annotations"
    with Progress(len(labelled), "annotations", label) as progress:
        found = in_threads(partial(_checked_counts, labelled), range(len(labelled)), workers)
        for path, numbers in zip(labelled.annotations, found, strict=True):
            digest.update(f"{path.name}\0".encode("utf-8", "surrogateescape") + numbers.tobytes())
            counts += numbers
            progress.update()
    return counts


def _checked_counts(labelled: LabelledImages, row: int) -> npt.NDArray[np.int64]:
    annotation, size = read_annotation(labelled.annotations[row]), labelled.images.size(row)
    if annotation.shape != size:
        sizes = [f"{width}×{height}" for height, width in (annotation.shape, size)]
        raise UserError(
            f'the annotation "{labelled.annotations[row]}" is {sizes[0]} pixels, its image {sizes[1]}; '
            "save it in the image's size, without smoothing"
        )
    return np.bincount(annotation.ravel(), minlength=256)


def _annotations_folder(root: Path) -> Path:
    found = [root / name for name in ANNOTATION_FOLDERS if (root / name).is_dir()]
    if not (root / "images").is_dir() or not found:
        missing = "images" if not (root / "images").is_dir() else "masks"
        raise UserError(f"{root}: no folder {missing}; lay the data out as images/train, images/val, masks/train, …")
    return found[0]


def _annotation_paths(found: ImageSet, images: Path, annotations: Path) -> Iterator[Path]:
    """The annotation of every image: at the same place, with a lossless suffix."""
    lossless = (path for path in sorted(annotations.rglob("*")) if path.suffix.lower() in ANNOTATION_SUFFIXES)
    stems = {path.with_suffix(""): path for path in lossless}
    paths = [stems.get((annotations / name).with_suffix("")) for name in found.names]
    missing = [name for name, path in zip(found.names, paths, strict=True) if path is None]
    if missing:
        raise UserError(
            f"{images}: {len(missing)} of {len(paths)} images have no annotation, the first is {missing[0]}; "
            f"add {(annotations / missing[0]).with_suffix('.png')}, or remove the image"
        )
    return (path for path in paths if path is not None)


def _held_out(everything: LabelledImages, share: float, seed: int, images: Path) -> list[LabelledImages]:
    if len(everything) < 2:
        raise UserError(f"{images}: a single image, none can be held out; give more, or folders train and val")
    count = min(max(1, round(share * len(everything))), len(everything) - 1)
    out = sample_rows(len(everything), count, seed)
    kept = sorted(set(range(len(everything))).difference(out))
    return [everything.select(kept), everything.select(out)]
