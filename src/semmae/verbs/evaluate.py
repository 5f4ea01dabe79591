"""`semmae evaluate`: everything that an encoder can be measured by without fine-tuning it, in one table.

Notable here:
- one pass of the encoder over each set of images serves k-NN and the probe;
- the figures of a protocol are kept as soon as it is finished, in figures.json: a run that was stopped goes on after
  the last finished one, and its table is the one of a run that was not stopped.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.manifest import ImageSet, write_skipped
from semmae.data.segmentation import SegmentationData
from semmae.data.splits import MASK_FOLDERS
from semmae.errors import UserError
from semmae.evaluation.parts import Truth, measure_encoder, measure_grids, pixel_truth
from semmae.files import Fields, read_json, user_path, write_json
from semmae.formats.folders import check_saveable, digest
from semmae.models.vit import Encoder
from semmae.options.evaluate import EvaluateOptions
from semmae.options.fields import shared
from semmae.options.probe import ProbeOptions
from semmae.options.segment import SegmentOptions
from semmae.reporting.page import check_figures
from semmae.reporting.results import OWN, write_comparison
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.train.precision import check_precision
from semmae.verbs.features import (
    Look,
    TrainVal,
    device_of,
    feature_size,
    image_features,
    open_encoder,
    open_sets,
    pooled,
    told_encoder,
    train_val,
    untrained_like,
)
from semmae.verbs.knn import knn_protocol, measure_knn
from semmae.verbs.probe import probe_encoder, probe_protocol, rows_to_choose_on
from semmae.verbs.segment import new_segmenter, open_data, train_segmenter
from semmae.verbs.segment_options import check_encoder
from semmae.verbs.segment_results import class_rows, protocol as segment_protocol, write_classes

UNTRAINED = "untrained"
_FIGURES = "figures.json"  # of one encoder, those of the protocols that are finished
_PART_LABELS, _PART_GRID = 7, 28  # as `semmae parts` has them: six parts and the background

_log = logging.getLogger("semmae")


class Known(NamedTuple):
    """What is known of the images, by which an encoder can be measured."""

    classes: TrainVal | None
    chosen_on: list[int]  # training images on which the probe's rate is chosen; none: there is no probe
    pixels: SegmentationData | None
    truth: Truth | None  # of parts, of the images that `pixels` measures on

    @property
    def sets(self) -> list[ImageSet]:
        """The images to learn from and to measure on, of classes and of pixels."""
        found = [] if self.classes is None else [self.classes.train, self.classes.val]
        return found + ([] if self.pixels is None else [self.pixels.train.images, self.pixels.val.images])

    @property
    def digests(self) -> dict[str, Any]:
        """By which a stopped run knows that nothing has changed."""
        masks = {} if self.pixels is None else {"masks": self.pixels.digest}
        return {"images": [images.digest for images in self.sets], **masks}


def evaluate(options: EvaluateOptions) -> Path:
    """Measure an encoder by k-NN, linear probe and, where masks are given, segmentation and part quality."""
    check_precision(options.precision)
    encoder = open_encoder(options)
    found = pooled(with_masks(options))
    known = open_known(found, encoder)
    whose = told_encoder(options, encoder)  # now, for segmentation may resample its positions
    with run_folder(options) as out:
        methods = {OWN: measured(found, encoder, known, out)}
        if known.pixels is not None:
            # As segmentation leaves it, also where a run that goes on has found those figures finished.
            encoder.set_image_size(feature_size(found, encoder))
        protocol = protocols(found, encoder, known, whose)
        if options.untrained:
            new = untrained_like(encoder, options.seed)
            methods[UNTRAINED] = measured(found, new, known, out / UNTRAINED)
        write_comparison(out, protocol, methods)
        write_skipped(known.sets, out / "skipped.csv")
        write_report(out)
    return options.out


def with_masks(options: EvaluateOptions) -> EvaluateOptions:
    """Where --data holds images and masks side by side, these two as --data and --masks."""
    root = user_path(options.data, "--data")
    beside = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if options.masks is not None or beside is None or not (root / "images").is_dir():
        return options
    return replace(options, data=str(root / "images"), masks=beside)


def open_known(options: EvaluateOptions, encoder: Encoder) -> Known:
    """Classes and masks of the images, all of them checked.

    Raises:
        UserError: there are neither, or one of them is at fault.
    """
    classes, chosen_on = open_known_classes(options)
    if options.masks is None:
        _log.info("%s: no masks, so neither segmentation nor parts are measured", options.data)
        return Known(classes, chosen_on, None, None)
    check_saveable(encoder)
    segmenting = segment_options(options, options.out)
    check_encoder(segmenting, encoder)
    pixels = open_data(segmenting, options.masks)
    return Known(classes, chosen_on, pixels, pixel_truth(pixels.val, seed=options.seed))


def open_known_classes(options: EvaluateOptions) -> tuple[TrainVal | None, list[int]]:
    """The images by their classes, None where they have none to measure by, and rows to choose the probe's rate on.

    Raises:
        UserError: they cannot be measured by, and there are no masks either.
    """
    sets = open_sets(options)
    labels = [images.labels or () for images in sets]
    if not all(labels) or len(set().union(*labels)) < 2:
        if options.masks is None:
            note = next((images.source.class_note for images in sets if images.source.class_note), "")
            raise UserError(
                f"{options.data}: neither classes nor masks to measure by; "
                f"{note or 'put images into one folder a class, add a `label` column'}, or give --masks"
            )
        _log.info("%s: no classes, so neither k-NN nor a probe is measured", options.data)
        return None, []
    if options.masks is not None and (reason := _no_classes(labels)):
        _log.warning("%s: %s, so neither k-NN nor a probe is measured", options.data, reason)
        return None, []
    classes = train_val(options, sets, options.val_share)
    chosen_on = rows_to_choose_on(shared(ProbeOptions, options), classes.train)
    if not chosen_on:
        _log.warning(
            "%s: no class has two training images to choose the probe's learning rate on, so no probe is measured "
            "(semmae probe --lr trains one)",
            options.data,
        )
    return classes, chosen_on


def _no_classes(labels: Sequence[Sequence[str]]) -> str:
    """Why folders of images that have masks may well be no classes, but sequences or towns; empty where they may be."""
    if len(labels) == 1:
        return "a single image of every class" if max(Counter(labels[0]).values()) < 2 else ""
    train, val = map(set, labels)
    return "the splits share no class" if not train & val else "a single class" if len(train) < 2 else ""


def measured(options: EvaluateOptions, encoder: Encoder, known: Known, out: Path) -> dict[str, Any]:
    """Every figure that `known` allows; what single protocols draw and list is written below `out`.

    The figures of each finished protocol are kept in `out`, and found there again by a run that goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = {"encoder_digest": digest(encoder), **known.digests}
    kept = finished_figures(out, facts) if options.resume else {}
    for protocol, measure in protocol_steps(options, encoder, known, out):
        if protocol not in kept:
            kept[protocol] = measure()
            write_json(out / _FIGURES, {**facts, "figures": kept})
    return {name: value for figures in kept.values() for name, value in figures.items()}


