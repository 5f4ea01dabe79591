"""What a training is given beside its task and its images: how a step is divided, where it is computed, its loader."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset, make_loader
from semmae.data.samplers import EpochSampler
from semmae.errors import UserError
from semmae.names import shown
from semmae.options.fields import Options, shared
from semmae.options.shared import (
    Batching,
    LoggerOptions,
    PrecisionOptions,
    SeedOptions,
    StrategyOptions,
    WorkerOptions,
)
from semmae.run.ranks import check_processes, is_rank_zero
from semmae.train.fsdp import can_shard
from semmae.train.loggers import check_loggers, logger_names
from semmae.train.precision import check_precision

_log = logging.getLogger("semmae")


@dataclass(frozen=True, kw_only=True)
class Training(LoggerOptions, Batching, PrecisionOptions, StrategyOptions, WorkerOptions, SeedOptions):
    """What every training is given, whatever it trains."""

    resume: bool
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)  # what loggers show of the run

    @classmethod
    def alone(cls, options: Options, **own: Any) -> "Training":
        """That of the first process, while any others that were started with it wait for what it makes."""
        return shared(cls, options, nodes=1, devices=1, strategy="ddp", gradients="float32", **own)

    @property
    def loggers(self) -> tuple[str, ...]:
        """Names among `LOGGERS`."""
        return logger_names(self.logger)

    def check(self) -> None:
        """Refuse what is not to be had here: arithmetic, loggers, callbacks, processes; batches that do not divide."""
        check_precision(self.precision)
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise UserError("--strategy fsdp: computes in bf16 or float32, not fp16; use --precision bf16")
        if self.strategy == "fsdp" and self.gradients == "bf16":
            raise UserError("--gradients bf16: of ddp; --strategy fsdp sums gradients in float32; leave one out")
        if self.strategy == "fsdp" and not can_shard():
            raise UserError(f"--strategy fsdp: needs torch 2.7, this is {torch.__version__}; update it, or use ddp")
        check_loggers(self.loggers)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise UserError(
                    f"callbacks {shown(callback)}: no callback of Lightning; give instances of "
                    "pytorch_lightning.Callback"
                )
        check_processes(self.nodes, self.devices)
        self.check_division()

    def images_of_a_step(self, images: int, rate: float | None = None) -> int:
        """--batch-size, or with fewer images as many as there are; then a warning, which names the `rate` as well."""
        size = self.effective(images)
        if size < self.batch_size and is_rank_zero():
            follows = "" if rate is None else f", and the learning rate with it to {rate:.3g}"
            _log.warning(
                "batch size %d is more than the %d images: shrunk to %d%s", self.batch_size, images, size, follows
            )
        return size

    def loader(
        self,
        dataset: CropDataset | LabelledCrops,
        rate: float | None = None,
        classes: Sequence[int] | None = None,
    ) -> DataLoader[dict[str, Any]]:
        """Shuffled whole batches, as many as make whole optimiser steps; with `classes`, each class equally often.

        With fewer images than one step takes, its batches shrink with a warning, which also names the `rate` that
        follows them.
        """
        images = len(dataset)
        self.check_images(images)
        size = self.images_of_a_step(images, rate)
        multiple = size // self.processes
        sampler = EpochSampler(images, self.seed, multiple=multiple, classes=classes, shards=dataset.images.shards)
        return make_loader(
            dataset, size // self.batches, sampler=sampler, workers=self.num_workers, drop_last=True,
            sharing=self.devices,
        )  # fmt: skip
