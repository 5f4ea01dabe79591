"""What the training verbs do alike: batch size, loader, summary."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset, EpochSampler, make_loader
from semmae.data.manifest import ImageSet, open_images, write_skipped
from semmae.errors import DiskError, UserError
from semmae.files import short, write_json
from semmae.options.shared import TrainOptions
from semmae.reporting.page import read_facts
from semmae.run.config import kept_values
from semmae.run.ranks import check_processes, is_rank_zero
from semmae.train.loggers import check_loggers, logger_names
from semmae.train.precision import check_precision
from semmae.train.trainer import FitOptions

_log = logging.getLogger("semmae")


def open_training_images(options: TrainOptions) -> ImageSet:
    """The images of --data, checked as what asks for them is; nothing is written but the manifest's cache."""
    check_batches(options)
    images = open_images(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    check_count(len(images), options)
    return images


def check_batches(options: TrainOptions) -> None:
    """Refuse arithmetic that is not to be had here, processes that were not started, batches that do not divide."""
    check_precision(options.precision)
    check_loggers(logger_names(options.logger))
    check_processes(options.nodes, options.devices)
    if options.batch_size % options.batches:
        factors = {"--nodes": options.nodes, "--devices": options.devices, "--accumulate": options.accumulate}
        parts = " · ".join(f"{name} {factor}" for name, factor in factors.items() if factor > 1 or name == "--devices")
        raise UserError(
            f"--batch-size {options.batch_size} is not divisible by {parts}; use a multiple of {options.batches}"
        )


def effective_batch(images: int, options: TrainOptions) -> int:
    """Images that one optimiser step takes: --batch-size, or fewer where there are fewer images."""
    if images >= options.batch_size:
        return options.batch_size
    return max(options.batches, images // options.batches * options.batches)


def scaled_rate(blr: float, images: int, options: TrainOptions) -> float:
    """The learning rate: `blr` is that of 256 images a step."""
    return blr * effective_batch(images, options) / 256


def training_loader(
    dataset: CropDataset | LabelledCrops,
    options: TrainOptions,
    classes: Sequence[int] | None = None,
    rate: float | None = None,
) -> DataLoader[dict[str, Any]]:
    """Shuffled whole batches, as many as make whole optimiser steps; with `classes`, each class equally often.

    With fewer images than one step takes, its batches shrink with a warning, which also tells the `rate` that follows
    them.
    """
    check_count(len(dataset), options)
    size = effective_batch(len(dataset), options)
    if size < options.batch_size and is_rank_zero():
        follows = "" if rate is None else f", and the learning rate with it to {rate:.3g}"
        images = len(dataset)
        _log.warning(
            "batch size %d is more than the %d images: shrunk to %d%s", options.batch_size, images, size, follows
        )
    sampler = EpochSampler(len(dataset), options.seed, multiple=size // options.processes, classes=classes)
    return make_loader(dataset, size // options.batches, sampler=sampler, workers=options.workers, drop_last=True)


def optimiser_steps(images: int, options: TrainOptions, epochs: int) -> int:
    """Optimiser steps of a whole training, by the loader of `training_loader`."""
    of_a_process = -(-images // options.processes)
    return epochs * (of_a_process // (effective_batch(images, options) // options.processes))


def check_count(images: int, options: TrainOptions) -> None:
    """Refuse to make more batches of a step than there are images."""
    most = -(-images // options.processes)  # of each device; where images are fewer than devices, some are seen twice
    if options.accumulate > most:
        raise UserError(f"--accumulate {options.accumulate}: more batches a step than images a device; at most {most}")


def fit_options(options: TrainOptions, out: Path, stage: str, epochs: int, clip: float = 0.0) -> FitOptions:
    """The Trainer's options of a verb."""
    return FitOptions(
        out=out,
        stage=stage,
        epochs=epochs,
        precision=options.precision,
        devices=options.devices,
        nodes=options.nodes,
        clip=clip,
        accumulate=options.accumulate,
        loggers=logger_names(options.logger),
        config=kept_values(options),
        callbacks=options.callbacks,
    )


@contextmanager
def summarised(
    out: Path, stage: str, images: ImageSet, also: Sequence[ImageSet] = (), /, **facts: Any
) -> Iterator[None]:
    """Write skipped.csv before, and summary.json before and after, one stage of a run; minutes add up over resumes.

    In skipped.csv are those of `also` too, the images that the stage is measured on.

    Raises:
        UserError: the stage was begun with other images; so it is with every fact named `…_digest`.
    """
    path, started = out / "summary.json", time.monotonic()
    facts = {"manifest": images.digest, **facts}
    earlier = read_facts(path)
    _check_unchanged(out, earlier, facts)
    before = earlier.get("minutes", 0.0)
    told = {"images": len(images), "skipped": len(images.manifest.skipped), "classes": len(set(images.labels or ()))}
    summary = {"stage": stage, **told, **facts}

    def write(finished: bool) -> None:
        if is_rank_zero():
            minutes = round(before + (time.monotonic() - started) / 60, 3)
            write_json(path, summary | {"finished": finished, "minutes": minutes})

    write(finished=False)  # already now: a killed run, too, knows what it was begun with
    if is_rank_zero():
        write_skipped([images, *also], out / "skipped.csv")
    try:
        yield
    except BaseException:
        with suppress(DiskError):  # on a full disk it is the first fault that counts
            write(finished=False)
        raise
    write(finished=True)


def _check_unchanged(out: Path, earlier: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    digests = [name for name in facts if name == "manifest" or name.endswith("_digest")]
    changed = [
        f"{name.removesuffix('_digest')} {short(str(earlier[name]))}, now {short(str(facts[name]))}"
        for name in digests
        if name in earlier and earlier[name] != facts[name]
    ]
    if changed:
        raise UserError(f"{out}: was begun with {'; '.join(changed)}; restore what has changed, or use another --out")
