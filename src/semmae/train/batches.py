"""How a training is fed: what there must be for its batches, and their loader."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset, EpochSampler, make_loader
from semmae.options.fields import shared
from semmae.options.shared import Batching, Precision
from semmae.run.ranks import check_processes, is_rank_zero
from semmae.train.loggers import check_loggers, logger_names
from semmae.train.precision import check_precision
from semmae.train.trainer import FitOptions

_log = logging.getLogger("semmae")


def check_batches(batching: Batching, precision: Precision, logger: str) -> None:
    """Refuse arithmetic that is not to be had here, loggers that are not installed, processes that were not started,
    batches that do not divide.
    """
    check_precision(precision)
    check_loggers(logger_names(logger))
    check_processes(batching.nodes, batching.devices)
    batching.check()


def training_loader(
    dataset: CropDataset | LabelledCrops,
    batching: Batching,
    *,
    seed: int,
    workers: int,
    classes: Sequence[int] | None = None,
    rate: float | None = None,
) -> DataLoader[dict[str, Any]]:
    """Shuffled whole batches, as many as make whole optimiser steps; with `classes`, each class equally often.

    With fewer images than one step takes, its batches shrink with a warning, which also names the `rate` that follows
    them.
    """
    images = len(dataset)
    batching.check_images(images)
    size = batching.effective(images)
    if size < batching.batch_size and is_rank_zero():
        follows = "" if rate is None else f", and the learning rate with it to {rate:.3g}"
        _log.warning(
            "batch size %d is more than the %d images: shrunk to %d%s", batching.batch_size, images, size, follows
        )
    sampler = EpochSampler(images, seed, multiple=size // batching.processes, classes=classes)
    return make_loader(dataset, size // batching.batches, sampler=sampler, workers=workers, drop_last=True)


@dataclass(frozen=True, kw_only=True)
class Training(Batching):
    """All that a training is given beside its task and its images."""

    precision: Precision = "auto"
    workers: int = 2
    seed: int = 0
    resume: bool = False
    loggers: tuple[str, ...] = ("tensorboard",)
    config: Mapping[str, Any] = field(default_factory=dict)  # what loggers show as the run's configuration
    callbacks: tuple[Any, ...] = ()

    def loader(
        self, dataset: CropDataset | LabelledCrops, rate: float, classes: Sequence[int] | None = None
    ) -> DataLoader[dict[str, Any]]:
        """As `training_loader`."""
        return training_loader(dataset, self, seed=self.seed, workers=self.workers, classes=classes, rate=rate)

    def fit_options(self, out: Path, stage: str, epochs: int, clip: float = 0.0, unit: str = "epoch") -> FitOptions:
        """The Trainer's options of one stage of a run."""
        return shared(FitOptions, self, out=out, stage=stage, epochs=epochs, clip=clip, unit=unit)
