"""The smallest runs of the verbs, seconds each: 32 creatures of 48 pixels, 16 patches, 12 blocks 192 wide."""

import json
import math
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import check_refusal
from safetensors.torch import load_file
from torch import Tensor

from semmae.cli import run
from semmae.cli.arguments import parse
from semmae.formats.folders import save_encoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.run.signals import Interrupted, Stopped
from semmae.train import meter, stopping
from semmae.train.stage import LAST

_TRUNCATED_NORMAL = -2.5635048911790363  # a sum of random weights
COUNT = 32
BATCH = 8
EPOCHS = 3
STEPS = COUNT // BATCH * EPOCHS

# float32: what is golden was found in it, and `auto` is bf16 on some processors.
TRAIN: dict[str, Any] = {"batch_size": BATCH, "workers": 0, "precision": "float32"}
SIZE: dict[str, Any] = {"model": "vit_mini", "image_size": 32, "patch_size": 8}
SMALL = ["--model", "vit_mini", "--image-size", "32", "--patch-size", "8", "--batch-size", "8", "--workers", "0"]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def losses(run: Path) -> list[float]:
    """The loss of every step, of a run made inside `every_step`; each step is reported once and in order."""
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def new_encoder(folder: Path, spec: EncoderSpec, seed: int = 0) -> Path:
    """An encoder that has learned nothing, saved."""
    torch.manual_seed(seed)
    save_encoder(Encoder(spec), folder)
    return folder


def divide(creatures: Path, folder: Path) -> Path:
    """The creatures as train/CLASS and val/CLASS: of four images of a class three, and one."""
    for number, path in enumerate(sorted((creatures / "images").glob("*/*.png"))):
        target = folder / ("val" if number % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def assert_golden(run: Path, golden: list[float]) -> None:
    """The first losses, as another processor may round them.

    They begin with random weights, which older releases of torch draw otherwise.
    """
    weights = torch.nn.init.trunc_normal_(torch.empty(100), generator=torch.Generator().manual_seed(0))
    if not math.isclose(float(weights.double().sum()), _TRUNCATED_NORMAL, rel_tol=1e-4):
        pytest.skip(f"torch {torch.__version__} draws other weights from the same seed")
    found = losses(run)[: len(golden)]
    assert found == pytest.approx(golden, rel=2e-4), f"where this is intended, the new losses are {found}"


def assert_same_weights(folder: Path, other: Path) -> None:
    """Bit for bit."""
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def saved_state(run: Path) -> dict[str, Any]:
    """checkpoints/last.ckpt, read by the unpickler that executes nothing."""
    state = torch.load(run / "checkpoints" / LAST, weights_only=True)
    assert isinstance(state, dict)
    return state


def finite(state: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point())


@contextmanager
def every_step() -> Iterator[None]:
    """Runs made inside write each step's loss to metrics.jsonl."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "LOG_EVERY", 1)
        yield


@contextmanager
def interrupted(stage: str, step: int, signum: int = signal.SIGINT) -> Iterator[None]:
    """Ctrl-C, or another signal, while `stage` does step number `step`, which is done to its end and kept."""
    real = meter.Meter.on_train_batch_start
    sent: list[int] = []

    def stop(own: meter.Meter, pl_trainer: Any, *rest: Any) -> None:
        real(own, pl_trainer, *rest)
        if own.options.stage == stage and pl_trainer.global_step == step - 1 and not sent:
            sent.append(signum)  # once, though several batches may make the step
            os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patch, pytest.raises((Interrupted, Stopped)) as stopped:
        patch.setattr(meter.Meter, "on_train_batch_start", stop)
        yield
    assert stopped.value.signum == signum


@contextmanager
def saving(step: int) -> Iterator[None]:
    """Runs made inside write a checkpoint after this step, and others as they would."""
    with pytest.MonkeyPatch.context() as patch:
        real = stopping.Keeper._wish
        patch.setattr(stopping.Keeper, "_wish", lambda keeper, on, due: real(keeper, on, due or on.global_step == step))
        yield


def pretrain_on(parts: Path, data: Path, out: Path, *arguments: str) -> list[str]:
    """The command line of a run on part labels that are there already."""
    return ["pretrain", "--data", str(data), "--parts", str(parts), "--out", str(out), *SMALL, *arguments]


def instead(given: list[str], base: list[str]) -> list[str]:
    """`given`, and of the pairs of option and value in `base` those that it leaves out."""
    pairs = zip(base[::2], base[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in given for word in pair), *given]


Refuse = Callable[..., str]  # `refusal` as a fixture, without capsys


def refusal(
    capsys: pytest.CaptureFixture[str], arguments: list[str], place: Path, *facts: object, code: int = 2
) -> str:
    """The one line with which a command ends that is refused; what lies at `place` stays as it was."""
    capsys.readouterr()
    before = (place.exists(), listing(place))
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("semmae: "), error
    check_refusal(error, *facts)
    assert (place.exists(), listing(place)) == before
    return error


def rewrite_store(parts: Path, **facts: Any) -> None:
    """Other facts in the parts.json of a store."""
    meta = json.loads((parts / "parts.json").read_text()) | facts
    (parts / "parts.json").write_text(json.dumps(meta))


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, files with size and time of change: equal listings, nothing was touched."""
    stats = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {
        path.relative_to(folder).as_posix(): (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        for path, stat in stats.items()  # a folder's time changes with the lock that comes and goes
    }


def options_from(kind: type[Any], arguments: list[str]) -> Any:
    """The options that a command line gives."""
    parsed = parse(kind, arguments)
    assert parsed is not None, "help was asked for"
    return parsed[0]
