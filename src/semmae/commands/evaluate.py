"""`semmae evaluate`: everything that an encoder can be measured by without fine-tuning it, in one table."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from semmae.checkpoint import check_saveable
from semmae.commands.features import (
    TrainVal,
    feature_size,
    open_encoder,
    open_train_val,
    told_encoder,
    untrained_like,
)
from semmae.commands.knn import NeighbourOptions, check_temperature, knn_protocol, measure_knn
from semmae.commands.measuring import Truth, measure_encoder, measure_grids, pixel_truth
from semmae.commands.options import OptionsT
from semmae.commands.probe import ProbeOptions, choice_rows, measure, told_protocol
from semmae.commands.results import OWN, write_comparison
from semmae.commands.run import checked, run_folder
from semmae.commands.segment import new_segmenter, open_data, train_segmenter
from semmae.commands.segment_options import SegmentOptions, check_encoder
from semmae.commands.segment_results import class_rows, write_classes
from semmae.commands.segment_results import protocol as segment_protocol
from semmae.data.manifest import ImageSet, open_images, write_skipped
from semmae.data.segmentation import MASK_FOLDERS, SegmentationData
from semmae.errors import UserError
from semmae.models.vit import Encoder
from semmae.reporting import write_report

UNTRAINED = "untrained"
_PART_LABELS, _PART_GRID = 7, 28  # as `semmae parts` has them: six parts and the background

_log = logging.getLogger("semmae")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NeighbourOptions):
    """Options of `semmae evaluate`."""

    untrained: bool = True
    """Measure beside it the same encoder with new weights, to see what training brought."""
    val_share: float = 0.2
    """Share of each class, or of the images with masks, that is held out where --data has no split."""
    masks: Path | None = None
    """Folder of PNG labels that mirrors --data: segmentation and part quality; default: where --data holds \
