"""Several nodes: two processes of this machine, as torchrun starts them or as a user does on every node."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from forked import as_script, in_a_process
from safetensors.torch import load_file


def command(data: Path, out: Path, *arguments: str) -> list[str]:
    given = ["--data", str(data), "--out", str(out), "--masking", "random", "--epochs", "2", "--precision", "float32"]
    return ["pretrain", *given, *tiny.SMALL, *arguments]


def as_two_nodes(arguments: list[str]) -> list[str]:
    """What the nodes write to stderr, each started by hand with its rank."""
    program = Path(sys.executable).with_name("semmae")
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(tiny.free_port()), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [program, *arguments, "--nodes", "2"],
            env={**os.environ, **given, "NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    return errors


@pytest.fixture(scope="module")
def two_devices(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    program = Path(sys.executable).with_name("semmae")
    given = command(creatures / "images", out, "--devices", "2")
    subprocess.run([program, *given], check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out


@pytest.mark.slow
def test_two_nodes_train_as_two_devices(two_devices: Path, creatures: Path, tmp_path: Path) -> None:
    """The same ranks on one node or on two: the same weights. And only the first one writes and reports."""
    errors = as_two_nodes(command(creatures / "images", tmp_path / "nodes"))
    tiny.assert_same_weights(tmp_path / "nodes" / "encoder", two_devices / "encoder")
    steps = [[line["step"] for line in tiny.metrics(run)] for run in (tmp_path / "nodes", two_devices)]
    assert steps == [[4, 8], [4, 8]]  # 32 images, 8 a step over both
    assert "epoch 2/2" in errors[0]
    assert "epoch" not in errors[1]


# The second process alone is asked to stop, as it does its second step.
STOPPED = """
import os, signal
from semmae.cli import main
from semmae.train.meter import Meter

real = Meter.on_train_batch_start

def stop(meter, trainer, *rest):
    real(meter, trainer, *rest)
    if (trainer.global_rank, trainer.global_step) == (1, 1):
        os.kill(os.getpid(), signal.SIGTERM)

Meter.on_train_batch_start = stop
main()
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(two_devices: Path, creatures: Path, tmp_path: Path) -> None:
    """In the middle of an epoch; and resumed, they end as they would have."""
    script, out = tmp_path / "stopped.py", tmp_path / "run"
    script.write_text(STOPPED)
    given = command(creatures / "images", out, "--devices", "2")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = subprocess.run(
        [sys.executable, script, *given], timeout=300, env=alone, stderr=subprocess.PIPE, text=True
    )
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert stopped.stderr.count("semmae: stopped; ") == 1
    assert tiny.saved_state(out)["global_step"] == 3  # known to all a step later
    program = Path(sys.executable).with_name("semmae")
    subprocess.run([program, "pretrain", "--out", out, "--resume"], check=True, timeout=300, env=alone)
    tiny.assert_same_weights(out / "encoder", two_devices / "encoder")
    losses = [[(line["step"], line["loss"]) for line in tiny.metrics(run)] for run in (out, two_devices)]
    assert losses[0] == losses[1]


# Stops as it does the step of that number.
STEPS = """
import os, signal
from semmae.cli import main
from semmae.train import meter
from semmae.train.meter import Meter

meter.LOG_EVERY = 1
real = Meter.on_train_batch_start

def stop(meter, trainer, *rest):
    real(meter, trainer, *rest)
    if trainer.global_rank == 0 and trainer.global_step == int(os.environ["STOP"]) - 1:
        os.kill(os.getpid(), signal.SIGTERM)

Meter.on_train_batch_start = stop
main()
"""


