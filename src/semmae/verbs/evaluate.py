"""`semmae evaluate`: everything that an encoder can be measured by without fine-tuning it, in one table.

Notable here:
- one pass of the encoder over each set of images serves k-NN and the probe;
- the figures of a protocol are kept as soon as it is finished, in figures.json: a run that was stopped continues after
  the last finished one, and its table is the one of a run that was not stopped.
"""

import functools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.classes import TrainVal
from semmae.data.manifest import ImageSet, write_skipped
from semmae.data.segmentation import SegmentationData
from semmae.data.splits import side_by_side
from semmae.errors import UserError
from semmae.evaluation.features import View, image_features, open_encoder
from semmae.evaluation.parts import pixel_truth
from semmae.evaluation.protocols import OWN, UNTRAINED
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.parts import Parts, TrueParts
from semmae.evaluation.protocols.probe import Probe, choice_rows
from semmae.evaluation.protocols.segment import Segment
from semmae.evaluation.several import Step, describe_by, finished_figures, measure_by
from semmae.formats.folders import digest
from semmae.models.fresh import fresh_like
from semmae.names import user_path
from semmae.objects import described
from semmae.options.evaluate import EvaluateOptions
from semmae.options.fields import shared
from semmae.options.knn import KnnRecipe
from semmae.options.probe import USUAL_EPOCHS, ProbeRecipe
from semmae.options.segment import SegmentOptions
from semmae.reporting.results import write_comparison, write_details
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.run.ranks import check_alone
from semmae.train.precision import check_precision
from semmae.verbs import segment as segment_verb
from semmae.verbs.channels import seen_by
from semmae.verbs.measuring import divided, facts_of, open_class_sets, view_of

_log = logging.getLogger("semmae")


class EvaluationData(NamedTuple):
    """What is known of the images, by which an encoder can be measured."""

    classes: TrainVal | None
    probed: bool  # whether the probe's rate can be chosen on images of the classes
    pixels: SegmentationData | None
    parts: TrueParts | None  # of the images that `pixels` measures on

    @property
    def sets(self) -> list[ImageSet]:
        """The images to learn from and to measure on, of classes and of pixels."""
        found = [] if self.classes is None else self.classes.sets
        return found + ([] if self.pixels is None else self.pixels.sets)

    @property
    def class_digests(self) -> dict[str, Any]:
        """By which a run knows that what it measures classes by has not changed."""
        return {} if self.classes is None else {"class_images": [images.digest for images in self.classes.sets]}

    @property
    def pixel_digests(self) -> dict[str, Any]:
        """Likewise, pixels and parts: apart from those of classes, for either may be added later."""
        if self.pixels is None:
            return {}
        return {"pixel_images": [images.digest for images in self.pixels.sets], "masks": self.pixels.digest}


def evaluate(options: EvaluateOptions) -> Path:
    """Measure an encoder by k-NN, linear probe and, where annotations are given, segmentation and part quality."""
    check_precision(options.precision)
    check_alone(options.devices)
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    found = with_annotations(options)
    view = view_of(options, encoder)
    # Of the devices, which compute features, the head is trained by one.
    own: dict[str, Any] = {"head": "linear", "batch_size": 16, "val_steps": options.steps, "pictures": 0, "devices": 1}
    linear = shared(SegmentOptions, found, **own)
    segmenting = segment_verb.protocol_of(linear, view.image_size)
    if found.masks is not None:
        segmenting.check_encoder(encoder)
    with seen_by(encoder, options.encoder):
        data = open_data(found, encoder.spec.channels)
    digests = {**data.class_digests, **data.pixel_digests}
    if options.resume:  # refused before anything in the folder is touched
        finished_figures(options.out, {"encoder_digest": digest(encoder), **digests})
        finished_figures(options.out / UNTRAINED, digests)
    facts = facts_of(found, encoder)
    steps = functools.partial(steps_of, options, view, segmenting, data)
    measured = functools.partial(
        measure_by,
        digests=digests,
        resume=options.resume,
        written=lambda folder, figures: write_details(folder, {OWN: figures}),
    )
    with run_folder(options) as out:
        methods = {OWN: measured(steps(), encoder, out)}
        if data.pixels is not None:
            # As segmentation leaves it, also where a resumed run has found those figures finished.
            segmenting.prepare(encoder)
        if options.untrained:
            methods[UNTRAINED] = measured(steps(), fresh_like(encoder, options.seed), out / UNTRAINED)
        write_comparison(out, describe_by(steps(), facts), methods)
        write_skipped(data.sets, out / "skipped.csv")
        write_report(out)
    return options.out


