"""The one place that builds a Lightning Trainer, and what it reports while it runs.

Notable here:
- `fit` runs a task to the end, or from its last checkpoint on; Lightning keeps loop, optimiser and
  schedule state, loaded with `weights_only=True`, so that a checkpoint executes nothing;
- `Meter` writes metrics.jsonl and TensorBoard events and the line on the terminal, every `LOG_EVERY`
  steps: between two of these nothing waits for the device;
- a loss that is not finite stops the run before it can reach a checkpoint.
"""

import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.errors import UserError
from semmae.tasks.checkpoints import BesideCheckpointIO

LOG_EVERY = 10  # steps
LAST = "last.ckpt"
_PATIENCE = timedelta(days=7)  # that processes wait for each other

Precision = Literal["auto", "float32", "bf16", "fp16"]
_LIGHTNING_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

_log = logging.getLogger("semmae")


class Interrupted(Exception):
    """Ctrl-C during training: what was saved can be continued."""


@dataclass(frozen=True)
class FitOptions:
    """What the Trainer has to know besides task and data."""

    out: Path  # receives checkpoints/, metrics.jsonl and TensorBoard events
    stage: str  # name beside every metric
    epochs: int
    precision: Precision = "auto"
    devices: int = 1
    clip: float | None = None  # norm of the gradient


@dataclass(frozen=True)
class Evaluation:
    """What to measure while training goes on: name → value, to stand among the metrics."""

    measure: Callable[[], dict[str, float]]
    every: int  # epochs; the last one is measured too


