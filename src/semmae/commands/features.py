"""What verbs share that look at images through a frozen encoder: its options, its features, the classes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from semmae.checkpoint import digest
from semmae.commands.options import RunOptions
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.data.sources import has_split
from semmae.data.splits import held_out
from semmae.errors import UserError
from semmae.evaluation.features import extract
from semmae.loading import load_encoder
from semmae.models.fresh import fresh_like
from semmae.models.head import Pooling
from semmae.models.vit import Encoder

_KEY = 12  # hexadecimal digits: among a million images one of ten million others is taken for one of them at 1 in 28


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(RunOptions):
    """What every verb takes that begins with an encoder."""

    encoder: str
    """Encoder: a run of semmae, timm:NAME, or a checkpoint file."""
    data: str
    """Images: a folder of any depth, Parquet file(s) with an `image` column, or hf:NAME."""
    num_heads: int | None = None
    """Heads of the encoder, where its file does not tell."""
    image_size: int | None = None
    """Pixels a side; default: as the encoder was trained."""
    limit: int | None = None
    """Use only so many of the images (of each split), drawn by the seed."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions(EncoderOptions):
    """What verbs take that show whole images to a frozen encoder."""

    batch_size: int = 128
    """Images at a time."""
    crop_pct: float = 1.0
    """Share of the short side that the centre crop shows; 0.875, 224 of 256, is what MAE and DINO measure with."""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ViewOptions):
    """What verbs take that need one vector an image."""

    pooling: Pooling = "cls"
    """One vector an image: the class token, or the mean of the patch tokens."""


def open_encoder(options: EncoderOptions) -> Encoder:
    """The encoder of --encoder, in eval mode, for the image size asked for, on the device to compute on."""
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


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
    """Features (N, C) of images, centre-cropped to the square, in the order of the rows.

    Args:
        options: tell size, crop, batch, pooling.
        encoder: on the device to compute on.
        images: the images.
        flip: mirror every image.
    """
    dataset = WholeDataset(images, feature_size(options, encoder), fit="centre", crop_pct=options.crop_pct)
    device = next(encoder.parameters()).device
    batches: Iterable[Mapping[str, Tensor]] = make_loader(dataset, options.batch_size, workers=options.workers)
    if flip:
        batches = ({**batch, "image": batch["image"].flip(-1)} for batch in batches)
    return extract(
        encoder,
        batches,
        mean=encoder.spec.mean,
        std=encoder.spec.std,
        pooling=options.pooling,
        device=device,
        total=len(images),
    )


def open_classes(options: EncoderOptions, split: str | None) -> ImageSet:
    """One split of --data, or all of it, which must have classes."""
    images = open_images(options.data, split=split, limit=options.limit, seed=options.seed, workers=options.workers)
    if images.labels is None:
        raise UserError(f"{options.data}: no classes; put images into one folder a class, or add a `label` column")
    return images


def image_keys(images: ImageSet) -> str:
    """What a model keeps of the images that it learned from, for `unlearned_rows`: 12 characters of each.

    A hash of the name below the root, the folder `train` left out, and of the number of bytes: it tells no name, and
    finds an image again where it is one of more, one of fewer, or where the folder was moved.
    """
    return "".join(_image_key(*named) for named in zip(images.names, images.manifest.sizes, strict=True))


def unlearned_rows(images: ImageSet, learned: str) -> list[int]:
    """The rows of images that are not among those of which `image_keys` were kept, ascending."""
    keys = {learned[start : start + _KEY] for start in range(0, len(learned), _KEY)}
    named = zip(images.names, images.manifest.sizes, strict=True)
    return [row for row, (name, size) in enumerate(named) if _image_key(name, size) not in keys]


def _image_key(name: str, size: int) -> str:
    below = name.removeprefix("train/")  # so photos/train is known again from a training on photos
    return hashlib.sha256(f"{below}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:_KEY]


class TrainVal(NamedTuple):
    """Images to learn classes from, and images to measure on; classes are numbered alike in both."""

    train: ImageSet
    val: ImageSet
    train_targets: Tensor  # int64 (N,)
    val_targets: Tensor  # int64 (M,)
    classes: list[str]
    split: str  # in words, for the protocol


def open_train_val(options: EncoderOptions, val_share: float) -> TrainVal:
    """The training and validation split of --data; where it has none, `val_share` of each class is held out.

    Args:
        options: tell data, limit, seed.
        val_share: between 0 and 1; which images it is depends on the seed alone.

    Raises:
        UserError: no classes, fewer than two, or none left to measure on.
    """
    if has_split(options.data):
        train, val = (open_classes(options, split) for split in ("train", "val"))
        words = f"{len(train)} train, {len(val)} val"
    else:
        images = open_classes(options, None)
        kept, out = held_out(images.labels or (), val_share, options.seed)
        if not out:
            raise UserError(f"{options.data}: no class has two images, so none can be held out; give more images")
        train, val = images.select(kept), images.select(out)
        words = f"{len(train)} train, {len(val)} held out of each class by seed {options.seed}"
    (train_targets, val_targets), classes = class_indices([train, val])
    if len(classes) < 2:
        raise UserError(f"{options.data}: a single class ({classes[0]}); put images into one folder a class")
    return TrainVal(train, val, train_targets, val_targets, classes, words)


def class_indices(sets: Sequence[ImageSet]) -> tuple[list[Tensor], list[str]]:
    """Class numbers of every image of each set, numbered alike, and the names."""
    names = sorted({label for images in sets for label in images.labels or ()})
    number = {name: index for index, name in enumerate(names)}
    return [torch.tensor([number[label] for label in images.labels or ()]) for images in sets], names
