"""Images to learn classes from and images to measure on: opened, checked, split; and which of them a model knows."""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semmae.data.manifest import ImageSet, open_images
from semmae.data.sources import splits_of
from semmae.data.splits import TRAIN, held_out
from semmae.errors import UserError, near_only
from semmae.names import shown
from semmae.objects import described
from semmae.options.shared import VAL_SHARE, Check

_log = logging.getLogger("semmae")

# Hexadecimal digits. The chance that any of ten million images is mistaken for one of a million others is 1 in 28.
_KEY = 12


class TrainVal(NamedTuple):
    """Images to learn classes from, and images to measure on; classes are numbered alike in both."""

    train: ImageSet
    val: ImageSet
    train_targets: Tensor  # int64 (N,)
    val_targets: Tensor  # int64 (M,)
    classes: list[str]
    split: str  # in words, for the protocol
    name: str  # of the data, for messages

    @property
    def leaves_one_out(self) -> bool:
        """Whether every image is measured on by all others."""
        return self.train is self.val

    @property
    def sets(self) -> list[ImageSet]:
        return [self.train] if self.leaves_one_out else [self.train, self.val]


def open_sets(
    data: Any, *, limit: int | None, seed: int, workers: int, check: Check = "full", channels: int = 3
) -> list[ImageSet]:
    """The images of `data`: training and validation split, or, where it has none, one set of all; each to its limit."""
    return [
        open_images(
            data,
            split=split,
            limit=limit,
            seed=seed,
            workers=workers,
            check=check,
            channels=channels,
            needs_classes=True,
        )
        for split in splits_of(data)
    ]


def open_classes(
    data: Any,
    split: str | None,
    *,
    limit: int | None,
    seed: int,
    workers: int,
    check: Check = "full",
    channels: int = 3,
) -> ImageSet:
    """One split of `data`, or all of it, which must have classes."""
    images = open_images(
        data, split=split, limit=limit, seed=seed, workers=workers, check=check, channels=channels, needs_classes=True
    )
    _check_labelled(data, images)
    return images


def train_val(data: Any, sets: Sequence[ImageSet], *, val_share: float, limit: int | None, seed: int) -> TrainVal:
    """The sets that `open_sets` found in `data`, to learn from and to measure on.

    Of a single set `val_share` of each class is held out; which images it is depends on the seed alone.
    """
    if len(sets) == 1:
        (images,) = sets
        check_classes(data, sets, limit)
        kept, out = held_out(images.labels or (), val_share, seed)
        if not out:
            raise UserError(f"{described(data)}: no class has two images, so none can be held out; give more images")
        train, val = images.select(kept), images.select(out)
        words = f"{len(train)} train, {len(val)} held out of each class by seed {seed}"
    else:
        check_val_share(val_share, data)
        train, val = sets
        words = f"{len(train)} train, {len(val)} val"
    check_classes(data, [train, val], limit)
    return _numbered(data, train, val, words)


def voters(data: Any, sets: Sequence[ImageSet], *, limit: int | None) -> TrainVal:
    """The sets that vote and ask, as `open_sets` found them; of a single one all but itself vote for each image."""
    check_classes(data, sets, limit)
    train, val = sets[0], sets[-1]
    if train is not val:
        return _numbered(data, train, val, f"{len(train)} train, {len(val)} val")
    single = sorted(name for name, count in Counter(train.labels).items() if count == 1)
    if single:
        _log.warning("%s: class %s: a single image, which counts as wrong", described(data), _named(single))
    return _numbered(data, train, val, "leave one out")


def _numbered(data: Any, train: ImageSet, val: ImageSet, split: str) -> TrainVal:
    (train_targets, val_targets), classes = class_indices([train, val])
    return TrainVal(train, val, train_targets, val_targets, classes, split, described(data))


def class_indices(sets: Sequence[ImageSet]) -> tuple[list[Tensor], list[str]]:
    """Class numbers of every image of each set, numbered alike, and the names."""
    names = sorted({label for images in sets for label in images.labels or ()})
    number = {name: index for index, name in enumerate(names)}
    return [torch.tensor([number[label] for label in images.labels or ()]) for images in sets], names


# What is refused


def check_val_share(val_share: float, data: Any) -> None:
    """Refuse --val-share for data that has a validation split."""
    if val_share != VAL_SHARE:
        raise UserError(
            f"--val-share {val_share}: {described(data)} has a validation split, nothing is held out; leave it out"
        )


def check_classes(data: Any, sets: Sequence[ImageSet], limit: int | None) -> None:
    """Refuse images without classes, and classes that nothing can be learned of.

    Of a part of the images, `limit`, a class may be left out by chance: that is warned of, and no reason to refuse.
    """
    for images in sets:
        _check_labelled(data, images)
    known = sorted(set(sets[0].labels or ()))
    if len(known) < 2:
        remedy = sets[0].source.class_note or sets[0].source.class_remedy
        raise UserError(f"{described(data)}: a single class ({shown(known[0])}); {remedy}")
    asked = set(sets[-1].labels or ())
    unknown, unasked = sorted(asked.difference(known)), sorted(set(known).difference(asked))
    if unknown:
        fault = f"{described(data)}: class {_named(unknown)}: has validation images, and none to learn from"
        if limit is None:
            hint = near_only(unknown[0], unasked or known)
            raise UserError(f"{fault}; rename it, or leave these images out{hint}")
        _log.warning("%s, of which --limit leaves some out; these images count as wrong", fault)
    if unasked:
        _log.warning("%s: class %s: no validation images, so it is not measured", described(data), _named(unasked))


def _check_labelled(data: Any, images: ImageSet) -> None:
    if images.labels is None:
        source = images.source
        remedy = f": {source.class_note}" if source.class_note else f"; {source.class_remedy}"
        raise UserError(f"{described(data)}: no classes{remedy}")


def _named(classes: Sequence[str]) -> str:
    return shown(classes[0]) + (f" and {len(classes) - 1} more" if len(classes) > 1 else "")


# Images that a model has learned from


def image_keys(images: ImageSet) -> list[str]:
    """What a model keeps of each image that it learned from: a hash of its name, without `train/`, and of its size."""
    return [_image_key(*named) for named in zip(images.names, images.manifest.sizes, strict=True)]


def unlearned_rows(images: ImageSet, learned: Collection[str]) -> list[int]:
    """The rows of images that are not among those of which `image_keys` were kept, ascending."""
    keys = set(learned)
    return [row for row, key in enumerate(image_keys(images)) if key not in keys]


def _image_key(name: str, size: int) -> str:
    first, _, below = name.partition("/")
    if first not in TRAIN:  # so photos/train is known again from a training on photos
        below = name
    return hashlib.sha256(f"{below}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:_KEY]
