"""When checkpoints are written, and that what is stopped between two of them goes on as if it had not been."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from refusals import refused
from torch import Tensor, nn
from torch.utils.data import Dataset

from semmae.data.loaders import make_loader
from semmae.data.samplers import EpochSampler
from semmae.files import PART
from semmae.run.signals import Interrupted
from semmae.train import meter, stopping
from semmae.train.batches import Training
from semmae.train.checkpoints import CheckedCheckpointIO
from semmae.train.meter import step_figures
from semmae.train.optimizer import adamw_warmup_cosine
from semmae.train.stage import LAST, FitOptions
from semmae.train.stopping import Keeper
from semmae.train.trainer import fit

IMAGES, EPOCHS = 24, 3
SHAPE = (3, 1, 2)


class Rows(Dataset[dict[str, Any]]):
    """An item is a function of (epoch, row), as crops are."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, row = key
        return {"images": torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 * epoch + row))}


class Regression(pl.LightningModule):
    """Learns the mean of its inputs; the gradient of one step may be spoiled."""

    def __init__(self, spoiled: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(math.prod(SHAPE), 1)
        self.spoiled = spoiled

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        images = batch["images"].flatten(1)
        found = self.layer(images)
        loss: Tensor = ((found - images.mean(1, keepdim=True)) ** 2).mean()
        self.log("same", loss.detach())
        return step_figures(self, {"loss": loss, "found": found.mean()})

    def on_after_backward(self) -> None:
        if self.global_step == self.spoiled:
            assert self.layer.weight.grad is not None
            self.layer.weight.grad[0, 0] = float("nan")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self, lr=0.05, betas=(0.9, 0.95), weight_decay=0.1, total_steps=total, warmup_steps=2
        )