images and masks side by side, those."""
    ignore_index: int = 255
    """Number in the masks of what is not to be told."""
    reduce_zero_label: bool = False
    """0 in the masks is not to be told either, and class k is written as k + 1 (ADE20K)."""
    steps: int = 500
    """Optimiser steps of the linear head for segmentation."""


class Known(NamedTuple):
    """The images, and what is known of them by which an encoder can be measured."""

    images: ImageSet
    classes: TrainVal | None
    chosen_on: list[int]  # training images on which the probe's rate is chosen
    pixels: SegmentationData | None
    truth: Truth | None  # of parts, of the images that `pixels` measures on


def evaluate(options: EvaluateOptions) -> Path:
    """Measure an encoder by k-NN, linear probe and, where masks are given, segmentation and part quality."""
    options = checked(options)
    check_temperature(options.temperature)
    encoder = open_encoder(options)
    found = with_masks(options)
    known = open_known(found, encoder)
    whose = told_encoder(options, encoder)  # now, for segmentation may resample its positions
    with run_folder(options) as out:
        methods = {OWN: measured(found, encoder, known, out)}
        protocol = told(found, encoder, known, whose)
        if options.untrained:
            new = untrained_like(encoder, options.seed)
            methods[UNTRAINED] = measured(found, new, known, out / UNTRAINED)
        print(write_comparison(out, protocol, methods))
        write_skipped(known.images.manifest, out / "skipped.csv")
        write_report(out)
    return options.out


def with_masks(options: EvaluateOptions) -> EvaluateOptions:
    """Where --data holds images and masks side by side, these two as --data and --masks."""
    root = Path(options.data).expanduser()
    beside = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if options.masks is not None or beside is None or not (root / "images").is_dir():
        return options
    return replace(options, data=str(root / "images"), masks=beside)


def open_known(options: EvaluateOptions, encoder: Encoder) -> Known:
    """Classes and masks of the images, all of them checked.

    Raises:
        UserError: there are neither, or one of them is at fault.
    """
    images = open_images(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    classes, chosen_on = None, []
    if len(set(images.labels or ())) > 1:
        classes = open_train_val(options, options.val_share)
        chosen_on = choice_rows(_options(ProbeOptions, options), classes.train)
    if options.masks is None:
        if classes is None:
            raise UserError(
                f"{options.data}: neither classes nor masks to measure by; put images into one folder a class, "
                "add a `label` column, or give --masks"
            )
        _log.info("%s: no masks, so neither segmentation nor parts are measured", options.data)
        return Known(images, classes, chosen_on, None, None)
    if classes is None:
        _log.info("%s: no classes, so neither k-NN nor a probe is measured", options.data)
    check_saveable(encoder)
    segmenting = segment_options(options, options.out)
    check_encoder(segmenting, encoder)
    pixels = open_data(segmenting, options.masks)
    return Known(images, classes, chosen_on, pixels, pixel_truth(pixels.val, seed=options.seed))


def measured(options: EvaluateOptions, encoder: Encoder, known: Known, out: Path) -> dict[str, Any]:
    """Every figure that `known` allows; what single protocols draw and list is written below `out`."""
    figures: dict[str, Any] = {}
    if known.classes is not None:
        figures |= _named("knn", measure_knn(options, encoder, [known.classes.train, known.classes.val]))
        probing, folder = _options(ProbeOptions, options), out / "probe"
        folder.mkdir(parents=True, exist_ok=True)
        figures |= _named("probe", measure(probing, encoder, known.classes, known.chosen_on, folder)[1])
    if known.pixels is not None and known.truth is not None:
        parts, _ = measure_encoder(
            encoder, known.pixels.val.images, known.truth, labels=_PART_LABELS, grid=_PART_GRID,
            size=feature_size(options, encoder), batch_size=options.batch_size, workers=options.workers,
            seed=options.seed,
        )  # fmt: skip
        parts |= measure_grids(known.truth, labels=_PART_LABELS, grid=_PART_GRID)
        for method, scores in parts.items():
            figures |= _named(method, {name: scores[name] for name in ("nmi", "ari")})
        # Last, for it may resample the encoder's positions.
        figures |= _named("segment", segmented(options, encoder, known.pixels, out / "segment"))
    return figures


def segmented(options: EvaluateOptions, encoder: Encoder, data: SegmentationData, out: Path) -> dict[str, Any]:
    """Figures of a linear head on the frozen encoder's patch tokens, trained in `out` or gone on with there."""
    segmenting = segment_options(options, out)
    encoder.set_image_size(feature_size(options, encoder))
    found = train_segmenter(segmenting, out, new_segmenter(segmenting, encoder, data.names), data)
    assert found is not None, "a single process measures"
    write_classes(out / "per_class.csv", class_rows({OWN: found}))
    return found.figures


def segment_options(options: EvaluateOptions, out: Path) -> SegmentOptions:
    """The linear head's training, by `semmae segment`."""
    return replace(
        _options(SegmentOptions, options), out=out, head="linear", batch_size=16, val_steps=options.steps, pictures=0
    )


def told(options: EvaluateOptions, encoder: Encoder, known: Known, whose: Mapping[str, str]) -> dict[str, Any]:
    """How everything was measured, by protocol."""
    protocol: dict[str, Any] = {**whose, "data": options.data, "seed": options.seed}
    if known.classes is not None:
        sets = [known.classes.train, known.classes.val]
        protocol["knn"] = knn_protocol(options, encoder, sets) | {"split": known.classes.split}
        protocol["probe"] = told_protocol(_options(ProbeOptions, options), encoder, known.classes)
    if known.pixels is not None and known.truth is not None:
        segmenting = segment_options(options, options.out)
        protocol["segment"] = segment_protocol(segmenting, "linear", encoder.spec.image_size, known.pixels)
        protocol["parts"] = known.truth.protocol | {"labels": _PART_LABELS, "grid": _PART_GRID}
    return {
        name: {key: value for key, value in facts.items() if key not in protocol} if isinstance(facts, dict) else facts
        for name, facts in protocol.items()
    }


def _options(kind: type[OptionsT], options: EvaluateOptions) -> OptionsT:
    """Options of another verb: those that both have as they were given, the others as they are by default."""
    names = {field.name for field in fields(kind)} & {field.name for field in fields(options)}
    return kind(**{name: getattr(options, name) for name in names})


def _named(protocol: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{protocol}_{name}": value for name, value in figures.items()}