def finished_figures(out: Path, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By protocol, the figures that the run in `out` has found before it was stopped.

    Raises:
        UserError: they are of other images, masks, or another encoder.
    """
    path = out / _FIGURES
    if not path.is_file():
        return {}
    earlier = read_json(path)
    figures: dict[str, dict[str, Any]] = Fields(path, earlier).need("figures", dict)
    for protocol in figures:
        check_figures(path, Fields(path, figures).need(protocol, dict))
    changed = next((name for name in facts if earlier.get(name) != facts[name]), None)
    if changed:
        raise UserError(
            f"{path}: was found with other {changed.replace('_digest', ' weights')}; restore what has changed, or use "
            "another --out"
        )
    return figures


def protocol_steps(
    options: EvaluateOptions, encoder: Encoder, known: Known, out: Path
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """By name, in their order, what measures the encoder; each gives figures under names of its own."""
    # Kept for both protocols: features of a set of images are computed once.
    look = functools.cache(functools.partial(image_features, options, encoder))
    classes = known.classes
    if classes is not None:
        sets = [classes.train, classes.val]
        yield "knn", lambda: _named("knn", measure_knn(options, sets, look, device_of(encoder)))
    if classes is not None and known.chosen_on:
        yield "probe", lambda: probed(options, encoder, classes, known.chosen_on, out / "probe", look)
    look.cache_clear()  # of a million images they are gigabytes
    pixels, truth = known.pixels, known.truth
    if pixels is not None and truth is not None:
        yield "parts", lambda: part_figures(options, encoder, pixels.val.images, truth)
        # Last, for it may resample the encoder's positions.
        yield "segment", lambda: _named("segment", segmented(options, encoder, pixels, out / "segment"))


def probed(
    options: EvaluateOptions, encoder: Encoder, classes: TrainVal, chosen_on: list[int], out: Path, look: Look
) -> dict[str, Any]:
    """Figures of the fast linear probe, which writes what it tells of the classes to `out`."""
    probing = shared(ProbeOptions, options)
    return _named("probe", probe_encoder(probing, encoder, classes, chosen_on, out, look)[1])


def part_figures(options: EvaluateOptions, encoder: Encoder, images: ImageSet, truth: Truth) -> dict[str, Any]:
    """NMI and ARI of what the encoder's heads and its tokens' clusters tell of parts, and of fixed grids."""
    parts, _ = measure_encoder(
        encoder, images, truth, labels=_PART_LABELS, grid=_PART_GRID, size=feature_size(options, encoder),
        batch_size=options.batch_size, workers=options.workers, seed=options.seed,
    )  # fmt: skip
    parts |= measure_grids(truth, labels=_PART_LABELS, grid=_PART_GRID)
    return {f"{method}_{name}": scores[name] for method, scores in parts.items() for name in ("nmi", "ari")}


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
    return shared(SegmentOptions, options, out=out, head="linear", batch_size=16, val_steps=options.steps, pictures=0)


def protocols(options: EvaluateOptions, encoder: Encoder, known: Known, whose: Mapping[str, str]) -> dict[str, Any]:
    """How everything was measured, by protocol; what is the same for all of them stands before them."""
    protocol: dict[str, Any] = {**whose, "data": options.data, "seed": options.seed}
    if known.classes is not None:
        sets = [known.classes.train, known.classes.val]
        protocol["knn"] = knn_protocol(options, encoder, sets) | {"split": known.classes.split}
    if known.classes is not None and known.chosen_on:
        protocol["probe"] = probe_protocol(shared(ProbeOptions, options), encoder, known.classes)
    if known.pixels is not None and known.truth is not None:
        segmenting = segment_options(options, options.out)
        protocol["segment"] = segment_protocol(segmenting, "linear", encoder.spec.image_size, known.pixels)
        protocol["parts"] = known.truth.protocol | {"labels": _PART_LABELS, "grid": _PART_GRID}
    return {
        name: {key: value for key, value in facts.items() if key not in protocol} if isinstance(facts, dict) else facts
        for name, facts in protocol.items()
    }


def _named(protocol: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{protocol}_{name}": value for name, value in figures.items()}
