"""Several nodes: two processes of this machine, as torchrun starts them or as a user does on every node."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from forked import as_script, in_a_process
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from semmae.options.pretrain import PretrainOptions
from semmae.run import ranks
from semmae.run.ranks import check_processes, is_rank_zero, local_rank, present, sharing, take_rank
from semmae.train.batches import Training
from semmae.train.frozen import usual_device
from semmae.train.hardware import accelerator, cluster
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit
from semmae.verbs import pretrain

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_RANK", "RANK", "NODE_RANK", "MASTER_ADDR", "SLURM_JOB_NAME",
        "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID")  # fmt: skip


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


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "nodes", "devices", "named"),
    [
        ({}, 2, 1, ["--nodes 2: ", "torchrun", "srun"]),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4"}, 1, 2, ["2 processes", "torchrun", "4"]),
        ({"SLURM_NTASKS": "1"}, 1, 4, ["4 processes", "srun", "1"]),
        ({"SLURM_NTASKS": "4"}, 2, 2, ["Slurm", "--ntasks-per-node=2"]),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, 2, 2, ["tasks per node", "4", "Slurm"]),
    ],
)
def test_other_processes_than_asked_for_are_refused(
    given: dict[str, str], nodes: int, devices: int, named: list[str], creatures: Path, tmp_path: Path,
    alone: pytest.MonkeyPatch, refuse: tiny.Refuse,
) -> None:  # fmt: skip
    for name, value in given.items():
        alone.setenv(name, value)
    alone.setattr(ranks, "_size", (1, 1))
    arguments = command(creatures / "images", tmp_path / "run", "--nodes", str(nodes), "--devices", str(devices))
    refuse(arguments, tmp_path / "run", *named)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"MASTER_ADDR": "host", "NODE_RANK": "1"},
        {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"},
    ],
)
def test_as_many_as_asked_for_are_welcome(given: dict[str, str], alone: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        alone.setenv(name, value)
    check_processes(*((2, 2) if given else (1, 2)))


def test_of_processes_that_begin_a_node_only_its_rank_is_known(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(ranks, "_size", (1, 1))
    alone.setenv("NODE_RANK", "1")
    take_rank(1, 4)  # a cluster may number nodes that have nothing to do with each other
    assert is_rank_zero()
    take_rank(2, 4)
    assert not is_rank_zero()
    alone.setenv("LOCAL_RANK", "0")  # as Lightning writes it there when the first training begins
    take_rank(2, 4)
    assert not is_rank_zero()


def test_processes_are_numbered_over_all_nodes(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone.setattr(ranks, "_size", (1, 1))
    alone.setenv("NODE_RANK", "1")
    for nodes, local, own, every in ((2, "2", 6, range(8)), (1, "2", 2, range(4))):
        alone.setenv("LOCAL_RANK", local)
        with sharing(tmp_path, nodes, 4):
            assert present(4, met=True)[:2] == (every, own)
    alone.delenv("LOCAL_RANK")
    with sharing(tmp_path, 2, 4):
        assert present(4, met=False)[:2] == (range(0, 8, 4), 4)


def test_torchrun_inside_slurm_gives_the_ranks(alone: pytest.MonkeyPatch) -> None:
    """`srun --ntasks-per-node=1 torchrun --nproc-per-node 2`: Slurm knows of one process a node."""
    for name, value in {"SLURM_NTASKS": "1", "TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}.items():
        alone.setenv(name, value)
    check_processes(1, 2)
    assert cluster() == []


def test_slurm_puts_no_job_into_the_queue_again(alone: pytest.MonkeyPatch) -> None:
    assert cluster() == []
    alone.setenv("SLURM_NTASKS", "1")
    assert [environment.auto_requeue for environment in cluster()] == [False]


def test_tasks_of_slurm_may_see_one_gpu_each(alone: pytest.MonkeyPatch) -> None:
    """By --gpus-per-task=1: what each computes on is the first that it sees."""
    for name, value in {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
                        "SLURM_NODEID": "1"}.items():  # fmt: skip
        alone.setenv(name, value)
    alone.setattr(torch.cuda, "is_available", lambda: True)
    alone.setattr(torch.cuda, "device_count", lambda: 1)
    taken: list[int] = []
    alone.setattr(torch.cuda, "set_device", taken.append)
    alone.setattr("pytorch_lightning.accelerators.cuda.num_cuda_devices", lambda: 1)
    assert accelerator(1) == "cuda"
    trainer = pl.Trainer(
        accelerator=accelerator(2), devices=2, num_nodes=2, strategy="ddp", plugins=cluster(), logger=False
    )
    assert isinstance(trainer.strategy, DDPStrategy)
    assert (trainer.world_size, trainer.global_rank) == (4, 3)
    assert trainer.strategy.root_device == torch.device("cuda", 0) == usual_device()
    alone.setattr(torch.cuda, "device_count", lambda: 2)  # a task that sees all of its node
    assert accelerator(2) == "cuda" and usual_device() == torch.device("cuda", 1)
    assert taken == [0, 1]  # and what memory is pinned by is there too


def test_slurm_s_ranks_count_where_others_are_set_too(alone: pytest.MonkeyPatch) -> None:
    """As by a profile that sets LOCAL_RANK for every shell; Lightning takes Slurm's."""
    for name, value in {"SLURM_NTASKS": "16", "SLURM_PROCID": "8", "SLURM_LOCALID": "3", "LOCAL_RANK": "0",
                        "RANK": "0"}.items():  # fmt: skip
        alone.setenv(name, value)
    assert not is_rank_zero() and local_rank() == 3


