# ruff: noqa: D103
"""The names of `train/batches.py` and `train/summary.py` for verbs that pass their options whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset
from semmae.options.fields import shared
from semmae.options.shared import TrainOptions
from semmae.run.config import kept_values
from semmae.train import batches
from semmae.train.loggers import logger_names
from semmae.train.summary import summarised as summarised
from semmae.train.trainer import FitOptions


def check_batches(options: TrainOptions) -> None:
    batches.check_batches(options, options.precision, options.logger)


def effective_batch(images: int, options: TrainOptions) -> int:
    return options.effective(images)


def scaled_rate(blr: float, images: int, options: TrainOptions) -> float:
    return options.scaled_rate(blr, images)


def training_loader(
    dataset: CropDataset | LabelledCrops,
    options: TrainOptions,
    classes: Sequence[int] | None = None,
    rate: float | None = None,
) -> DataLoader[dict[str, Any]]:
    return batches.training_loader(
        dataset, options, seed=options.seed, workers=options.workers, classes=classes, rate=rate
    )


def optimiser_steps(images: int, options: TrainOptions, epochs: int) -> int:
    return options.optimiser_steps(images, epochs)


def check_count(images: int, options: TrainOptions) -> None:
    options.check_images(images)


def fit_options(options: TrainOptions, out: Path, stage: str, epochs: int, clip: float = 0.0) -> FitOptions:
    names, config = logger_names(options.logger), kept_values(options)
    return shared(FitOptions, options, out=out, stage=stage, epochs=epochs, clip=clip, loggers=names, config=config)
