"""When a training's state is kept, and how it stops: by the clock, and on Ctrl-C, SIGTERM or SIGUSR1.

Notable here:
- a checkpoint is due at the end of an optimiser step, also in the middle of an epoch: the first soon, later ones every
  ten minutes. So a kill costs no more than these, and small data does not write its network every epoch;
- Ctrl-C, SIGTERM (Slurm, containers) and SIGUSR1 (Slurm) end the step that is running, keep it and stop; a second
  Ctrl-C does not wait;
- a training that a callback has ended is kept as ended: resumed, it trains no further;
- a resumed run continues with the very next batch: items are functions of (seed, epoch, row), so that the sampler needs
  no more than the place to begin at;
- of several processes each sends the others what it wishes, and receives what they wished a step before: so all save
  and stop at the same step, and none of them waits.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.data.samplers import EpochSampler
from semmae.errors import UserError
from semmae.run.ranks import local_rank
from semmae.run.signals import STOPPING, Interrupted
from semmae.train.together import check_alike, listen, tell, waiting_group

# Seconds between two checkpoints. At first as many as the run is old: not half of it can be lost.
_AT_LEAST = 60.0
_AT_MOST = 600.0
_NOTICE = b"\nsemmae: stopping as soon as this step is done and kept; Ctrl-C again stops at once\n"


class Wish(IntEnum):
    """What a process wants done at the end of a step; of several the highest is done."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # and save


