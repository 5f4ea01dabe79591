"""A training that a callback ends: what it returns and measures, what is recorded, and that resumed it is over."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

import semmae
from semmae.data.loaders import make_loader
from semmae.data.manifest import open_images
from semmae.data.samplers import EpochSampler
from semmae.options.pretrain import PretrainOptions
from semmae.train.batches import Training
from semmae.train.stage import Evaluation, FitOptions
from semmae.train.summary import Trained, summarised
from semmae.train.trainer import fit
from semmae.verbs.stages import parts_stage, teacher_stage

IMAGES, BATCH, EPOCHS = 24, 4, 3
STEPS = IMAGES // BATCH  # of an epoch


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"images": torch.full((3, 1, 2), float(key[1]))}


class Mean(pl.LightningModule):
    """Fits one weight; counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.batches = nn.Linear(6, 1), 0

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        self.batches += 1
        loss: Tensor = (self.layer(batch["images"].flatten(1)) ** 2).mean()
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Ending(pl.Callback):
    """Ends a training after so many batches, or at the end of an epoch."""

    def __init__(self, batches: int = -1, epoch: int = -1) -> None:
        self.batches, self.epoch, self.seen = batches, epoch, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


def train(out: Path, *callbacks: pl.Callback, accumulate: int = 1, resume: bool = False) -> tuple[Trained, Mean, int]:
    """The outcome, the task, and how often was measured."""
    out.mkdir(exist_ok=True)
    sampler, task, measured = EpochSampler(IMAGES, seed=4), Mean(), [0.0]

    def measure() -> dict[str, float]:
        measured.append(float(task.layer.weight.detach().sum()))
        return {"figure": measured[-1]}

    training = Training(precision="float32", accumulate=accumulate, resume=resume, callbacks=callbacks)
    loader = make_loader(Rows(), BATCH // accumulate, sampler=sampler, workers=0, drop_last=True)
    options = FitOptions(training, out, "mean", EPOCHS, clip=0.0)
    trained = fit(task, loader, options, Evaluation(measure, every=EPOCHS))
    return trained, task, len(measured) - 1


ENDED = [
    (lambda: Ending(epoch=0), 1, STEPS, "epoch 1 of 3"),
    (lambda: Ending(epoch=1), 1, 2 * STEPS, "epoch 2 of 3"),
    (lambda: EarlyStopping("same", patience=1), 1, 2 * STEPS, "epoch 2 of 3"),
    (lambda: Ending(batches=2), 1, 2, "step 2 of 18"),
    (lambda: Ending(batches=STEPS), 1, STEPS, "epoch 1 of 3"),
    (lambda: Ending(batches=17), 1, 17, "step 17 of 18"),
    (lambda: Ending(batches=5), 2, 2, "step 2 of 18"),  # in the middle of a step
    (lambda: Ending(batches=1), 2, 0, "epoch 0 of 3"),
]


@pytest.mark.parametrize(("ending", "accumulate", "steps", "words"), ENDED, ids=[words for *_, words in ENDED])
def test_what_was_done_is_returned_measured_and_kept(
    ending: Any, accumulate: int, steps: int, words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real = Mean.training_step
    monkeypatch.setattr(Mean, "training_step", lambda task, *rest: (task.log("same", 1.0), real(task, *rest))[1])
    out = tmp_path / "out"
    trained, task, measured = train(out, ending(), accumulate=accumulate)

    assert trained == Trained(steps, EPOCHS * STEPS) and trained.stopped
    assert [record.message for record in caplog.records if "callback" in record.message] == [
        f"mean: stopped after {words} by a callback"
    ]
    assert measured == (steps > 0)
    if steps:
        last = tiny.metrics(out)[-1]
        assert (last["step"], last["figure"]) == (steps, round(float(task.layer.weight.detach().sum()), 8))
    assert tiny.saved_state(out)["global_step"] == steps

    before = (out / "metrics.jsonl").read_bytes() if steps else b""
    again, task, measured = train(out, accumulate=accumulate, resume=True)
    assert (again, task.batches, measured) == (trained, 0, 0)
    assert not steps or (out / "metrics.jsonl").read_bytes() == before


def test_ended_at_its_last_step_it_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ending in (Ending(epoch=EPOCHS - 1), Ending(batches=EPOCHS * STEPS)):
        trained, _, measured = train(tmp_path / str(ending.epoch), ending)
        assert not trained.stopped and measured == 1
    assert "callback" not in caplog.text


def test_shares_of_what_was_planned() -> None:
    trained = Trained(9, 18)
    assert (trained.of(4), trained.of(3), trained.of(200)) == (2, 1.5, 100)
    assert isinstance(trained.of(4), int)


def test_the_summary_holds_what_was_done_also_after_a_resume(creatures: Path, tmp_path: Path) -> None:
    images = open_images(creatures / "images")

    def summary(**facts: Any) -> dict[str, Any]:
        content = semmae.files.read_json(tmp_path / "summary.json")
        return {name: content.get(name) for name in facts}

    with pytest.raises(KeyError), summarised(tmp_path, "mean", images, epochs=4) as noted:
        noted.trained(Trained(9, 18))
        assert noted.length == {"epochs": 2, "epochs_planned": 4}
        raise KeyError("killed before its end")
    for length in (Trained(9, 18), None):  # trained again to the same step, or not at all
        with summarised(tmp_path, "mean", images, epochs=4) as noted:
            if length is not None:
                noted.trained(length)
        assert summary(epochs=2, epochs_planned=4, finished=True) == {
            "epochs": 2, "epochs_planned": 4, "finished": True
        }  # fmt: skip
    with summarised(tmp_path, "mean", images, epochs=4) as noted:
        noted.trained(Trained(18, 18))
    assert summary(epochs=4, epochs_planned=None) == {"epochs": 4, "epochs_planned": None}


def test_stages_within_a_run_have_no_callbacks(tmp_path: Path) -> None:
    options = PretrainOptions(data="photos", out=tmp_path, callbacks=(Ending(),), logger="none")
    for stage in (teacher_stage(options), parts_stage(options, "teacher")):
        assert stage.callbacks == () and stage.logger == "none"


class TwoEpochs(pl.Callback):
    """Ends a training after two epochs, and one that it was given after that at once."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        trainer.should_stop = trainer.should_stop or self.epochs >= 2


def test_a_fine_tuning_says_what_it_was_and_its_baseline_has_callbacks_of_its_own(
    encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    out, callback = tmp_path / "out", TwoEpochs()
    given = {"encoder": encoder, "data": creatures / "images", "out": out, "epochs": 4, "val_every": 4, **tiny.TRAIN}
    semmae.finetune(callbacks=callback, untrained=True, **given)

    protocol = tiny.results(out)["protocol"]
    assert (protocol["epochs"], protocol["epochs_planned"]) == (2, 4)
    assert "untrained_epochs" not in protocol
    assert callback.epochs == 2  # the user's own, for the user's own training
    for folder in (out, out / "untrained"):
        assert semmae.files.read_json(folder / "summary.json")["epochs"] == 2
        last = [line for line in tiny.metrics(folder) if "val_top1" in line][-1]
        assert last["step"] == tiny.saved_state(folder)["global_step"]
        assert math.isclose(last["val_top1"], tiny.results(out)["top1"], abs_tol=1e-6) or folder != out
