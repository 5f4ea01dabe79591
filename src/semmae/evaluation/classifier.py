"""How well a fine-tuned classifier classifies: after its training, while it lasts, or by itself."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.classes import open_classes, unlearned_rows
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet
from semmae.data.sources import has_split
from semmae.errors import UserError, near_only
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.classifying import Predictions, classify
from semmae.evaluation.protocols.shape import Classified, Measured
from semmae.files import Fields
from semmae.models.classifier import Classifier
from semmae.names import shown
from semmae.objects import described
from semmae.options.shared import Check, WorkerOptions
from semmae.sizes import Size, sides

_UNTIL = 224  # pixels a side up to which MAE crops the middle out of a larger image

_log = logging.getLogger("semmae")


@dataclass(frozen=True)
class CentreCrops(WorkerOptions):
    """How a classifier is shown the images that it is measured on."""

    image_size: Size  # pixels
    crop_pct: float  # share of each side of the resized image that is shown
    batch_size: int


def usual_crop(image_size: Size) -> float:
    """The share of the short side that MAE shows at this size."""
    return 0.875 if max(sides(image_size)) <= _UNTIL else 1.0


def predict(classifier: Classifier, images: ImageSet, targets: Tensor, crops: CentreCrops) -> Predictions:
    """The classes of whole images, cropped in the middle, in float32."""
    spec = classifier.encoder.spec
    dataset = WholeDataset(images, crops.image_size, fit="centre", crop_pct=crops.crop_pct)
    loader = make_loader(dataset, crops.batch_size, workers=crops.num_workers)
    device = next(classifier.parameters()).device
    return classify(classifier, loader, targets, mean=spec.mean, std=spec.std, device=device, label="measuring")


def measure_classifier(
    classifier: Classifier, images: ImageSet, targets: Tensor, classes: Sequence[str], crops: CentreCrops
) -> Measured:
    """Top-1 with its interval, top-5, mean of classes, in percent."""
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    predictions = predict(classifier, images, targets, crops)
    figures = class_figures(predictions.ranks, targets, len(classes))
    return Measured(figures, Classified(classes, predictions.chosen, targets))


# A classifier that was trained before


def crop_share(path: Path, content: Mapping[str, Any]) -> float:
    """The share of the short side that a classifier was measured on, of what its config.json at `path` holds."""
    share: float = Fields(path, content).need("crop_pct", (int, float))
    if not 0 < share <= 1:
        raise UserError(f"{path}: crop_pct is {share}, must be above 0 and at most 1; restore it")
    return share


def open_unlearned(
    data: Any,
    learned: Sequence[str] | None,
    whose: str,
    *,
    limit: int | None,
    seed: int,
    workers: int,
    check: Check = "full",
    channels: int = 3,
) -> tuple[ImageSet, str]:
    """The images of `data` to measure a classifier on, and in words which they are.

    The validation split, or all images where there is none; but none that the classifier learned from, of which
    `learned` holds the keys. `whose` is what messages call it.
    """
    split = "val" if has_split(data) else None
    images = open_classes(data, split, limit=limit, seed=seed, workers=workers, check=check, channels=channels)
    which = split or "images"
    if learned is None:
        _log.warning("%s: does not say which images it learned from; those count here too", whose)
        return images, f"all {len(images)} {which}"
    rows = unlearned_rows(images, learned)
    if len(rows) == len(images):
        return images, f"all {len(images)} {which}"
    if not rows:
        raise UserError(
            f"{described(data)}: {whose} learned from every one of these {len(images)} images, which says "
            "nothing about others; give images that were held out from it"
        )
    left_out = len(images) - len(rows)
    _log.info("%s: %d of %d images left out, the classifier learned from them", described(data), left_out, len(images))
    return images.select(rows), f"{len(rows)} of {len(images)} {which}: without those that it learned from"


def target_indices(data: Any, images: ImageSet, classes: Sequence[str], whose: str) -> Tensor:
    """The number, in `classes` of the classifier `whose`, of every image's class: int64 (N,)."""
    number = {name: index for index, name in enumerate(classes)}
    labels = images.labels or ()
    unknown = sorted(set(labels).difference(number))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{described(data)}: class {shown(unknown[0])}{more}: not among the {len(classes)} that {whose} knows"
            f"{near_only(unknown[0], classes)}; leave such images out, or fine-tune on them"
        )
    return torch.tensor([number[label] for label in labels])
