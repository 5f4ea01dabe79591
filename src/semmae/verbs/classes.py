"""How well a fine-tuned classifier tells classes: after its training, while it lasts, or by itself."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, write_skipped
from semmae.data.sources import has_split
from semmae.errors import UserError, near_only
from semmae.evaluation.accuracy import rank_report
from semmae.evaluation.classifying import Answers, classify
from semmae.files import Fields
from semmae.formats.folders import CONFIG, read_classifier, read_extra, read_learned
from semmae.formats.open import find_classifier
from semmae.models.classifier import Classifier, without_head
from semmae.options.finetune import FinetuneOptions
from semmae.options.values import check_image_size
from semmae.reporting.results import draw_confusion, write_per_class, write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.verbs.features import open_classes, told_encoder, unlearned_rows

_UNTIL = 224  # pixels a side up to which MAE crops the middle out of a larger image

_log = logging.getLogger("semmae")


def evaluate_only(options: FinetuneOptions) -> Path:
    """Measure the classifier of the finished run --encoder on --data, without training."""
    folder = find_classifier(options.encoder)
    classifier, classes = read_classifier(folder)
    measured_on = crop_share(folder / CONFIG, read_extra(folder))
    size = options.image_size or classifier.encoder.spec.image_size
    check_image_size(size, classifier.encoder.patch_size)
    own = dataclasses.replace(options, crop_pct=options.crop_pct or measured_on, image_size=size)
    images, split = open_measured(options, read_learned(folder))
    targets = known_targets(options, images, classes)
    with run_folder(options) as out:
        figures = measure_classifier(own, classifier, images, targets, classes)
        protocol = {
            "method": "a fine-tuned classifier, measured without training",
            **{name: getattr(own, name) for name in ("image_size", "crop_pct", "data", "seed")},
            "split": split,
            **told_encoder(options, without_head(classifier)),
        }
        write_results(out, protocol, figures)
        write_skipped([images], out / "skipped.csv")
        write_report(out)
    return options.out


def crop_share(path: Path, content: Mapping[str, Any]) -> float:
    """The share of the short side that a classifier was measured on, of what its config.json at `path` holds."""
    share: float = Fields(path, content).need("crop_pct", (int, float))
    if not 0 < share <= 1:
        raise UserError(f"{path}: crop_pct is {share}, must be above 0 and at most 1; restore it")
    return share


def open_measured(options: FinetuneOptions, learned: Sequence[str] | None) -> tuple[ImageSet, str]:
    """The images of --data to measure on, and in words which they are.

    The validation split, or all images where there is none; but none that the classifier learned from.

    Raises:
        UserError: it learned from all of them.
    """
    split = "val" if has_split(options.data) else None
    images, which = open_classes(options, split), split or "images"
    if learned is None:
        _log.warning("%s: does not tell which images it learned from; those count here too", options.encoder)
        return images, f"all {len(images)} {which}"
    rows = unlearned_rows(images, learned)
    if len(rows) == len(images):
        return images, f"all {len(images)} {which}"
    if not rows:
        raise UserError(
            f"{options.data}: {options.encoder} learned from every one of these {len(images)} images, which says "
            "nothing about others; give images that were held out from it"
        )
    left_out = len(images) - len(rows)
    _log.info("%s: %d of %d images left out, the classifier learned from them", options.data, left_out, len(images))
    return images.select(rows), f"{len(rows)} of {len(images)} {which}: without those that it learned from"


def known_targets(options: FinetuneOptions, images: ImageSet, classes: Sequence[str]) -> Tensor:
    """The classifier's number of every image's class, int64 (N,).

    Raises:
        UserError: a class that the classifier does not know.
    """
    number = {name: index for index, name in enumerate(classes)}
    labels = images.labels or ()
    unknown = sorted(set(labels).difference(number))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{options.data}: class {unknown[0]!r}{more}: not among the {len(classes)} that {options.encoder} knows"
            f"{near_only(unknown[0], classes)}; leave such images out, or fine-tune on them"
        )
    return torch.tensor([number[label] for label in labels])


def measure_classifier(
    options: FinetuneOptions, classifier: Classifier, images: ImageSet, targets: Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """Top-1 with its interval, top-5, mean of classes, in percent; writes per_class.csv and confusion.png."""
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    answers = ask(options, classifier, images, targets)
    report = rank_report(answers.ranks, targets, len(classes))
    del report["per_class"]  # by name in a table of its own
    write_per_class(options.out / "per_class.csv", classes, answers.chosen, targets)
    draw_confusion(options.out / "confusion.png", classes, answers.chosen, targets)
    return {**report, "images": len(images), "classes": len(classes)}


def validate(options: FinetuneOptions, classifier: Classifier, images: ImageSet, targets: Tensor) -> dict[str, float]:
    """What is told while training goes on."""
    answers = ask(options, classifier, images, targets)
    report = rank_report(answers.ranks, targets, classifier.num_classes)
    return {"val_top1": report["top1"], "val_mean_class": report["mean_class"]}


def ask(options: FinetuneOptions, classifier: Classifier, images: ImageSet, targets: Tensor) -> Answers:
    """What a classifier says of whole images, cropped in the middle, in float32."""
    spec = classifier.encoder.spec
    dataset = WholeDataset(
        images, measured_size(options, classifier), fit="centre", crop_pct=eval_crop(options, classifier)
    )
    size = max(1, options.batch_size // options.batches)  # what fits while training
    loader = make_loader(dataset, size, workers=options.workers)
    device = next(classifier.parameters()).device
    return classify(classifier, loader, targets, mean=spec.mean, std=spec.std, device=device, label="measuring")


def measured_size(options: FinetuneOptions, classifier: Classifier) -> int:
    """Pixels a side of the images that are measured on."""
    return options.image_size or classifier.encoder.spec.image_size


def eval_crop(options: FinetuneOptions, classifier: Classifier) -> float:
    """Share of the resized image's short side that is shown: as asked, else as MAE does."""
    usual = 0.875 if measured_size(options, classifier) <= _UNTIL else 1.0
    return options.crop_pct or usual
