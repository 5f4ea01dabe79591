"""What a training reports while it runs, and the faults that stop it.

- `Meter` writes metrics.jsonl, what loggers get (`semmae.train.loggers`) and the line on the terminal, every
  `LOG_EVERY` steps: between two of these nothing waits for the device. Losses, and figures that a task returns beside
  its loss (`step_figures`), are means over the steps since the last report, their batches and all processes. What is
  not reported yet is in the checkpoint, so that a resumed run reports the same;
- a loss that is not finite stops the run, and so do weights: neither reaches a checkpoint. A step that loss scaling
  (fp16) leaves out changes no weight, and is no fault.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from semmae.cores import usable_cores
from semmae.errors import UserError
from semmae.files import Fields, check_guarded, read_records, read_text, write_text
from semmae.progress import is_terminal, shown_rate, write
from semmae.train.optimizer import clip_gradients
from semmae.train.stage import LAST, Evaluation, FitOptions
from semmae.train.together import barrier

LOG_EVERY = 10  # steps
_LONG_WAIT = 0.2  # share of the time, of which a user should know

_log = logging.getLogger("semmae")


class Meter(pl.Callback):
    """Measures speed and data wait, checks and averages the loss, writes metrics and progress."""

    def __init__(self, options: FitOptions, evaluation: Evaluation | None = None) -> None:
        self.options = options
        self.evaluation = evaluation
        self._accumulate = options.training.accumulate
        self._batches: list[Tensor] = []  # losses of the step that is running, each its share of it
        self._beside: list[dict[str, Tensor]] = []  # figures of its batches
        self._losses: list[Tensor] = []  # of steps
        self._figures: dict[str, list[Tensor]] = {}  # of the same steps
        self._norms: list[Tensor] = []  # of the gradients of steps, before they are limited
        self._images = 0
        self._waited = 0.0
        self._advised = False
        self._begun = self._measured = -1  # steps: where this process began, and what was measured last
        self._mark = self._since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What belongs to the next report."""
        unreported = {"losses": self._losses, "norms": self._norms}
        state: dict[str, Any] = {name: torch.stack(values).cpu() for name, values in unreported.items() if values}
        figures = {name: torch.stack(values).cpu() for name, values in self._figures.items()}
        return state | ({"figures": figures} if figures else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses, self._norms = (list(state_dict.get(name, ())) for name in ("losses", "norms"))
        self._figures = {name: list(values) for name, values in state_dict.get("figures", {}).items()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Continue the file of metrics where the checkpoint was saved: later lines are written again."""
        self._restart_clock()
        self._begun = trainer.global_step
        # A checkpoint is read onto the CPU; what is added to these is on the device of training.
        for values in (self._losses, self._norms, *self._figures.values()):
            values[:] = [value.to(module.device) for value in values]
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

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Limit the gradient's norm; Lightning's own option refuses fused optimisers in bf16."""
        if self.options.clip:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._norms.append(clip_gradients(parameters, self.options.clip, self.options.clip_each))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Keep the loss and the figures beside it on their device; every `LOG_EVERY` steps look at them."""
        self._batches.append(outputs["loss"].detach().float())
        self._beside.append({name: value.float() for name, value in outputs.items() if name != "loss"})
        self._images += images_in(batch) * trainer.world_size
        if len(self._batches) == self._accumulate:
            # Lightning divides the losses of batches that make a step by their number: the step's is their sum.
            self._losses.append(self._batches[0] if self._accumulate == 1 else torch.stack(self._batches).sum())
            for name in self._beside[0]:
                values = [each[name] for each in self._beside]
                mean = values[0] if self._accumulate == 1 else torch.stack(values).mean()
                self._figures.setdefault(name, []).append(mean)
            self._batches.clear()
            self._beside.clear()
            # Lightning would hold the step's gradients until the next forward pass is over, the memory's peak.
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        if len(self._losses) >= LOG_EVERY and not trainer.is_last_batch:
            self._report(trainer, {})
        self._mark = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the rest of the epoch, before the checkpoint callback saves anything."""
        for of_batches in (self._batches, self._beside):
            of_batches.clear()  # of a step that a callback has cut off in the middle nothing was learned
        if self._losses:
            self.check(trainer, module)
            self._report(trainer, self._evaluated(trainer))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure what a callback has made the last epoch; that it would be was not known at its end."""
        if self.evaluation is None or trainer.global_step in (self._begun, self._measured):
            return
        if trainer.is_global_zero:
            found = self.evaluation.measure()
            self._append(trainer, trainer.current_epoch - 1, found)
            shown = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            _log.info("%s: %s", self.options.stage, shown)
        barrier("evaluation")

    def check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Refuse losses since the last report, and weights, that are not finite; waits for the device."""
        if self._losses:
            self._checked_losses(trainer)
        # A gradient that is not finite spoils the weights; before a checkpoint no later loss shows it.
        shards = [each.to_local() if isinstance(each, DTensor) else each for each in module.parameters()]
        total = torch.stack([shard.detach().sum() for shard in shards]).sum()
        if not math.isfinite(trainer.strategy.reduce(total, reduce_op="sum")):
            raise UserError(non_finite("a weight is not finite", trainer.global_step, trainer, self.options))

    def _evaluated(self, trainer: pl.Trainer) -> dict[str, float]:
        """What is measured after this epoch, in time that does not count as training."""
        epoch = trainer.current_epoch + 1
        due = self.evaluation is not None and (epoch % self.evaluation.every == 0 or epoch == self.options.epochs)
        if self.evaluation is None or not due:
            return {}
        started, self._measured = time.monotonic(), trainer.global_step
        found = self.evaluation.measure() if trainer.is_global_zero else {}
        barrier("evaluation")  # or the others would wait in the next step, in a collective of the device
        self._since += time.monotonic() - started
        return found

    def _report(self, trainer: pl.Trainer, evaluated: Mapping[str, float]) -> None:
        losses = self._checked_losses(trainer)
        elapsed = time.monotonic() - self._since
        metrics: dict[str, float] = {
            **{name: float(value) for name, value in trainer.callback_metrics.items()},  # the last, of one's callbacks
            # What a task has summed up over the interval; asked for here, for the answer waits for the device.
            **getattr(trainer.lightning_module, "interval_metrics", dict)(),
            **{name: _mean(torch.stack(values).tolist()) for name, values in self._figures.items()},
            "loss": _mean(losses),
            **self._gradient_norm(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_s": self._images / elapsed,
            "data_wait": self._waited / elapsed,
            **evaluated,
        }
        if trainer.is_global_zero:
            self._append(trainer, trainer.current_epoch, metrics)
            self._show(trainer, metrics, evaluated)
            self._advise(trainer, metrics["data_wait"])
        self._losses.clear()
        self._figures.clear()
        self._norms.clear()
        self._restart_clock()

    def _advise(self, trainer: pl.Trainer, waiting: float) -> None:
        """Say once what to do about a run that waits for its images."""
        workers, cores = int(getattr(trainer.train_dataloader, "num_workers", 0)), usable_cores()
        if self._advised or waiting < _LONG_WAIT or (workers + 1) * trainer.world_size >= cores:
            return
        self._advised = True
        _log.warning(
            "%s: waits for images %.0f %% of the time; --resume with more --workers than %d, this machine has %d cores",
            self.options.stage, 100 * waiting, workers, cores,
        )  # fmt: skip

    def _checked_losses(self, trainer: pl.Trainer) -> list[float]:
        """The loss of every optimiser step since the last report, finite; waits for the device."""
        # The mean over all processes, so that all of them find the same one at fault, and at the same step.
        kept = [self._losses, *self._figures.values()]
        means = trainer.strategy.reduce(torch.cat([torch.stack(values) for values in kept]), reduce_op="mean")
        for values, of_all in zip(kept, means.split([len(values) for values in kept]), strict=True):
            values[:] = of_all.unbind()
        losses = torch.stack(self._losses).tolist()
        first = trainer.global_step - len(losses)
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise UserError(non_finite(f"loss is {loss}", first + offset, trainer, self.options))
        return [float(loss) for loss in losses]

    def _gradient_norm(self) -> dict[str, float]:
        """The mean norm where it is limited, but of steps that loss scaling leaves out."""
        norms = [norm for norm in torch.stack(self._norms).tolist() if math.isfinite(norm)] if self._norms else []
        return {"grad_norm": _mean(norms)} if norms else {}

    def _append(self, trainer: pl.Trainer, epoch: int, metrics: Mapping[str, float]) -> None:
        path = self.options.out / "metrics.jsonl"
        check_guarded(path)
        place = {"stage": self.options.stage, "step": trainer.global_step, "epoch": epoch}
        with path.open("a") as file:
            file.write(json.dumps({**place, **{name: round(value, 8) for name, value in metrics.items()}}) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), trainer.global_step)

    def _show(self, trainer: pl.Trainer, metrics: Mapping[str, float], evaluated: Mapping[str, float]) -> None:
        """One line: rewritten in place on a terminal, one an epoch elsewhere."""
        ended = trainer.global_step % (int(trainer.num_training_batches) // self._accumulate) == 0
        terminal = is_terminal(sys.stderr)
        if not (ended or terminal):
            return
        steps = max(1, len(self._losses))
        seconds_a_step = (time.monotonic() - self._since) / steps
        planned = int(trainer.estimated_stepping_batches)
        left = (planned - trainer.global_step) * seconds_a_step
        place = f"epoch {trainer.current_epoch + 1}/{self.options.epochs}"
        if self.options.in_steps:
            place = f"step {trainer.global_step}/{planned}"
        measured = "".join(f"{name} {value:.1f}, " for name, value in evaluated.items())
        line = (
            f"{self.options.stage}: {place}, loss {metrics['loss']:.4f}, {measured}"
            f"{shown_rate(metrics['images_per_s'])} images/s, {metrics['data_wait']:.0%} waiting for data, "
            f"{left / 60:.1f} min left"
        )
        if terminal:
            write(sys.stderr, f"{line:<100}" + ("\n" if ended else ""), begin="\r")
        else:
            write(sys.stderr, line + "\n")
        if ended:
            _log.debug("%s", line)

    def _restart_clock(self) -> None:
        self._images, self._waited = 0, 0.0
        self._mark = self._since = time.monotonic()


def step_figures(task: pl.LightningModule, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `training_step` returns of its figures (), "loss" among them: means of the batch, which `Meter` averages.

    Callbacks find those of the last batch; not the loggers, or Lightning would write them a second time.
    """
    values = {name: value.detach() for name, value in figures.items()}
    task.log_dict(values, logger=False)
    return {**values, "loss": figures["loss"]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def images_in(batch: Mapping[str, Any]) -> int:
    """How many images a batch is of: what it holds are tensors of so many rows, and tuples of such."""
    return next(len(values) for values in batch.values() if isinstance(values, Tensor))


def non_finite(fault: str, step: int, trainer: pl.Trainer, options: FitOptions) -> str:
    """The line for a user whose loss or weight is not finite."""
    last = options.out / "checkpoints" / LAST
    kept = f"the last checkpoint is kept in {last}" if last.exists() else "no checkpoint was written"
    return (
        f"{options.stage}: {fault} at step {step} (epoch {trainer.current_epoch}), training stopped, {kept}; "
        f"lower the learning rate or use --precision float32, in another --out (--resume would do the same again)"
    )


def truncate_metrics(path: Path, step: int) -> None:
    """Drop lines past `step` from metrics.jsonl: they were written after the checkpoint resumed from.

    The last line may be half of one, where the process was killed as it wrote: it is dropped too.
    """
    kept = [record for record in read_records(path) if Fields(path, record).need("step", int) <= step]
    content = "".join(json.dumps(record) + "\n" for record in kept)
    if content != read_text(path):
        write_text(path, content)
