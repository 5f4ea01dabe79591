"""`semmae probe`: how well a linear head on a frozen encoder tells classes, by one of two protocols.

Their figures do not compare: crops shown 90 times teach a head more than one centre crop does, and a rate chosen
for this very encoder more than a fixed one.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from semmae.data.loaders import CropDataset
from semmae.data.manifest import ImageSet, write_skipped
from semmae.data.splits import held_out
from semmae.errors import UserError
from semmae.evaluation.accuracy import rank_report
from semmae.evaluation.classifying import classify_features
from semmae.evaluation.linear import BATCH, EPOCHS, RATES, Probed, probe_features
from semmae.formats.folders import digest, save_head
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.vit import Encoder
from semmae.options.fields import shared
from semmae.options.probe import ProbeOptions, Protocol
from semmae.options.shared import FeatureOptions
from semmae.reporting.results import draw_confusion, write_per_class, write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.precision import resolve_precision
from semmae.train.probe import ProbeRecipe, ProbeTask
from semmae.train.trainer import fit
from semmae.verbs.features import (
    Look,
    TrainVal,
    device_of,
    feature_size,
    image_features,
    open_encoder,
    open_train_val,
    pooled,
    pooling_for,
    told_encoder,
    untrained_like,
)
from semmae.verbs.training import check_batches, effective_batch, fit_options, scaled_rate, summarised, training_loader

_AT_A_TIME = 256  # images that the encoder sees when nothing is learned
_CROP_PCT: Mapping[Protocol, float] = {"features": 1.0, "mae": 224 / 256}  # the first as knn and evaluate have it

_log = logging.getLogger("semmae")


def probe(options: ProbeOptions) -> Path:
    """Measure an encoder by a linear head on its features: MAE's linear probe, or a fast one."""
    check_batches(options)
    encoder = open_encoder(options)
    sets = open_train_val(options, options.val_share)
    check_count(options, len(sets.train))
    chosen_on = choice_rows(options, sets.train)
    with run_folder(options) as out:
        options = pooled(options)
        look = partial(image_features, feature_options(options), encoder)
        head, figures = probe_encoder(options, encoder, sets, chosen_on, out, look)
        others = {}
        if options.untrained:
            new = untrained_like(encoder, options.seed)
            look = partial(image_features, feature_options(options), new)
            others["untrained"] = probe_encoder(options, new, sets, chosen_on, out / "untrained", look)[1]
        if is_rank_zero():
            protocol = probe_protocol(options, encoder, sets)
            save_head(head, out / "head", protocol)
            write_results(out, protocol, figures, others)
            write_skipped([sets.train, sets.val], out / "skipped.csv")
            write_report(out)
    return options.out


def check_count(options: ProbeOptions, images: int) -> None:
    """Refuse batches of a single image, by whose spread nothing can be divided."""
    if options.protocol == "mae" and effective_batch(images, options) < 2 * options.batches:
        raise UserError(
            f"--batch-size {options.batch_size}: of {images} images, in {options.batches} batches a step, each has a "
            "single one, and BatchNorm needs two; use a larger batch, fewer of them, or more images"
        )


def choice_rows(options: ProbeOptions, train: ImageSet) -> list[int]:
    """The training images on which the learning rate is chosen; none where it is told."""
    if options.protocol == "mae" or options.lr is not None:
        return []
    rows = rows_to_choose_on(options, train)
    if not rows:
        raise UserError(
            f"{options.data}: no class has two training images, so no learning rate can be chosen; give --lr"
        )
    return rows


def rows_to_choose_on(options: ProbeOptions, train: ImageSet) -> list[int]:
    """A share of each class of the training images; of a class of a single image nothing."""
    return held_out(train.labels or (), options.choice_share, options.seed)[1]


def probe_encoder(
    options: ProbeOptions, encoder: Encoder, sets: TrainVal, chosen_on: list[int], out: Path, look: Look
) -> tuple[LinearHead, dict[str, Any]]:
    """A head trained on an encoder, and what it knows of the images to measure on.

    Args:
        options: tell the protocol.
        encoder: frozen.
        sets: to learn from, and to measure on.
        chosen_on: rows of the training images, as of `choice_rows`.
        out: receives what is told of the classes, and a training's checkpoints.
        look: gives the encoder's features of the crop that the protocol measures on.
    """
    spec = HeadSpec(encoder.width, tuple(sets.classes), pooling_for(options))
    if options.protocol == "mae":
        head, tried = train_on_crops(options, encoder, sets, spec, out), {}
    else:
        probed = train_on_features(options, sets, spec, chosen_on, look, device_of(encoder))
        head, tried = probed.head, {"rate": probed.rate, "sweep": [list(pair) for pair in probed.sweep]}
    if not is_rank_zero():
        return head, {}
    answers = classify_features(head.cpu().eval(), look(sets.val), sets.val_targets)
    report = rank_report(answers.ranks, sets.val_targets, len(sets.classes))
    del report["per_class"]  # by name in a table of its own
    out.mkdir(exist_ok=True)
    write_per_class(out / "per_class.csv", sets.classes, answers.chosen, sets.val_targets)
    draw_confusion(out / "confusion.png", sets.classes, answers.chosen, sets.val_targets)
    return head, {**report, "images": len(sets.val), "classes": len(sets.classes), **tried}


