"""`fit`: steps of several batches, limits of the gradient, loss scaling, weights that are not finite."""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from refusals import refused
from torch import Tensor, nn
from torch.utils.data import DataLoader

from semmae.files import guarded
from semmae.train import meter
from semmae.train.batches import Training
from semmae.train.optimizer import adamw, adamw_warmup_cosine, can_fuse, warmup_cosine_rate
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit

IMAGES, WIDTH = 48, 5
STEPS = 6
HOW: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.05}


class Regression(pl.LightningModule):
    """The smallest task that `fit` trains: a linear map that learns the mean of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, 1)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        return regression_loss(self.layer, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(self, **HOW, total_steps=total, warmup_steps=2, fused=can_fuse(self.trainer))


def regression_loss(layer: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    images = batch["images"]
    return ((layer(images).float() - images.mean(1, keepdim=True)) ** 2).mean()


def batches(size: int) -> DataLoader[dict[str, Any]]:
    """The same 48 images in batches of any size."""
    images = torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(1))
    return DataLoader([{"images": image} for image in images], batch_size=size)  # type: ignore[arg-type]


def train(
    out: Path,
    size: int,
    task: pl.LightningModule | None = None,
    *,
    epochs: int = 1,
    clip: float = 0.0,
    clip_each: bool = False,
    **how: Any,
) -> pl.LightningModule:
    task, training = task or Regression(), Training(resume=False, **{"precision": "float32", **how})
    with tiny.every_step():
        fit(task, batches(size), FitOptions(training, out, "regression", epochs, clip, clip_each))
    return task


def weights(task: pl.LightningModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


def plain_loop(size: int, clip: float = 0.0, each: bool = False) -> tuple[Tensor, list[float], list[float]]:
    """The same training in plain PyTorch: final weights, losses, norms of the gradients."""
    task = Regression()
    optimizer = adamw(task, **HOW)
    rate = warmup_cosine_rate(optimizer, total_steps=IMAGES // size, warmup_steps=2)
    losses, norms = [], []
    for batch in batches(size):
        loss = regression_loss(task.layer, batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(task.parameters(), math.inf if each else clip or math.inf)))
        for parameter in task.parameters() if each else ():
            nn.utils.clip_grad_norm_([parameter], clip)
        optimizer.step()
        rate.step()
        losses.append(float(loss.detach()))
    return weights(task), losses, norms


def test_fit_is_a_plain_loop(tmp_path: Path) -> None:
    task = train(tmp_path, 8)

    expected, losses, _ = plain_loop(8)
    assert torch.equal(weights(task), expected)
    assert tiny.losses(tmp_path) == [round(loss, 8) for loss in losses]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_several_batches_make_the_step_of_a_large_one(accumulate: int, tmp_path: Path) -> None:
    task = train(tmp_path, 8 // accumulate, accumulate=accumulate)

    expected, losses, _ = plain_loop(8)
    assert torch.allclose(weights(task), expected, rtol=1e-5)
    assert tiny.losses(tmp_path) == pytest.approx(losses, rel=1e-5)
    assert len(losses) == STEPS
    assert tiny.saved_state(tmp_path)["global_step"] == STEPS
    # The last rate: that of the schedule's last step, for it counts optimiser steps.
    assert tiny.metrics(tmp_path)[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_gradient_is_held_during_the_next_forward_pass(accumulate: int, tmp_path: Path) -> None:
    held: list[bool] = []

    class Watched(Regression):
        def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
            held.append(self.layer.weight.grad is not None)
            return super().training_step(batch, batch_index)

    train(tmp_path, 2, Watched(), accumulate=accumulate)

    assert held == [batch % accumulate > 0 for batch in range(IMAGES // 2)]


@pytest.mark.parametrize(("cores", "warnings"), [(4, 1), (1, 0)])
def test_a_run_that_waits_for_images_is_warned_of_once(
    cores: int, warnings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meter, "usable_cores", lambda: cores)
    monkeypatch.setattr(meter, "_LONG_WAIT", 0.0)

    train(tmp_path, 8)

    assert [record.message.count("--workers than 0") for record in caplog.records if "waits" in record.message] == (
        [1] * warnings
    )


def test_metrics_are_named_every_so_many_steps_not_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LOG_EVERY", 4)

    fit(Regression(), batches(2), FitOptions(Training(accumulate=4, resume=False), tmp_path, "s", epochs=2, clip=0.0))

    assert [line["step"] for line in tiny.metrics(tmp_path)] == [4, 6, 10, 12]


def test_images_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of eight images in an hour of the clock that the meter reads."""
    clock = iter(range(10**9))
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    counted: list[tuple[int, float]] = []
    real = meter.Meter._report

    def spied(own: meter.Meter, *arguments: Any) -> None:
        counted.append((own._images, len(own._losses)))
        real(own, *arguments)

    monkeypatch.setattr(meter.Meter, "_report", spied)
    train(tmp_path, 2, accumulate=4)

    assert counted == [(8, 1)] * STEPS


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_the_gradient_is_limited_and_its_norm_reported(clip: float, each: bool, tmp_path: Path) -> None:
    task = train(tmp_path, 8, clip=clip, clip_each=each)

    expected, _, norms = plain_loop(8, clip, each)
    assert torch.equal(weights(task), expected)
    assert [line["grad_norm"] for line in tiny.metrics(tmp_path)] == pytest.approx(norms, rel=1e-5)


