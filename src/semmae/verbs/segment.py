"""`semmae segment`: semantic segmentation on an encoder, fine-tuned with UPerNet or frozen below a linear head."""

import dataclasses
import logging
from pathlib import Path
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer

from semmae.data.coding import Coding
from semmae.data.loaders import make_loader
from semmae.data.manifest import write_skipped
from semmae.data.segment_crops import Augmentation, SegmentCrops, StepSampler
from semmae.data.segmentation import (
    MeasuredData,
    SegmentationData,
    is_divided,
    open_measured,
    open_segmentation,
)
from semmae.errors import UserError
from semmae.formats.folders import check_saveable, digest, read_learned, read_segmenter, save_segmenter
from semmae.formats.open import find_segmenter
from semmae.models.classifier import set_drop_path
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder
from semmae.options.segment import SegmentOptions
from semmae.reporting.results import OWN
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.segment import SegmentRecipe, SegmentTask
from semmae.train.trainer import Evaluation, fit
from semmae.verbs.features import (
    check_val_share,
    image_keys,
    open_encoder,
    told_encoder,
    unlearned_rows,
    untrained_like,
)
from semmae.verbs.segment_options import check_encoder, check_segment, rate_of, read_blocks, rounds
from semmae.verbs.segment_results import Found, measure_segmenter, protocol, write_all
from semmae.verbs.training import fit_options, summarised

UNTRAINED = "untrained"

_log = logging.getLogger("semmae")


def segment(options: SegmentOptions) -> Path:
    """Train semantic segmentation on an encoder, or only measure it: mIoU, IoU of each class, pictures."""
    check_segment(options)
    if options.eval_only:
        return measure_only(options)
    segmenter, data, measured = open_new(options)
    with run_folder(options) as out:
        methods = train_methods(options, segmenter, data)
        if is_rank_zero():
            size = segmenter.encoder.spec.image_size
            write_all(out, protocol(options, segmenter.spec.head, size, data) | measured, methods, data.val)
            write_report(out)
    return options.out


def measure_only(options: SegmentOptions) -> Path:
    """Measure the network of the run that --encoder names, on images that it was not trained on."""
    folder = find_segmenter(options.encoder)
    segmenter, learned = read_segmenter(folder), read_learned(folder)
    if learned is None:
        _log.warning("%s: does not tell its training images, which may be among those measured", options.encoder)
    data = open_measured(
        options.data,
        _coding(options),
        lambda images: unlearned_rows(images, learned or ()),
        limit=options.limit,
        seed=options.seed,
        workers=options.workers,
    )
    check_classes(options, segmenter, data)
    measured = told_encoder(options, segmenter.encoder)
    with run_folder(options) as out:
        _log.info("%s: measured on %s", options.data, data.split)
        methods = {OWN: measure_segmenter(options, segmenter, data.val)}
        how = protocol(options, segmenter.spec.head, segmenter.encoder.spec.image_size, data)
        write_all(out, how | measured, methods, data.val)
        write_skipped([data.val.images], out / "skipped.csv")
        write_report(out)
    return options.out


def open_new(options: SegmentOptions) -> tuple[Segmenter, SegmentationData, dict[str, str]]:
    """The encoder with a new head, for images of the size to train at, the data, and what is told of the encoder.

    Encoder and data are checked.
    """
    encoder = open_encoder(options)
    measured = told_encoder(options, encoder)
    size = check_encoder(options, encoder)
    check_saveable(encoder)
    encoder.set_image_size(size)
    data = open_data(options)
    return new_segmenter(options, encoder, data.names), data, measured


def open_data(options: SegmentOptions, masks: Path | None = None) -> SegmentationData:
    """The images and masks of --data, all pairs checked; with `masks`, --data holds the images alone."""
    if is_divided(options.data, masks):
        check_val_share(options.val_share, options.data)
    return open_segmentation(
        options.data,
        _coding(options),
        masks=masks,
        val_share=options.val_share,
        limit=options.limit,
        seed=options.seed,
        workers=options.workers,
    )


def _coding(options: SegmentOptions) -> Coding:
    return Coding(options.ignore_index, options.reduce_zero_label)


