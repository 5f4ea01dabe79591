"""Where the figures of a training go besides metrics.jsonl: Lightning's loggers by name.

Notable here:
- no library is imported before its logger is opened, nor to find out whether it is there;
- what a service calls a run is kept in loggers.json: a resumed run continues the same one;
- each stage of a run is a run of its own to a service, closed when its training ends.
"""

import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semmae.errors import UserError, near
from semmae.files import read_json, write_json
from semmae.names import shown

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

RUNS = "loggers.json"  # name of a logger → its service's name of the run
PROJECT = "semmae"  # of services that sort runs by projects

_log = logging.getLogger("semmae")


@contextmanager
def _tensorboard(out: Path, stage: str, run: str | None) -> Iterator["Logger | None"]:
    """Nothing in a locale without UTF-8 whose letters are in the folder's name."""
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        str(out).encode()
    except UnicodeEncodeError:
        _log.warning(
            "%s: TensorBoard opens no folder of this name in this locale, so no events are written (metrics.jsonl "
            "has the same figures); set PYTHONUTF8=1 for them",
            out,
        )
        yield None
    else:
        yield TensorBoardLogger(out, name="", version="tensorboard", default_hp_metric=False)


@contextmanager
def _csv(out: Path, stage: str, run: str | None) -> Iterator["Logger"]:
    """One file for each start: Lightning's deletes the one that it finds."""
    from pytorch_lightning.loggers import CSVLogger

    yield CSVLogger(out, name="csv", flush_logs_every_n_steps=1)


@contextmanager
def _wandb(out: Path, stage: str, run: str | None) -> Iterator["Logger"]:
    """WANDB_PROJECT, WANDB_MODE and the like count. A run that is open, as in a notebook, is used and left open."""
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    others = wandb.run is not None
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    logger = WandbLogger(_shown(out), out, run or uuid.uuid4().hex, project=project, job_type=stage)
    try:
        _ = logger.experiment  # begins here, where what is wrong can be said
    except wandb.errors.Error as error:
        raise UserError(f"--logger wandb: {error}; run `wandb login`, or set WANDB_MODE=offline") from error
    failed = 1
    try:
        yield logger
        failed = 0
    finally:
        if not others:
            logger.experiment.finish(exit_code=failed)


@contextmanager
def _mlflow(out: Path, stage: str, run: str | None) -> Iterator["Logger"]:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count; else it is a folder in the run."""
    from mlflow.exceptions import MlflowException
    from pytorch_lightning.loggers import MLFlowLogger

    logger = MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=_shown(out),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or (out.resolve() / "mlruns").as_uri(),
        tags={"stage": stage},
        run_id=run,
    )
    try:
        _ = logger.run_id  # begins here, where what is wrong can be said
    except MlflowException as error:
        raise UserError(f"--logger mlflow: {error}; look at MLFLOW_TRACKING_URI, or unset it") from error
    yield logger


def _shown(out: Path) -> str:
    """A stage's folder inside a run is no name without the run's."""
    return "/".join(out.resolve().parts[-2:])


@dataclass(frozen=True)
class LoggerKind:
    """A logger that has a name."""

    library: str | None  # to import, besides Lightning
    extra: str | None  # of semmae that installs it; None where semmae needs it anyway
    open: Callable[[Path, str, str | None], AbstractContextManager["Logger | None"]]  # of folder, stage, service's run

    @property
    def is_service(self) -> bool:
        """Whether its runs have names of their own, by which they are gone on with."""
        return self.extra is not None


LOGGERS: Mapping[str, LoggerKind] = {
    "tensorboard": LoggerKind("tensorboard", None, _tensorboard),
    "csv": LoggerKind(None, None, _csv),
    "wandb": LoggerKind("wandb", "wandb", _wandb),
    "mlflow": LoggerKind("mlflow", "mlflow", _mlflow),
}


def logger_names(given: str) -> tuple[str, ...]:
    """The names in a text such as "tensorboard,csv"; of "none" none."""
    names = tuple(name.strip() for name in given.split(","))
    return () if names == ("none",) else names


def check_loggers(names: Iterable[str]) -> None:
    """Refuse names that are not known, and those whose library is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"--logger: unknown logger {shown(name)}{near(name, LOGGERS)}")
        kind = LOGGERS[name]
        if kind.library is not None and importlib.util.find_spec(kind.library) is None:
            package = kind.library if kind.extra is None else f'"semmae[{kind.extra}]"'
            raise UserError(f"--logger {name} needs {kind.library}; pip install {package}")


@contextmanager
def open_loggers(
    names: Iterable[str], out: Path, stage: str, config: Mapping[str, Any], resume: bool
) -> Iterator[list["Logger"]]:
    """The loggers of these names, closed in the end. `config` is shown by each of them beside a run that is new."""
    record = out / RUNS
    runs = read_json(record) if resume and record.exists() else {}
    with ExitStack() as stack:
        loggers = []
        for name in dict.fromkeys(names):
            kind = LOGGERS[name]
            logger = stack.enter_context(kind.open(out, stage, runs.get(name)))
            if logger is None:
                continue
            loggers.append(logger)
            if config and name not in runs:
                logger.log_hyperparams(dict(config))
            if kind.is_service:
                runs[name] = logger.version
        if any(LOGGERS[name].is_service for name in names):
            write_json(record, runs)
        yield loggers
