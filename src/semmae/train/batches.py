"""How images make optimiser steps: batch size, processes, rates, the loader."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset, EpochSampler, make_loader
from semmae.errors import UserError
from semmae.run.ranks import check_processes, is_rank_zero
from semmae.train.precision import Precision, check_precision
from semmae.train.trainer import FitOptions

_log = logging.getLogger("semmae")


@dataclass(frozen=True)
class Training:
    """What every training is given beside task and images: sizes of batches, processes, arithmetic."""

    batch_size: int  # images per optimiser step, over all devices
    accumulate: int = 1  # batches that make one step on each device
    devices: int = 1  # of each node
    nodes: int = 1
    precision: Precision = "auto"
    workers: int = 2
    seed: int = 0
    resume: bool = False

    @property
    def processes(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices

    @property
    def batches(self) -> int:
        """Batches that make one optimiser step, over all devices."""
        return self.processes * self.accumulate

    def check(self) -> None:
        """Refuse arithmetic that is not to be had here, processes that were not started, batches that do not divide."""
        check_precision(self.precision)
        check_processes(self.nodes, self.devices)
        if self.batch_size % self.batches:
            factors = {"--nodes": self.nodes, "--devices": self.devices, "--accumulate": self.accumulate}
            shown = [f"{name} {factor}" for name, factor in factors.items() if factor > 1 or name == "--devices"]
            raise UserError(
                f"--batch-size {self.batch_size} is not divisible by {' · '.join(shown)}; use a multiple of "
                f"{self.batches}"
            )

    def check_count(self, images: int) -> None:
        """Refuse to make more batches of a step than there are images."""
        most = -(-images // self.processes)  # of each device; of fewer images than devices some are seen twice
        if self.accumulate > most:
            raise UserError(f"--accumulate {self.accumulate}: more batches a step than images a device; at most {most}")

    def effective_batch(self, images: int) -> int:
        """Images that one optimiser step takes: the batch size, or fewer where there are fewer images."""
        if images >= self.batch_size:
            return self.batch_size
        return max(self.batches, images // self.batches * self.batches)

    def rate(self, blr: float, images: int) -> float:
        """The learning rate: `blr` is that of 256 images a step."""
        return blr * self.effective_batch(images) / 256

    def steps(self, images: int, epochs: int) -> int:
        """Optimiser steps of a whole training, by the loader of `loader`."""
        of_a_process = -(-images // self.processes)
        return epochs * (of_a_process // (self.effective_batch(images) // self.processes))

    def loader(
        self, dataset: CropDataset | LabelledCrops, rate: float, classes: Sequence[int] | None = None
    ) -> DataLoader[dict[str, Any]]:
        """Shuffled whole batches, as many as make whole optimiser steps; with `classes`, each class equally often.

        With fewer images than one step takes, its batches shrink with a warning, which also names the `rate` that
        follows them.
        """
        self.check_count(len(dataset))
        size = self.effective_batch(len(dataset))
        if size < self.batch_size and is_rank_zero():
            _log.warning(
                "batch size %d is more than the %d images: shrunk to %d, and the learning rate with it to %.3g",
                *(self.batch_size, len(dataset), size, rate),
            )
        sampler = EpochSampler(len(dataset), self.seed, multiple=size // self.processes, classes=classes)
        return make_loader(dataset, size // self.batches, sampler=sampler, workers=self.workers, drop_last=True)

    def fit_options(self, out: Path, stage: str, epochs: int, clip: float = 0.0, unit: str = "epoch") -> FitOptions:
        """The Trainer's options of one stage of a run."""
        return FitOptions(
            out=out,
            stage=stage,
            epochs=epochs,
            precision=self.precision,
            devices=self.devices,
            nodes=self.nodes,
            clip=clip,
            accumulate=self.accumulate,
            unit=unit,
        )