@pytest.mark.parametrize("verb", ["pretrain", pytest.param("teacher", marks=pytest.mark.slow)])
def test_one_device_two_and_one_again_train_as_one(verb: str, creatures: Path, tmp_path: Path) -> None:
    """In float32, each step's loss; the masks are random. KoLeo's neighbours are those of each device."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    codes = []
    for folder, devices, stop in [("one", 1, 99), ("run", 1, 2), ("run", 2, 5), ("run", 1, 99)]:
        given = command(creatures / "images", tmp_path / folder, "--devices", str(devices))
        given = [{"random": "block"}.get(word, word) for word in given]
        given = [verb, *given[1:], *(["--koleo", "0"] if verb == "teacher" else [])]
        codes.append(as_script(script, given, STOP=str(stop)).ended(120))
    assert codes == [0, 128 + signal.SIGTERM, 128 + signal.SIGTERM, 0]
    one, run = (tiny.losses(tmp_path / folder) for folder in ("one", "run"))
    assert len(one) == 8 and run == pytest.approx(one, rel=1e-6 if verb == "pretrain" else 1e-5)
    for name in ("loss_dino", "loss_ibot") if verb == "teacher" else ():
        one, run = ([line[name] for line in tiny.metrics(tmp_path / folder)] for folder in ("one", "run"))
        assert run == pytest.approx(one, rel=1e-5), name


@pytest.mark.slow
def test_a_network_in_shards_trains_as_a_whole_one(creatures: Path, tmp_path: Path) -> None:
    """Of one process, two, and one again, each with the shards of the last; two that hold it whole do the same."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    runs = [("one", 1, "ddp", 99), ("two", 2, "ddp", 99)]
    runs += [("run", 1, "fsdp", 2), ("run", 2, "fsdp", 5), ("run", 1, "fsdp", 99)]
    for folder, devices, strategy, stop in runs:
        given = ["--devices", str(devices), "--strategy", strategy, "--clip", "0.5"]
        given = command(creatures / "images", tmp_path / folder, *given)
        child = as_script(script, given, STOP=str(stop))
        assert child.ended(120) == (0 if stop == 99 else 128 + signal.SIGTERM), child.output
    one = tiny.metrics(tmp_path / "one")
    for folder in ("run", "two"):
        for name in ("loss", "grad_norm"):
            found = [line[name] for line in tiny.metrics(tmp_path / folder)]
            assert found == pytest.approx([line[name] for line in one], rel=1e-5), (folder, name)
    ours, theirs = (load_file(tmp_path / folder / "encoder/model.safetensors") for folder in ("run", "one"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.slow
def test_shards_in_bf16_train_as_a_whole_network_in_bf16(creatures: Path, tmp_path: Path) -> None:
    program, alone = Path(sys.executable).with_name("semmae"), {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, given in [("one", []), ("two", ["--devices", "2", "--strategy", "fsdp"])]:
        given = command(creatures / "images", tmp_path / folder, *given)
        given = [{"float32": "bf16"}.get(word, word) for word in given]
        subprocess.run([program, *given], check=True, timeout=300, env=alone)
    one, two = (tiny.metrics(tmp_path / folder) for folder in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-2)
    assert {each.dtype for each in load_file(tmp_path / "two/encoder/model.safetensors").values()} == {torch.float32}


# The second process alone meets a fault as it does its second step, or the first one.
FAILING = """
import errno, os
import torch
from semmae.cli import main
from semmae.errors import UserError
from semmae.train import meter
from semmae.train.pretrain import PretrainTask

fault = os.environ["FAULT"]
real = PretrainTask.training_step

def step(task, batch, index):
    loss = real(task, batch, index)
    if task.global_step == 1:
        if fault == "file" and task.global_rank == 1:
            raise UserError("photos/7.jpg: not readable (truncated); restore it")
        if fault == "bug" and task.global_rank == 1:
            raise KeyError("seven")
        if fault == "disk" and task.global_rank == 0:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
        if fault == "nan" and task.global_rank == 1:
            loss = loss * float("nan")
    return loss

PretrainTask.training_step = step
meter.LOG_EVERY = 1
main()
"""


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        pytest.param("file", 2, "semmae: photos/7.jpg: not readable", marks=pytest.mark.slow),
        pytest.param("disk", 1, "semmae: metrics.jsonl: ", marks=pytest.mark.slow),
        ("nan", 2, "semmae: pretrain: loss is nan at step 1"),
        pytest.param("bug", 1, "KeyError: 'seven'", marks=pytest.mark.slow),
    ],
)
def test_what_fails_one_process_ends_all_with_one_message(
    fault: str, code: int, said: str, creatures: Path, tmp_path: Path
) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    given = command(creatures / "images", tmp_path / "run", "--devices", "2")
    child = as_script(script, given, FAULT=fault)
    assert child.ended(120) == code, child.output
    assert child.output.count(said) == 1, child.output
    assert child.output.count("semmae: ") == (fault != "bug") + child.output.count("semmae: warning"), child.output


@pytest.mark.slow
def test_two_nodes_go_the_whole_way(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """By the defaults parts are learned on the way, by the first process alone; the other one labels and trains."""
    given = command(creatures / "images", tmp_path / "run", "--teacher", str(encoder), "--nodes", "2")
    given = [{"random": "semantic"}.get(word, word) for word in given]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(tiny.free_port())}
    nodes = [in_a_process(given, partial(os.environ.update, {**places, "NODE_RANK": str(rank)})) for rank in range(2)]
    assert [node.ended(300) for node in nodes] == [0, 0], [node.output for node in nodes]
    assert (tmp_path / "run" / "parts" / "parts.npy").is_file()
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [4, 8]