def test_without_a_limit_no_norm_is_computed(tmp_path: Path) -> None:
    train(tmp_path, 8)

    assert all("grad_norm" not in line for line in tiny.metrics(tmp_path))


def test_the_gradient_is_limited_in_bf16_too(tmp_path: Path) -> None:
    """Lightning's own option refuses fused optimisers in mixed precision."""
    train(tmp_path, 8, precision="bf16", clip=0.01)

    _, losses, norms = plain_loop(8, 0.01)
    assert tiny.losses(tmp_path) == pytest.approx(losses, rel=0.05)
    assert [line["grad_norm"] for line in tiny.metrics(tmp_path)] == pytest.approx(norms, rel=0.05)


def test_steps_that_loss_scaling_leaves_out_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 as on a GPU, with a scale so large that the first gradients overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    real = pl.Trainer

    def scaled(*, precision: Any, plugins: Any, **options: Any) -> pl.Trainer:
        return real(plugins=[*plugins, plugin], **options)

    monkeypatch.setattr(pl, "Trainer", scaled)
    task = train(tmp_path, 8, precision="fp16", clip=100.0)

    losses = tiny.losses(tmp_path)
    assert all(map(math.isfinite, losses))
    lines = tiny.metrics(tmp_path)
    assert "grad_norm" not in lines[0]  # it was infinite, and the step left out
    assert lines[-1]["grad_norm"] == pytest.approx(plain_loop(8)[2][-1], rel=0.5)
    assert bool(weights(task).isfinite().all())
    assert not torch.equal(weights(task), weights(Regression()))  # later steps were taken


class Spoiled(Regression):
    """The gradient of one step is not a number, its loss is."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_after_backward(self) -> None:
        if self.global_step == self.step:
            assert self.layer.weight.grad is not None
            self.layer.weight.grad[0, 0] = math.nan


def test_the_last_gradient_of_an_epoch_spoils_no_checkpoint(tmp_path: Path) -> None:
    """No later loss of the epoch shows it."""
    with refused("weight", "step 12 (epoch 1)", "last.ckpt"):
        train(tmp_path, 8, Spoiled(step=2 * STEPS - 1), epochs=3)

    state = tiny.saved_state(tmp_path)
    assert state["global_step"] == STEPS
    assert tiny.finite(state["state_dict"])


def test_a_gradient_in_mid_epoch_shows_in_the_next_loss(tmp_path: Path) -> None:
    with refused("loss is nan", "step 3"):
        train(tmp_path, 8, Spoiled(step=2))


def test_plain_pieces_and_lightnings_are_the_same(tmp_path: Path) -> None:
    """What `adamw_warmup_cosine` returns holds what `adamw` and `warmup_cosine_rate` make."""
    layer = nn.Linear(3, 2)
    theirs: Any = adamw_warmup_cosine(layer, **HOW, total_steps=9, warmup_steps=3, end=0.5)
    optimizer = adamw(layer, **HOW)
    rate = warmup_cosine_rate(optimizer, total_steps=9, warmup_steps=3, end=0.5)
    found = partial(map, lambda group: {name: value for name, value in group.items() if name != "params"})
    for _ in range(10):
        assert list(found(optimizer.param_groups)) == list(found(theirs["optimizer"].param_groups))
        for one, schedule in ((optimizer, rate), (theirs["optimizer"], theirs["lr_scheduler"]["scheduler"])):
            one.step()
            schedule.step()


def test_a_folder_that_tensorboard_cannot_open_is_trained_in(tmp_path: Path) -> None:
    """Its library takes no name but UTF-8; in the locale C no letter is any."""
    out = tmp_path / "k\udcc3\udcb6"
    out.mkdir()
    train(out, size=16)
    assert not (out / "tensorboard").exists()
    assert len(tiny.losses(out)) == 3


def test_a_folder_that_is_removed_meanwhile_ends_the_training_and_is_not_made_again(tmp_path: Path) -> None:
    done: list[int] = []
    out = tmp_path / "run"

    class Removing(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            done.append(trainer.global_step)
            if len(done) == 2:
                shutil.rmtree(out)

    for logger in ("none", "tensorboard,csv"):
        done.clear()
        out.mkdir()
        with refused(f"--out {out}", "removed"), guarded(out):
            train(out, 8, callbacks=(Removing(),), logger=logger, epochs=2)
        assert done == [1, 2] and not out.exists()