def with_annotations(options: EvaluateOptions) -> EvaluateOptions:
    """Where --data holds images and annotations side by side, these two as --data and --masks."""
    if options.masks is not None or not isinstance(options.data, str | Path):
        return options
    found = side_by_side(user_path(options.data, "--data"))
    return options if found is None else replace(options, data=str(found[0]), masks=found[1])


def open_data(options: EvaluateOptions, channels: int) -> EvaluationData:
    """Classes and annotations of the images, all of them checked; one of the two there must be."""
    classes = open_class_data(options, channels)
    probed = classes is not None and bool(choice_rows(classes.train, shared(ProbeRecipe, options)))
    if classes is not None and not probed:
        _log.warning(
            "%s: no class has two training images to choose the probe's learning rate on, so no probe is measured "
            "(semmae probe --lr trains one)",
            described(options.data),
        )
    if options.masks is None:
        _log.info("%s: no annotations, so neither segmentation nor parts are measured", described(options.data))
        return EvaluationData(classes, probed, None, None)
    pixels = segment_verb.open_data(shared(SegmentOptions, options), options.masks, channels=channels)
    parts = TrueParts(pixels.val.images, pixel_truth(pixels.val, seed=options.seed))
    return EvaluationData(classes, probed, pixels, parts)


def open_class_data(options: EvaluateOptions, channels: int) -> TrainVal | None:
    """The images by their classes; None where they have none to measure by, but annotations."""
    name = described(options.data)
    sets = open_class_sets(options, channels)
    labels = [images.labels or () for images in sets]
    if not all(labels) or len(set().union(*labels)) < 2:
        if options.masks is None:
            note = next((images.source.class_note for images in sets if images.source.class_note), "")
            raise UserError(
                f"{name}: neither classes nor annotations to measure by; "
                f"{note or sets[0].source.class_remedy}, or give --masks"
            )
        _log.info("%s: no classes, so neither k-NN nor a probe is measured", name)
        return None
    if options.masks is not None and (reason := _no_classes(labels)):
        _log.warning("%s: %s, so neither k-NN nor a probe is measured", name, reason)
        return None
    return divided(options, sets)


def _no_classes(labels: Sequence[Sequence[str]]) -> str:
    """Why folders of images that have annotations may be no classes, but sequences or towns; empty where they may."""
    if len(labels) == 1:
        return "a single image of every class" if max(Counter(labels[0]).values()) < 2 else ""
    train, val = map(set, labels)
    return "the splits share no class" if not train & val else "a single class" if len(train) < 2 else ""


def steps_of(options: EvaluateOptions, view: View, segmenting: Segment, data: EvaluationData) -> Iterator[Step]:
    """What the data allow to measure an encoder by."""
    # Kept for both protocols: features of a set of images are computed once.
    embed = functools.cache(image_features)
    if data.classes is not None:
        yield Step(Knn(view, shared(KnnRecipe, options), embed), data.classes)
        if data.probed:
            yield Step(Probe(view, USUAL_EPOCHS["features"], shared(ProbeRecipe, options), embed), data.classes)
    embed.cache_clear()  # of a million images they are gigabytes
    if data.parts is not None:
        yield Step(Parts(view, seed=options.seed), data.parts)
    if data.pixels is not None:
        # Last, for it may resample the encoder's positions.
        yield Step(segmenting, data.pixels)