def check_classes(options: SegmentOptions, segmenter: Segmenter, data: MeasuredData) -> None:
    """Refuse to measure a segmenter on other classes than it knows; masks that come without names only need as many."""
    known = segmenter.spec.classes
    if data.names == known or (not data.named and len(data.names) <= len(known)):
        return
    strange = [name for name in data.names if name not in known]
    told = f"{strange[0]!r} is not among them" if strange else "they are numbered otherwise"
    raise UserError(
        f"--data {options.data}: {len(data.names)} classes, {options.encoder} knows {len(known)}, and {told}; "
        "give data of the classes it was trained on"
    )


def train_methods(options: SegmentOptions, segmenter: Segmenter, data: SegmentationData) -> dict[str, Found]:
    """Train, save and measure the segmenter, and one on an untrained encoder where that is asked for."""
    found = {OWN: train_segmenter(options, options.out, segmenter, data)}
    if options.untrained:
        blank = new_segmenter(options, untrained_like(segmenter.encoder, options.seed), data.names)
        found[UNTRAINED] = train_segmenter(options, options.out / UNTRAINED, blank, data)
    return {name: one for name, one in found.items() if one is not None}


def new_segmenter(options: SegmentOptions, encoder: Encoder, classes: tuple[str, ...]) -> Segmenter:
    """The encoder with a new head."""
    torch.manual_seed(options.seed)
    if options.head == "upernet":
        set_drop_path(cast(VisionTransformer, encoder.vit), options.drop_path)
    spec = SegmenterSpec(
        classes,
        options.head,
        read_blocks(options, encoder.spec.depth) if options.head == "upernet" else (),
        options.decoder_channels or _usual_channels(encoder.width),
        auxiliary=options.head == "upernet" and options.aux_weight > 0,
    )
    segmenter = Segmenter(encoder, spec)
    segmenter.checkpointing = options.checkpointing
    return segmenter.train()  # Lightning leaves every layer in the mode it comes in


def _usual_channels(width: int) -> int:
    return 512 if width >= 768 else 256 if width >= 384 else 128


def train_segmenter(options: SegmentOptions, out: Path, segmenter: Segmenter, data: SegmentationData) -> Found | None:
    """Train in `out`, begun or gone on with, write `segmenter/`, and tell what the last validation found.

    None in processes other than the first one.
    """
    count = rounds(options)
    spec = segmenter.encoder.spec
    crops = SegmentCrops(data.train, augmentation(options, spec.image_size, spec.mean), options.seed)
    sampler = StepSampler(len(crops), options.seed, steps=options.steps // count, batch_size=options.batch_size)
    together = options.batch_size // options.batches
    loader = make_loader(crops, together, sampler=sampler, workers=options.workers, drop_last=True)
    last: list[Found] = []

    def validated() -> dict[str, float]:
        last[:] = [measure_segmenter(options, segmenter, data.val)]
        return {name: last[0].figures[name] for name in ("miou", "pixel_accuracy")}

    facts = {"steps": options.steps, "head": options.head, "masks_digest": data.digest}
    facts |= {"encoder_digest": digest(segmenter.encoder)}  # as it is before it is trained
    out.mkdir(parents=True, exist_ok=True)
    stage = "segment" if out == options.out else UNTRAINED
    with summarised(out, stage, data.train.images, [data.val.images], **facts):
        how = fit_options(options, out, stage, count, options.clip)
        task = SegmentTask(segmenter, recipe_of(options))
        fit(task, loader, dataclasses.replace(how, unit="round"), options.resume, Evaluation(validated, 1))
        if not is_rank_zero():
            return None
        about = {"encoder": options.encoder, "steps": options.steps}
        save_segmenter(segmenter, out / "segmenter", about, image_keys(data.train.images))
    # A run resumed at its end has validated nothing.
    return last[0] if last else measure_segmenter(options, segmenter, data.val)


def augmentation(options: SegmentOptions, size: int, mean: tuple[float, float, float]) -> Augmentation:
    """What happens to an image before it is trained on; around small ones there is the mean colour."""
    red, green, blue = (round(255 * value) for value in mean)
    scales = (options.min_scale, options.max_scale)
    return Augmentation(size, scales, options.most_of_one, options.colour, (red, green, blue))


def recipe_of(options: SegmentOptions) -> SegmentRecipe:
    """The options as the task wants them."""
    return SegmentRecipe(
        lr=rate_of(options),
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        warmup_share=options.warmup_share,
        auxiliary_weight=options.aux_weight,
        seed=options.seed,
    )