def train(out: Path, *, accumulate: int = 1, workers: int = 0, resume: bool = True, spoiled: int = -1) -> Tensor:
    """Six steps an epoch; returns the weights."""
    out.mkdir(exist_ok=True)
    sampler = EpochSampler(IMAGES, seed=4)
    loader = make_loader(Rows(), 4 // accumulate, sampler=sampler, workers=workers, drop_last=True)
    task = Regression(spoiled)
    training = Training(precision="float32", accumulate=accumulate, resume=resume)
    fit(task, loader, FitOptions(training, out, "regression", EPOCHS, clip=1.0))
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


def logged(out: Path) -> list[dict[str, Any]]:
    """What is in metrics.jsonl but for the clock's share."""
    clock = ("images_per_s", "data_wait")
    return [{name: value for name, value in line.items() if name not in clock} for line in tiny.metrics(out)]


@pytest.fixture
def every_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of metrics that divide no epoch."""
    monkeypatch.setattr(meter, "LOG_EVERY", 4)


@pytest.fixture
def saved_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The step of every checkpoint that is written."""
    steps: list[int] = []
    real = CheckedCheckpointIO.save_checkpoint

    def spied(writer: CheckedCheckpointIO, checkpoint: dict[str, Any], *rest: Any, **named: Any) -> None:
        steps.append(checkpoint["global_step"])
        real(writer, checkpoint, *rest, **named)

    monkeypatch.setattr(CheckedCheckpointIO, "save_checkpoint", spied)
    yield steps


@pytest.mark.usefixtures("every_four")
@pytest.mark.parametrize(
    ("accumulate", "workers", "signum"),
    [(1, 0, signal.SIGINT), (2, 0, signal.SIGTERM), (1, 2, signal.SIGUSR1), (2, 2, signal.SIGINT)],
)
def test_stopped_at_any_step_it_goes_on_with_the_next(
    accumulate: int, workers: int, signum: int, tmp_path: Path, saved_at: list[int]
) -> None:
    """Weights, losses, figures, gradients' norms and rates, line by line; in the middle of an epoch and at its end."""
    how = {"accumulate": accumulate, "workers": workers}
    expected = train(tmp_path / "whole", **how)
    assert [line["step"] for line in logged(tmp_path / "whole")] == [4, 6, 10, 12, 16, 18]

    for step in (1, 5, 6, 9, 12, 17, 18) if workers == 0 else (5, 12):
        saved_at.clear()
        out = tmp_path / str(step)
        with tiny.interrupted("regression", step, signum):
            train(out, **how)
        assert saved_at[-1] == step
        assert torch.equal(train(out, **how), expected), step
        assert logged(out) == logged(tmp_path / "whole"), step


@pytest.mark.usefixtures("every_four")
@pytest.mark.parametrize("halved", [True, False])
def test_a_step_may_be_divided_otherwise_when_it_goes_on(halved: bool, tmp_path: Path) -> None:
    """Into one batch, two, and one again, in the middle of epochs: the same steps, but for rounding."""
    expected = train(tmp_path / "whole")
    for step, parts in ((4, 1), (10, 2 if halved else 4), (14, 1)):
        with tiny.interrupted("regression", step):
            train(tmp_path / "run", accumulate=parts)
    assert torch.allclose(train(tmp_path / "run", accumulate=2), expected, rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(logged(tmp_path / "run"), logged(tmp_path / "whole"), strict=True):
        for name in ("stage", "same"):  # the last is of one batch alone
            del ours[name], theirs[name]
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_step_of_other_images_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny.interrupted("regression", 4):
        train(tmp_path / "run")
    monkeypatch.setattr(stopping.Keeper, "_division", lambda keeper, on: (6, 1))
    with refused("4 images a step", "6", "--devices"):
        train(tmp_path / "run")


@pytest.mark.usefixtures("every_four")
@pytest.mark.parametrize("kept", [2, 8, 11])
def test_killed_after_a_checkpoint_in_mid_epoch_it_goes_on_from_there(kept: int, tmp_path: Path) -> None:
    expected = train(tmp_path / "whole")
    with tiny.saving(kept), pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="pulled the plug"):
        patch.setattr(meter.Meter, "on_train_batch_start", pulled(at=kept + 3))
        train(tmp_path / "run")
    assert tiny.saved_state(tmp_path / "run")["global_step"] in (kept, 12)  # of the second epoch's end none is due
    assert torch.equal(train(tmp_path / "run"), expected)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def pulled(at: int) -> Callable[..., None]:
    def stop(own: meter.Meter, pl_trainer: pl.Trainer, *_: Any) -> None:
        if pl_trainer.global_step == at:
            raise RuntimeError("pulled the plug")

    return stop


def test_small_data_is_not_written_every_epoch(tmp_path: Path, saved_at: list[int]) -> None:
    train(tmp_path)
    assert saved_at == [6, 18]  # after the first epoch, so that there is one, and after the last


def test_a_checkpoint_is_due_when_half_of_the_run_could_be_lost_or_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 20 seconds by the keeper's clock."""
    keeper = Keeper(tmp_path / LAST, make_loader(Rows(), 4), check=None)  # type: ignore[arg-type]
    keeper._begun = keeper._saved = now = 0.0
    saved = []
    for now in range(20, 4000, 20):
        monkeypatch.setattr(stopping.time, "monotonic", lambda now=now: now)
        if keeper._due():
            keeper._saved = now
            saved.append(now / 60)
    assert saved == [1, 2, 4, 8, 16, 26, 36, 46, 56, 66]


def test_what_is_not_finite_reaches_no_checkpoint_in_mid_epoch(tmp_path: Path) -> None:
    """Neither the loss nor a line of metrics shows it when the checkpoint is due."""
    with tiny.saving(3), refused("weight", "step 3"):
        train(tmp_path, spoiled=2)
    assert not (tmp_path / "checkpoints" / LAST).exists()


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    real = Regression.training_step

    def impatient(task: Regression, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        if task.global_step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        done.append(task.global_step)
        return real(task, batch, index)

    monkeypatch.setattr(Regression, "training_step", impatient)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(tmp_path)
    assert done[-1] == 7
    assert tiny.saved_state(tmp_path)["global_step"] == 6  # the first epoch's
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_disk_has_the_file_before_its_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power failure leaves the name of the only checkpoint on nothing."""
    happened: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def spied_sync(descriptor: int) -> None:
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        sync(descriptor)

    def spied_replace(source: Path, target: Path) -> None:
        happened.append(("replace", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_sync)
    monkeypatch.setattr(os, "replace", spied_replace)
    CheckedCheckpointIO({}).save_checkpoint({"step": 1}, tmp_path / "checkpoints" / "last.ckpt")
    beside = f".last.ckpt.{os.getpid()}{PART}"
    assert happened == [("sync", beside), ("replace", "last.ckpt"), ("sync", "checkpoints")]