def train_on_crops(options: ProbeOptions, encoder: Encoder, sets: TrainVal, spec: HeadSpec, out: Path) -> LinearHead:
    """MAE's linear probe in `out`, begun or gone on with."""
    torch.manual_seed(options.seed)
    head = LinearHead(spec)
    size, epochs = feature_size(options, encoder), options.epochs or 90
    dataset = CropDataset(sets.train, size, scale=(options.crop_scale, 1.0), seed=options.seed)
    rate = scaled_rate(options.blr, len(sets.train), options)
    loader = training_loader(dataset, options, rate=rate)
    recipe = ProbeRecipe(lr=rate, warmup_share=options.warmup_share)
    task = ProbeTask(encoder, head, sets.train_targets, recipe)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"epochs": epochs, "image_size": size, "encoder_digest": digest(encoder)}
    with summarised(out, "probe", sets.train, [sets.val], **facts):
        fit(task, loader, fit_options(options, out, "probe", epochs), options.resume)
    return head


def train_on_features(
    options: ProbeOptions, sets: TrainVal, spec: HeadSpec, chosen_on: list[int], look: Look, device: torch.device
) -> Probed:
    """The fast probe: on features that are computed once and kept in memory."""
    features, targets = look(sets.train), sets.train_targets
    if options.flip:
        features, targets = torch.cat([features, look(sets.train, flip=True)]), targets.repeat(2)
        chosen_on = [*chosen_on, *(row + len(sets.train) for row in chosen_on)]  # or the choice would see its images
    probed = probe_features(
        features,
        targets,
        spec,
        chosen_on,
        rates=RATES if options.lr is None else [options.lr],
        epochs=options.epochs or EPOCHS,
        seed=options.seed,
        device=device,
    )
    if options.lr is None and probed.rate in (RATES[0], RATES[-1]):
        end = "lowest" if probed.rate == RATES[0] else "highest"
        _log.info("the learning rate chosen, %s, is the %s tried: one beyond may be better (--lr)", probed.rate, end)
    return probed


def feature_options(options: ProbeOptions) -> FeatureOptions:
    """How the frozen encoder looks at whole images: the crop that the protocol measures on, few enough at a time."""
    batch, crop = min(options.batch_size, _AT_A_TIME), crop_of(options)
    return shared(FeatureOptions, options, batch_size=batch, crop_pct=crop)


def crop_of(options: ProbeOptions) -> float:
    """Share of the short side that is shown: as told, else as the protocol has it."""
    return options.crop_pct or _CROP_PCT[options.protocol]


def probe_protocol(options: ProbeOptions, encoder: Encoder, sets: TrainVal) -> dict[str, Any]:
    """How it is measured."""
    how: Mapping[str, Any]
    if options.protocol == "mae":
        how = {
            "method": "linear probe as in MAE: BatchNorm without affine, linear, LARS, random crops and flips",
            "epochs": options.epochs or 90,
            "batch_size": effective_batch(len(sets.train), options),
            "blr": options.blr,
            "warmup_share": options.warmup_share,
            "crop_scale": options.crop_scale,
        }
    else:
        how = {
            "method": "linear probe on features computed once: standardised, linear, SGD"
            + ("" if options.lr is not None else ", best of several learning rates"),
            "epochs": options.epochs or EPOCHS,
            "batch_size": BATCH,
            "rates": list(RATES) if options.lr is None else [options.lr],
            "rate_chosen_on": None
            if options.lr is not None
            else f"{options.choice_share:.0%} of each class of the training images".replace("%", " %"),
            "flip": options.flip,
        }
    return {
        **how,
        "pooling": pooling_for(options),
        "image_size": feature_size(options, encoder),
        "crop_pct": crop_of(options),
        "precision": resolve_precision(options.precision),
        "interval": "95 %, Wilson",
        "split": sets.split,
        **told_encoder(options, encoder),
        "data": options.data,
        "seed": options.seed,
    }
