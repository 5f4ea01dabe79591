"""`semmae segment`: semantic segmentation on an encoder, fine-tuned with UPerNet or frozen below a linear head."""

import logging
from pathlib import Path

from semmae.data.classes import check_val_share, unlearned_rows
from semmae.data.coding import Coding
from semmae.data.segmentation import MeasuredData, SegmentationData, is_divided, open_measured, open_segmentation
from semmae.errors import UserError
from semmae.evaluation.features import open_encoder
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.segment import Segment, Windows
from semmae.evaluation.protocols.shape import Measured
from semmae.formats.folders import read_learned, read_segmenter
from semmae.formats.open import find_segmenter
from semmae.models.segmenter import Segmenter
from semmae.names import shown
from semmae.objects import described
from semmae.options.fields import shared
from semmae.options.segment import SegmentOptions, SegmentRecipe
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.sizes import Size
from semmae.train.batches import Training
from semmae.train.precision import check_precision
from semmae.verbs.channels import seen_by
from semmae.verbs.measuring import facts_of, measure_encoder, write_figures

_log = logging.getLogger("semmae")


def segment(options: SegmentOptions) -> Path:
    """Train semantic segmentation on an encoder, or only measure it: mIoU, IoU of each class, pictures."""
    if options.eval_only:
        return measure_only(options)
    protocol_of(options, 0).check_settings()
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return measure_encoder(
        run_folder(options),
        protocol_of(options, options.image_size or encoder.spec.image_size),
        encoder,
        lambda: open_data(options, channels=encoder.spec.channels),
        facts_of(options, encoder),
        untrained=options.untrained,
    )


def protocol_of(options: SegmentOptions, image_size: Size) -> Segment:
    """The protocol at an image size."""
    return Segment(
        shared(SegmentRecipe, options),
        shared(Training, options, hyperparameters=kept_values(options)),
        shared(Windows, options, image_size=image_size),
        described(options.encoder),
    )


def open_data(options: SegmentOptions, annotations: Path | None = None, *, channels: int) -> SegmentationData:
    """The images and annotations of --data, all pairs checked; with `annotations`, --data holds the images alone."""
    if is_divided(options.data, annotations):
        check_val_share(options.val_share, options.data)
    return open_segmentation(
        options.data,
        Coding(options.ignore_index, options.reduce_zero_label),
        masks=annotations,
        val_share=options.val_share,
        limit=options.limit,
        seed=options.seed,
        workers=options.num_workers,
        check=options.check,
        channels=channels,
    )


def measure_only(options: SegmentOptions) -> Path:
    """Measure the network of the run that --encoder names, on images that it was not trained on."""
    check_precision(options.precision)
    folder = find_segmenter(options.encoder)
    segmenter, learned = read_segmenter(folder), read_learned(folder)
    if learned is None:
        _log.warning("%s: does not say its training images, which may be among those measured", options.encoder)
    with seen_by(segmenter.encoder, options.encoder):
        data = open_measured(
            options.data,
            Coding(options.ignore_index, options.reduce_zero_label),
            lambda images: unlearned_rows(images, learned or ()),
            limit=options.limit,
            seed=options.seed,
            workers=options.num_workers,
            check=options.check,
            channels=segmenter.encoder.spec.channels,
        )
    check_same_classes(options, segmenter, data)
    windows = shared(Windows, options, image_size=segmenter.encoder.spec.image_size)
    about = {**windows.describe(segmenter.spec.head, data), "preset": options.preset}

    def measured(out: Path) -> dict[str, Measured]:
        _log.info("%s: measured on %s", options.data, data.split)
        return {OWN: windows.measure(segmenter, data.val)}

    return write_figures(run_folder(options), measured, about | facts_of(options, segmenter.encoder), data.sets)


def check_same_classes(options: SegmentOptions, segmenter: Segmenter, data: MeasuredData) -> None:
    """Refuse to measure a segmenter on other classes than it knows; annotations without names only need as many."""
    known = segmenter.spec.classes
    if data.names == known or (not data.named and len(data.names) <= len(known)):
        return
    strange = [name for name in data.names if name not in known]
    differs = f"{shown(strange[0])} is not among them" if strange else "they are numbered otherwise"
    raise UserError(
        f"--data {described(options.data)}: {len(data.names)} classes, {options.encoder} knows {len(known)}, and "
        f"{differs}; give data of the classes it was trained on"
    )
