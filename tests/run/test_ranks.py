"""Which of several processes this one is, and who trains with it, as launchers and users say it in the environment."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pytorch_lightning.strategies import DDPStrategy
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
    processes = ["--nodes", str(nodes), "--devices", str(devices)]
    data = ["--data", str(creatures / "images"), "--masking", "random", *tiny.SMALL]
    arguments = ["pretrain", *data, "--out", str(tmp_path / "run"), *processes]
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