class Signals:
    """Remembers that one of `STOPPING` has come, for the step that is running to be finished first."""

    def __init__(self) -> None:
        self.received: int | None = None

    def watch(self) -> None:
        """Take over these signals; a thread other than the main one cannot, and stops as Python would."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and local_rank() == 0:
            with suppress(OSError):
                os.write(2, _NOTICE)  # print() may not be called while it is at work
        self.received = self.received or signum


class Vote:
    """The highest wish of all processes, known to each a step later."""

    def __init__(self, processes: int) -> None:
        self._group: torch.distributed.ProcessGroup | None = None
        if processes > 1:
            self._group = waiting_group()  # on the CPU, whatever the gradients travel by: no device is waited for
        self._pending: tuple[torch.distributed.Work, Tensor] | None = None

    def cast(self, wish: Wish) -> Wish:
        """Send one's wish, and learn what was wished at the last call; of a single process, its own at once."""
        if self._group is None:
            return wish
        answer = self._answer()
        wished = torch.tensor(int(wish))
        work = torch.distributed.all_reduce(wished, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = work, wished
        return answer

    def settle(self, wish: Wish) -> Wish:
        """Send one's wish, and wait for those of the others."""
        self.cast(wish)
        return wish if self._group is None else self._answer()

    def forget(self) -> None:
        """What was wished is done."""
        self._answer()

    def _answer(self) -> Wish:
        if self._pending is None:
            return Wish.NOTHING
        work, wished = self._pending
        self._pending = None
        work.wait()
        return Wish(int(wished))


class Keeper(Checkpoint):
    """Writes the one checkpoint whenever it is due, stops where that is asked for, begins where the last one ended.

    To be resumed in mid-epoch, the loader has an `EpochSampler`. `check` raises where a state should not be kept.
    """

    def __init__(
        self,
        path: Path,
        loader: DataLoader[dict[str, Any]],
        check: Callable[[pl.Trainer, pl.LightningModule], None],
    ) -> None:
        self.path, self.loader, self.check = path, loader, check
        self.signals = Signals()
        self._begun = self._saved = time.monotonic()
        self._first = True
        self._ended = False  # by a callback, in the state that is kept
        self._vote = Vote(1)
        self._held: dict[str, int] | None = None  # states in the checkpoint that this resumes from
        self._divided = (0, 0)  # images of a step over all processes, batches of it in each

    def state_dict(self) -> dict[str, Any]:
        return {"divided": list(self._divided)} | ({"ended": True} if self._ended else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ended = bool(state_dict.get("ended", False))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Show the loader its place: workers fetch the first batches before the epoch's number is set."""
        self._divided = divided = self._division(trainer)
        before = checkpoint["callbacks"].get(self.state_key, {}).get("divided", divided)
        if before[0] != divided[0]:
            raise UserError(
                f"{self.path}: was trained with {before[0]} images a step, and now it would be {divided[0]}; of so few "
                "images as there are here, use as many --devices, --nodes and --accumulate as it began with"
            )
        count_batches(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], before[1], divided[1])
        steps = len(self.loader) // trainer.accumulate_grad_batches
        epoch, done = divmod(checkpoint["global_step"], steps)
        # Of a network in shards the optimiser's are read by the strategy, which misses them itself.
        names = ("optimizer_states", "lr_schedulers")
        self._held = {name: len(checkpoint[name]) for name in names if name in checkpoint}
        sampler = self.loader.sampler
        if isinstance(sampler, EpochSampler):
            batches = done * trainer.accumulate_grad_batches
            sampler.begin_at(epoch, batches * int(self.loader.batch_size or 1))
        elif done:
            raise TypeError(f"a loader with a {type(sampler).__name__} cannot be resumed in the middle of an epoch")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to keep; a checkpoint that lacked an optimiser or a schedule is refused."""
        wanted = {"optimizer_states": len(trainer.optimizers), "lr_schedulers": len(trainer.lr_scheduler_configs)}
        if self._held is not None and not self._held.items() <= wanted.items():
            raise UserError(f"{self.path}: its optimizer_states or lr_schedulers are of another training; restore it")
        self._divided = self._division(trainer)
        if trainer.world_size > 1:  # there may be others that take no part in this training
            listen()
            images = getattr(self.loader.dataset, "images", None)
            check_alike(f"{self.path}", (getattr(images, "digest", ""), len(self.loader), trainer.global_step))
        self._vote = Vote(trainer.world_size)
        self._begun = self._saved = time.monotonic()
        self._first = not self.path.exists()
        trainer.should_stop = trainer.should_stop or self._ended
        self.signals.watch()  # after Lightning, whose own handlers it restores in the end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimiser step that is not the epoch's last."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        wish = self._vote.cast(self._wish(trainer, self._due()))
        if wish:
            self._vote.forget()
            self.check(trainer, pl_module)
            self._save(trainer, wish)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the epoch's last step, whose state has been checked for its report."""
        self._vote.forget()
        last = trainer.current_epoch + 1 == trainer.max_epochs
        wish = self._vote.settle(self._wish(trainer, self._first or last or self._due()))
        if wish:
            self._save(trainer, wish)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a callback has ended is known here, after its epoch's end."""
        if trainer.should_stop and not self._ended:
            self._save(trainer, Wish.SAVE)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Before Lightning puts things away, which may wait for the device: the other processes are to stop now."""
        if isinstance(exception, Exception):
            tell(exception)

    def _division(self, trainer: pl.Trainer) -> tuple[int, int]:
        batches = trainer.accumulate_grad_batches
        return int(self.loader.batch_size or 1) * batches * trainer.world_size, batches

    def _due(self) -> bool:
        age = self._saved - self._begun
        return time.monotonic() - self._saved >= min(_AT_MOST, max(_AT_LEAST, age))

    def _wish(self, trainer: pl.Trainer, due: bool) -> Wish:
        if self.signals.received is not None:
            return Wish.STOP
        return Wish.SAVE if due and trainer.is_global_zero else Wish.NOTHING

    def _save(self, trainer: pl.Trainer, wish: Wish) -> None:
        self._ended = trainer.should_stop
        trainer.save_checkpoint(self.path)
        self._saved, self._first = time.monotonic(), False
        if wish == Wish.STOP:
            raise Interrupted(self.signals.received or signal.SIGTERM)


def count_batches(progress: dict[str, Any], before: int, now: int) -> None:
    """Count, in place, what Lightning has counted of batches, `before` of them a step, as if they were `now`."""
    for counts in (progress["total"], progress["current"]):
        unfinished = counts["ready"] - counts["completed"]  # the last one, at whose end the checkpoint was written
        for name in ("ready", "started", "processed"):
            counts[name] = counts[name] // before * now
        counts["completed"] = counts["ready"] - unfinished
