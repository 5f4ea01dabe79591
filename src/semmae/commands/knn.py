"""`semmae knn`: how well classes can be read off an encoder's features, without training anything."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from semmae.commands.options import RunOptions
from semmae.commands.run import checked, run_folder, write_text
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images, write_skipped
from semmae.data.sources import has_split
from semmae.errors import UserError
from semmae.evaluation.features import extract
from semmae.evaluation.knn import knn_accuracy
from semmae.loading import load_encoder
from semmae.models.vit import Encoder

_log = logging.getLogger("semmae")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(RunOptions):
    """What verbs take that look at images through a frozen encoder."""

    encoder: str
    """Encoder: a run of semmae, timm:NAME, or a checkpoint file."""
    data: str
    """Images: a folder of any depth, Parquet file(s) with an `image` column, or hf:NAME."""
    num_heads: int | None = None
    """Heads of the encoder, where its file does not tell."""
    image_size: int | None = None
    """Pixels a side; default: as the encoder was trained."""
    batch_size: int = 128
    """Images at a time."""
    pooling: Literal["cls", "mean"] = "cls"
    """One vector an image: the class token, or the mean of the patch tokens."""
    limit: int | None = None
    """Use only so many of the images (of each split), drawn by the seed."""


@dataclass(frozen=True, kw_only=True)
class KnnOptions(FeatureOptions):
    """Options of `semmae knn`."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Votes weigh exp(cosine similarity / temperature)."""


def knn(options: KnnOptions) -> Path:
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""
    options = checked(options)
    if options.temperature <= 0:
        raise UserError(f"--temperature {options.temperature}: must be above 0; 0.07 is the usual choice")
    encoder = open_encoder(options)
    splits = ("train", "val") if has_split(options.data) else (None,)
    sets = [open_split(options, split) for split in splits]
    with run_folder(options) as out:
        results = measure_knn(options, encoder, sets)
        write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
        write_skipped(sets[0].manifest, out / "skipped.csv")
    print(f"k-NN top-1 {results['top1']:.1f} %, top-5 {results['top5']:.1f} % ({results['protocol']['split']})")
    return options.out


def open_encoder(options: FeatureOptions) -> Encoder:
    """The encoder of --encoder, frozen, for the image size asked for."""
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


def feature_size(options: FeatureOptions, encoder: Encoder) -> int:
    """Pixels a side of the images the encoder is shown."""
    return options.image_size or encoder.spec.image_size


def open_split(options: FeatureOptions, split: str | None) -> ImageSet:
    """One split of --data, which must have classes."""
    images = open_images(options.data, split=split, limit=options.limit, seed=options.seed, workers=options.workers)
    if images.labels is None:
        raise UserError(f"{options.data}: no classes; put images into one folder a class, or add a `label` column")
    return images


def image_features(options: FeatureOptions, encoder: Encoder, images: ImageSet) -> Tensor:
    """Features (N, C) of whole images, centre-cropped to the square, in the order of the rows."""
    dataset = WholeDataset(images, feature_size(options, encoder), fit="centre")
    device = next(encoder.parameters()).device
    return extract(
        encoder,
        make_loader(dataset, options.batch_size, workers=options.workers),
        mean=encoder.spec.mean,
        std=encoder.spec.std,
        pooling=options.pooling,
        device=device,
        total=len(images),
    )


def measure_knn(options: KnnOptions, encoder: Encoder, sets: list[ImageSet]) -> dict[str, Any]:
    """top-1 and top-5 of val against train, or of every image against all others; with the protocol."""
    features = [image_features(options, encoder, images) for images in sets]
    targets, names = class_indices(sets)
    accuracy = knn_accuracy(
        features[0],
        targets[0],
        features[-1],
        targets[-1],
        num_classes=len(names),
        k=options.k,
        temperature=options.temperature,
        leave_one_out=len(sets) == 1,
    )
    split = "leave one out" if len(sets) == 1 else f"{len(sets[0])} train, {len(sets[1])} val"
    protocol = {
        "k": options.k,
        "temperature": options.temperature,
        "pooling": options.pooling,
        "image_size": feature_size(options, encoder),
        "split": split,
        "encoder": options.encoder,
        "data": options.data,
    }
    return {"protocol": protocol, **accuracy, "images": len(sets[-1]), "classes": len(names)}


def class_indices(sets: list[ImageSet]) -> tuple[list[Tensor], list[str]]:
    """Class numbers of every image of each set, numbered alike, and the names."""
    names = sorted({label for images in sets for label in images.labels or ()})
    number = {name: index for index, name in enumerate(names)}
    return [torch.tensor([number[label] for label in images.labels or ()]) for images in sets], names
