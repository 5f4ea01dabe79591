"""What verbs share that look at images through a frozen encoder: its options, its features, the classes."""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.data.sources import split_names
from semmae.data.splits import TRAIN, check_whole, has_both, held_out
from semmae.errors import UserError, near_only
from semmae.evaluation.features import extract
from semmae.files import user_path
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.formats.pooling import pooling_of
from semmae.models.fresh import fresh_like
from semmae.models.vit import Encoder
from semmae.options.shared import VAL_SHARE, AnyPooling, EncoderOptions, FeatureOptions, Pooling
from semmae.train.precision import autocast

_log = logging.getLogger("semmae")

# Hexadecimal digits. The chance that any of ten million images is mistaken for one of a million others is 1 in 28.
_KEY = 12


class Pooled(Protocol):
    """Options of a verb that needs one vector an image."""

    @property
    def encoder(self) -> str: ...

    @property
    def pooling(self) -> AnyPooling: ...


PooledT = TypeVar("PooledT", bound=Pooled)


def pooling_for(options: Pooled) -> Pooling:
    """What --pooling means for this encoder."""
    return pooling_of(options.encoder) if options.pooling == "auto" else options.pooling


def pooled(options: PooledT) -> PooledT:
    """The options with `auto` replaced by what it means for this encoder, which then is not looked for again."""
    changed: dict[str, Any] = {"pooling": pooling_for(options)}
    return replace(options, **changed)  # type: ignore[type-var]


class Look(Protocol):
    """What an encoder sees in images: features (N, C), in the order of the rows; mirrored where that is asked for."""

    def __call__(self, images: ImageSet, flip: bool = False) -> Tensor: ...


def open_encoder(options: EncoderOptions) -> Encoder:
    """The encoder of --encoder, in eval mode, for the image size asked for, on the device to compute on."""
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


def device_of(encoder: Encoder) -> torch.device:
    """Where the encoder lies, and whatever is made of its features is computed."""
    return next(encoder.parameters()).device


def told_encoder(options: EncoderOptions, encoder: Encoder) -> dict[str, str]:
    """Whose the figures are: the name, and the digest of the weights before they are resized or trained on."""
    return {"encoder": options.encoder, "encoder_digest": digest(encoder)}


def untrained_like(encoder: Encoder, seed: int) -> Encoder:
    """The same encoder with new weights, which has learned nothing: the baseline of all protocols."""
    return fresh_like(encoder, seed)


def feature_size(options: EncoderOptions, encoder: Encoder) -> int:
    """Pixels a side of the images the encoder is shown."""
    return options.image_size or encoder.spec.image_size


def image_features(options: FeatureOptions, encoder: Encoder, images: ImageSet, flip: bool = False) -> Tensor:
    """Features (N, C) of images, centre-cropped to the square, in the order of the rows: float32, on the CPU.

    Args:
        options: tell size, crop, batch, pooling, and the arithmetic of the encoder.
        encoder: on the device to compute on.
        images: the images.
        flip: mirror every image.
    """
    dataset = WholeDataset(images, feature_size(options, encoder), fit="centre", crop_pct=options.crop_pct)
    device = device_of(encoder)
    batches: Iterable[Mapping[str, Tensor]] = make_loader(dataset, options.batch_size, workers=options.workers)
    if flip:
        batches = ({**batch, "image": batch["image"].flip(-1)} for batch in batches)
    with autocast(options.precision, device):
        return extract(
            encoder,
            batches,
            mean=encoder.spec.mean,
            std=encoder.spec.std,
            pooling=pooling_for(options),
            device=device,
            total=len(images),
        )


def open_classes(options: EncoderOptions, split: str | None) -> ImageSet:
    """One split of --data, or all of it, which must have classes."""
    images = _open(options, split)
    _check_labelled(options, images)
    return images


def _open(options: EncoderOptions, split: str | None) -> ImageSet:
    return open_images(
        options.data,
        split=split,
        limit=options.limit,
        seed=options.seed,
        workers=options.workers,
        needs_classes=True,
    )


def _check_labelled(options: EncoderOptions, images: ImageSet) -> None:
    if images.labels is None:
        note = images.source.class_note
        remedy = f": {note}" if note else "; put images into one folder a class, or add a `label` column"
        raise UserError(f"{options.data}: no classes{remedy}")


def image_keys(images: ImageSet) -> list[str]:
    """What a model keeps of the images that it learned from, for `unlearned_rows`: 12 characters of each.

    A hash of the name below the root, the folder `train` left out, and of the number of bytes: it tells no name, and
    finds an image again where it is one of more, one of fewer, or where the folder was moved.
    """
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