def fit(
    task: pl.LightningModule,
    loader: DataLoader[dict[str, Any]],
    options: FitOptions,
    resume: bool,
    evaluation: Evaluation | None = None,
) -> None:
    """Train to the last epoch; with `resume` from `out/checkpoints/last.ckpt` on, if there is one.

    Raises:
        Interrupted: Ctrl-C was pressed; the last finished epoch is kept.
        UserError: the loss is not finite, or the checkpoint is damaged.
    """
    last = options.out / "checkpoints" / LAST
    keep = ModelCheckpoint(last.parent, filename=last.stem, save_on_train_epoch_end=True, enable_version_counter=False)
    with warnings.catch_warnings():
        # Lightning's advice on worker counts and log intervals is not the user's to act on.
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.optim.lr_scheduler")
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            accelerator="auto",
            devices=options.devices,
            # After training the first process may label images for hours, and the others wait for it.
            strategy=DDPStrategy(timeout=_PATIENCE) if options.devices > 1 else "auto",
            precision=_LIGHTNING_PRECISION[resolve_precision(options.precision)],  # type: ignore[arg-type]
            max_epochs=options.epochs,
            gradient_clip_val=options.clip,
            logger=TensorBoardLogger(options.out, name="", version="tensorboard"),
            callbacks=[Meter(options, evaluation), keep],
            plugins=BesideCheckpointIO(),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the sampler deals rows to ranks itself
        )
        previous = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(task, loader, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
        except SystemExit as stop:  # how Lightning answers Ctrl-C
            raise Interrupted from stop
        finally:
            signal.signal(signal.SIGINT, previous)
        if trainer.interrupted:
            raise Interrupted


def is_rank_zero() -> bool:
    """Whether this process writes what all processes share."""
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def barrier() -> None:
    """Wait for the other processes of this run, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def resolve_precision(precision: Precision) -> Literal["float32", "bf16", "fp16"]:
    """`auto` is bf16 on a GPU that computes in it, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


class Meter(pl.Callback):
    """Measures speed and data wait, checks and averages the loss, writes metrics and progress."""

    def __init__(self, options: FitOptions, evaluation: Evaluation | None = None) -> None:
        self.options = options
        self.evaluation = evaluation
        self._losses: list[Tensor] = []
        self._images = 0
        self._waited = 0.0
        self._mark = self._since = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Continue the file of metrics where the checkpoint was saved: later lines are told again."""
        self._restart_clock()
        path = self.options.out / "metrics.jsonl"
        if trainer.is_global_zero and path.exists():
            truncate_metrics(path, trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The time between epochs is nobody's wait for data."""
        self._mark = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int
    ) -> None:
        """Since the end of the last step, this process has waited for data."""
        self._waited += time.monotonic() - self._mark

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Keep the loss on its device; every `LOG_EVERY` steps look at it."""
        self._losses.append(outputs["loss"].detach())
        self._images += len(batch["images"]) * trainer.world_size
        if len(self._losses) >= LOG_EVERY and not trainer.is_last_batch:
            self._report(trainer, {})
        self._mark = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the rest of the epoch, before the checkpoint callback saves anything."""
        if self._losses:
            self._report(trainer, self._evaluated(trainer))

    def _evaluated(self, trainer: pl.Trainer) -> dict[str, float]:
        """What is measured after this epoch, in time that does not count as training."""
        epoch = trainer.current_epoch + 1
        due = self.evaluation is not None and (epoch % self.evaluation.every == 0 or epoch == self.options.epochs)
        if self.evaluation is None or not due or not trainer.is_global_zero:
            return {}
        started = time.monotonic()
        found = self.evaluation.measure()
        self._since += time.monotonic() - started
        return found

    def _report(self, trainer: pl.Trainer, evaluated: Mapping[str, float]) -> None:
        losses = torch.stack(self._losses).float().tolist()
        first = trainer.global_step - len(losses)
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise UserError(non_finite(loss, first + offset, trainer.current_epoch, self.options))
        elapsed = time.monotonic() - self._since
        metrics: dict[str, float] = {
            **{name: float(value) for name, value in trainer.callback_metrics.items()},
            "loss": sum(losses) / len(losses),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_s": self._images / elapsed,
            "data_wait": self._waited / elapsed,
            **evaluated,
        }
        if trainer.is_global_zero:
            self._write(trainer, metrics, evaluated)
        self._losses.clear()
        self._restart_clock()

    def _write(self, trainer: pl.Trainer, metrics: Mapping[str, float], evaluated: Mapping[str, float]) -> None:
        place = {"stage": self.options.stage, "step": trainer.global_step, "epoch": trainer.current_epoch}
        with (self.options.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**place, **{name: round(value, 8) for name, value in metrics.items()}}) + "\n")
        if trainer.logger is not None:
            trainer.logger.log_metrics(dict(metrics), trainer.global_step)
        self._show(trainer, metrics, evaluated)

    def _show(self, trainer: pl.Trainer, metrics: Mapping[str, float], evaluated: Mapping[str, float]) -> None:
        """One line: rewritten in place on a terminal, one an epoch elsewhere."""
        ended = trainer.global_step % int(trainer.num_training_batches) == 0
        if not (ended or sys.stderr.isatty()):
            return
        left = (int(trainer.estimated_stepping_batches) - trainer.global_step) * self._seconds_a_step()
        told = "".join(f"{name} {value:.1f}, " for name, value in evaluated.items())
        line = (
            f"{self.options.stage}: epoch {trainer.current_epoch + 1}/{self.options.epochs}, "
            f"loss {metrics['loss']:.4f}, {told}{metrics['images_per_s']:.0f} images/s, "
            f"{metrics['data_wait']:.0%} waiting for data, {left / 60:.1f} min left"
        )
        sys.stderr.write(f"\r{line:<100}" + ("\n" if ended else "") if sys.stderr.isatty() else line + "\n")
        sys.stderr.flush()

    def _seconds_a_step(self) -> float:
        return (time.monotonic() - self._since) / max(1, len(self._losses))

    def _restart_clock(self) -> None:
        self._images, self._waited = 0, 0.0
        self._mark = self._since = time.monotonic()


def non_finite(loss: float, step: int, epoch: int, options: FitOptions) -> str:
    """The line that tells a user of a loss that is not finite."""
    last = options.out / "checkpoints" / LAST
    kept = f"the checkpoint of the last finished epoch is kept in {last}" if last.exists() else "no epoch was finished"
    return (
        f"{options.stage}: loss is {loss} at step {step} (epoch {epoch}), training stopped, {kept}; "
        f"lower the learning rate or use --precision float32, and go on with --resume"
    )


def truncate_metrics(path: Path, step: int) -> None:
    """Drop lines past `step` from metrics.jsonl: they were written after the checkpoint resumed from.

    The last line may be half of one, where the process was killed as it wrote: it is dropped too.
    """
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    kept = [line for line in whole.splitlines() if line.strip() and json.loads(line)["step"] <= step]
    content = "".join(line + "\n" for line in kept)
    if content == text:
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content)
    os.replace(temporary, path)