def test_every_process_whitens_by_its_own_gpu(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("LOCAL_RANK", "3")
    for name, value in {"is_available": True, "device_count": 8, "set_device": None}.items():
        alone.setattr(torch.cuda, name, lambda *_, value=value: value)
    asked: list[torch.device] = []
    alone.setattr(pretrain, "class_tokens", lambda *given: asked.append(given[4]))
    options = SimpleNamespace(image_size=32, num_workers=0)
    alone.setattr(pretrain, "teacher_size", lambda *_: 32)
    pretrain.image_tokens(options, None, None, None)  # type: ignore[arg-type]
    assert asked == [torch.device("cuda", 3)]


@pytest.mark.slow
def test_two_nodes_go_the_whole_way(encoder: Path, creatures: Path, alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the defaults parts are learned on the way, by the first process alone; the other one labels and trains."""
    given = command(creatures / "images", tmp_path / "run", "--teacher", str(encoder), "--nodes", "2")
    given = [{"random": "semantic"}.get(word, word) for word in given]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(tiny.free_port())}
    nodes = [in_a_process(given, partial(os.environ.update, {**places, "NODE_RANK": str(rank)})) for rank in range(2)]
    assert [node.ended(300) for node in nodes] == [0, 0], [node.output for node in nodes]
    assert (tmp_path / "run" / "parts" / "parts.npy").is_file()
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [4, 8]


class Rate(pl.LightningModule):
    """Learns a number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        return (batch["images"] - self.number).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Company(pl.Callback):
    """How many train together, as Lightning has it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append((trainer.world_size, torch.distributed.is_initialized()))


@pytest.mark.parametrize(
    "given",
    [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0"},
        {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
)
def test_the_first_process_trains_alone_whatever_has_started_the_others(
    given: dict[str, str], alone: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in given.items():
        alone.setenv(name, value)
    options = PretrainOptions(
        data="photos", out=tmp_path, nodes=2, devices=2, strategy="fsdp", gradients="bf16", logger="none"
    )
    company = Company()
    training = Training.alone(options, callbacks=(company,))
    rows = [{"images": torch.ones(1)}] * 4
    loader: DataLoader[Any] = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    fit(Rate(), loader, FitOptions(training, tmp_path, "rate", 1, clip=0.0))
    assert company.seen == [(1, False)]


def test_measuring_is_not_shared(whole_run: Path, alone: pytest.MonkeyPatch, refuse: tiny.Refuse) -> None:
    alone.setenv("MASTER_ADDR", "host")
    alone.setenv("NODE_RANK", "0")
    command = ["parts", "--out", str(whole_run / "parts"), "--quality-only", "--nodes", "2", "--masks", str(whole_run)]
    refuse(command, whole_run, "--nodes 2: ")


@pytest.mark.parametrize("verb", ["knn", "evaluate", "probe"])
def test_what_begins_its_own_processes_is_started_once(
    verb: str, creatures: Path, tmp_path: Path, alone: pytest.MonkeyPatch, refuse: tiny.Refuse
) -> None:
    alone.setenv("TORCHELASTIC_RUN_ID", "a")
    alone.setenv("WORLD_SIZE", "2")
    given = ["--encoder", "timm:vit_tiny_patch16_224", "--data", str(creatures / "images"), "--devices", "2"]
    refuse([verb, *given, "--out", str(tmp_path / "run")], tmp_path / "run", "--devices 2", "torchrun", "2")