class TrainVal(NamedTuple):
    """Images to learn classes from, and images to measure on; classes are numbered alike in both."""

    train: ImageSet
    val: ImageSet
    train_targets: Tensor  # int64 (N,)
    val_targets: Tensor  # int64 (M,)
    classes: list[str]
    split: str  # in words, for the protocol


def open_sets(options: EncoderOptions) -> list[ImageSet]:
    """The images of --data: training and validation split, or, where it has none, one set of all; each with its limit.

    Raises:
        UserError: a folder is a split and lacks its counterpart.
    """
    names = split_names(options.data)
    if user_path(options.data, "--data").is_dir():  # a file, a pattern or a name of the hub means just what it says
        check_whole(names, options.data)
    splits = ("train", "val") if has_both(names) else (None,)
    return [_open(options, split) for split in splits]


def check_classes(options: EncoderOptions, sets: Sequence[ImageSet]) -> None:
    """Refuse images without classes, and classes that nothing can be learned of.

    Of a part of the images, --limit, a class may be left out by chance: that is told, and no reason to refuse.

    Raises:
        UserError: there are no classes, a single one, or one that only the validation images have.
    """
    for images in sets:
        _check_labelled(options, images)
    known = sorted(set(sets[0].labels or ()))
    if len(known) < 2:
        remedy = sets[0].source.class_note or "put images into one folder a class"
        raise UserError(f"{options.data}: a single class ({known[0]}); {remedy}")
    asked = set(sets[-1].labels or ())
    unknown, unasked = sorted(asked.difference(known)), sorted(set(known).difference(asked))
    if unknown:
        fault = f"{options.data}: class {_named(unknown)}: has validation images, and none to learn from"
        if options.limit is None:
            hint = near_only(unknown[0], unasked or known)
            raise UserError(f"{fault}; rename the folder, or leave these images out{hint}")
        _log.warning("%s, of which --limit leaves some out; these images count as wrong", fault)
    if unasked:
        _log.warning("%s: class %s: no validation images, so nothing is told of it", options.data, _named(unasked))


def _named(classes: Sequence[str]) -> str:
    return f"{classes[0]!r}" + (f" and {len(classes) - 1} more" if len(classes) > 1 else "")


def open_train_val(options: EncoderOptions, val_share: float) -> TrainVal:
    """The training and validation split of --data; where it has none, `val_share` of each class is held out.

    Args:
        options: tell data, limit, seed.
        val_share: between 0 and 1; which images it is depends on the seed alone.

    Raises:
        UserError: as `open_sets`, `train_val`.
    """
    return train_val(options, open_sets(options), val_share)


def train_val(options: EncoderOptions, sets: Sequence[ImageSet], val_share: float) -> TrainVal:
    """As `open_train_val`, of the sets of `open_sets`.

    Raises:
        UserError: as `check_classes`; nothing is left to measure on; a share to hold out is told of data with a split.
    """
    if len(sets) == 1:
        (images,) = sets
        check_classes(options, sets)
        kept, out = held_out(images.labels or (), val_share, options.seed)
        if not out:
            raise UserError(f"{options.data}: no class has two images, so none can be held out; give more images")
        train, val = images.select(kept), images.select(out)
        words = f"{len(train)} train, {len(val)} held out of each class by seed {options.seed}"
    else:
        check_val_share(val_share, options.data)
        train, val = sets
        words = f"{len(train)} train, {len(val)} val"
    check_classes(options, [train, val])
    (train_targets, val_targets), classes = class_indices([train, val])
    return TrainVal(train, val, train_targets, val_targets, classes, words)


def check_val_share(val_share: float, data: str) -> None:
    """Refuse --val-share for data that has a validation split."""
    if val_share != VAL_SHARE:
        raise UserError(f"--val-share {val_share}: {data} has a validation split, nothing is held out; leave it out")


def warn_of_single_images(options: EncoderOptions, images: ImageSet) -> None:
    """Tell where leave-one-out k-NN cannot be right, for no other image has the class."""
    single = sorted(name for name, count in Counter(images.labels).items() if count == 1)
    if single:
        _log.warning("%s: class %s: a single image, which counts as wrong", options.data, _named(single))


def class_indices(sets: Sequence[ImageSet]) -> tuple[list[Tensor], list[str]]:
    """Class numbers of every image of each set, numbered alike, and the names."""
    names = sorted({label for images in sets for label in images.labels or ()})
    number = {name: index for index, name in enumerate(names)}
    return [torch.tensor([number[label] for label in images.labels or ()]) for images in sets], names
