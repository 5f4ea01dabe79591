"""Loggers by name: what they keep of a run, stopped or not, and a user's callbacks beside ours."""

import csv
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from refusals import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from semmae.train.batches import Training
from semmae.train.loggers import LOGGERS, check_loggers, open_loggers
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit

STEPS = 3


class Mean(pl.LightningModule):
    """Learns the mean of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(5))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        return ((batch["images"] - self.mean) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    out: Path, epochs: int = 1, resume: bool = False, callbacks: list[pl.Callback] | None = None, **how: Any
) -> None:
    rows = [{"images": torch.full((5,), float(row))} for row in range(2 * STEPS)]
    loader: DataLoader[dict[str, Any]] = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    training = Training(precision="float32", resume=resume, callbacks=tuple(callbacks or ()), **how)
    with tiny.every_step():
        fit(Mean(), loader, FitOptions(training, out, "mean", epochs, clip=0.0))


def events(folder: Path) -> list[float]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [event.value for event in reader.Scalars("loss")]


def rows_of(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_every_logger_has_the_figures_of_metrics_jsonl(tmp_path: Path) -> None:
    train(tmp_path, logger="tensorboard,csv", hyperparameters={"seed": 3})

    losses = tiny.losses(tmp_path)
    assert len(losses) == STEPS
    assert events(tmp_path / "tensorboard") == pytest.approx(losses, rel=1e-6)
    assert rows_of(tmp_path / "csv/version_0/metrics.csv") == pytest.approx(losses, rel=1e-6)
    for folder in ("tensorboard", "csv/version_0"):
        assert (tmp_path / folder / "hparams.yaml").read_text() == "seed: 3\n"
    assert not (tmp_path / "loggers.json").exists()


def test_a_resumed_run_keeps_what_was_logged(tmp_path: Path) -> None:
    train(tmp_path, logger="tensorboard,csv")
    train(tmp_path, epochs=2, resume=True, logger="tensorboard,csv")

    losses = tiny.losses(tmp_path)
    assert len(losses) == 2 * STEPS
    assert events(tmp_path / "tensorboard") == pytest.approx(losses, rel=1e-6)
    files = [tmp_path / f"csv/version_{number}/metrics.csv" for number in range(2)]
    assert rows_of(files[0]) + rows_of(files[1]) == pytest.approx(losses, rel=1e-6)


def test_no_logger_leaves_the_metrics_alone(tmp_path: Path) -> None:
    train(tmp_path, logger="none")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "checkpoints"}


class Seen(pl.Callback):
    """What a callback of the user's finds at the end of every step."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lines: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        path = self.out / "metrics.jsonl"
        self.lines.append(len(path.read_text().splitlines()) if path.exists() else 0)


def test_a_users_callback_comes_after_ours(tmp_path: Path) -> None:
    seen = Seen(tmp_path)
    train(tmp_path, callbacks=[seen])
    assert seen.lines == [1, 2, 2]  # the epoch's last step is reported at the epoch's end


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_whose_library_is_missing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda library: None)
    kind = LOGGERS[name]
    if kind.library is None:
        check_loggers([name])
        return
    package = kind.library if kind.extra is None else f'"semmae[{kind.extra}]"'
    with refused(f"--logger {name}", kind.library, f"pip install {package}"):
        check_loggers([name])


def test_a_near_name_is_named() -> None:
    with refused("--logger", "'tensorbord'", '"tensorboard"'):
        check_loggers(["csv", "tensorbord"])


class Config(dict[str, Any]):
    """Of a run: `update` as wandb's, which takes a word more."""

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        super().update(values)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Weights & Biases without its service: `init` gives a run that only remembers, and is the open one until it ends.

    The library is large and asks for an account; what is ours is which run is begun, gone on with and ended.
    """
    fake: Any = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.run, fake.runs = None, []
    fake.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))

    class Run:
        def __init__(self, **asked: Any) -> None:
            self.asked, self.id, self.logged, self.config, self.ended = asked, asked["id"], [], Config(), None
            fake.runs.append(self)
            fake.run = self

        def log(self, figures: dict[str, float]) -> None:
            self.logged.append(figures)

        def finish(self, exit_code: int) -> None:
            self.ended, fake.run = exit_code, None

    fake.init = Run
    modules = {"wandb": fake, "wandb.sdk": types.ModuleType("wandb.sdk")}
    modules["wandb.sdk.lib"] = types.SimpleNamespace(RunDisabled=type("RunDisabled", (), {}))  # type: ignore[assignment]
    modules["wandb.wandb_run"] = types.SimpleNamespace(Run=type("Run", (), {}))  # type: ignore[assignment]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    yield fake


def test_a_resumed_run_goes_on_with_its_run_of_wandb(wandb: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", logger="wandb")
    train(tmp_path / "run", epochs=2, resume=True, logger="wandb")
    train(tmp_path / "other", logger="wandb")

    first, resumed, other = wandb.runs
    assert first.id == resumed.id != other.id
    assert first.asked["resume"] == "allow" and first.asked["project"] == "semmae"
    assert Path(first.asked["dir"]) == tmp_path / "run" and "mode" not in first.asked
    assert json.loads((tmp_path / "run/loggers.json").read_text()) == {"wandb": first.id}
    logged = [figures["loss"] for run in (first, resumed) for figures in run.logged]
    assert logged == pytest.approx(tiny.losses(tmp_path / "run"), rel=1e-6)
    assert [run.ended for run in wandb.runs] == [0, 0, 0] and wandb.run is None


def test_a_run_that_fails_is_ended_as_one(wandb: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_loggers(["wandb"], tmp_path, "mean", {}, resume=False):
        raise RuntimeError
    assert wandb.runs[0].ended == 1


def test_a_run_of_wandb_that_is_open_stays_open(wandb: Any, tmp_path: Path) -> None:
    own = wandb.init(id="own")
    train(tmp_path, logger="wandb")
    assert wandb.runs == [own] and own.ended is None and len(own.logged) == STEPS


def test_what_wandb_refuses_is_one_line(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.Error("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with refused("--logger wandb:", "WANDB_MODE"):
        train(tmp_path, logger="wandb")
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Lightning's logger for MLflow without MLflow, which is large: remembers what it was made with, is given a run."""
    made: list[dict[str, Any]] = []

    class Logger(pl.loggers.logger.DummyLogger):
        def __init__(self, experiment_name: str, **asked: Any) -> None:
            super().__init__()
            self.run_id = asked["run_id"] or f"run {len(made)}"
            made.append({"experiment_name": experiment_name, **asked, "given": self.run_id})

        @property
        def version(self) -> str:
            return str(self.run_id)

    exceptions = types.SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)  # type: ignore[arg-type]
    monkeypatch.setattr("pytorch_lightning.loggers.MLFlowLogger", Logger)
    yield made


def test_mlflow_keeps_its_runs_in_the_folder_unless_a_server_is_named(
    mlflow: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(tmp_path, logger="mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    train(tmp_path, epochs=2, resume=True, logger="mlflow")

    first, resumed = mlflow
    assert first["tracking_uri"] == (tmp_path / "mlruns").as_uri() and first["experiment_name"] == "semmae"
    assert first["run_id"] is None and resumed["run_id"] == first["given"]
    assert resumed["tracking_uri"] == "http://tracker:5000"
