"""How many processes load images: as many as there are cores for, and as shared memory has room for."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from refusals import refused
from torch.utils.data import Dataset

from semmae import cores
from semmae.data import workers
from semmae.data.loaders import CropDataset, LocalCrops, WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.options import kind_of
from semmae.options.shared import WorkerOptions
from semmae.train.batches import Training


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A machine of so many cores, in a container that may have a share of their time."""

    def become(count: int, quota: str | None = None, **environment: str) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
        for name in ("SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)

    return become


@pytest.mark.parametrize(
    ("count", "devices", "wanted"),
    # Of two cores as many as before there was a choice: on a GPU both load, and on a CPU they wait when they are ahead.
    [
        (1, 1, 1),
        (2, 1, 2),
        (3, 1, 2),
        (4, 1, 3),
        (8, 1, 7),
        (17, 1, 16),
        (96, 1, 16),
        (96, 8, 11),
        (8, 8, 1),
        (2, 4, 1),
    ],
)
def test_auto_is_one_less_than_the_share_of_the_cores(
    machine: Callable[..., None], count: int, devices: int, wanted: int
) -> None:
    machine(count)
    training = Training(resume=False, devices=devices)
    assert training.num_workers == wanted
    assert Training(resume=False, devices=devices, workers=5).num_workers == 5


def test_a_container_and_slurm_have_fewer_cores(machine: Callable[..., None]) -> None:
    machine(64, "400000 100000\n")
    assert cores.usable_cores() == 4 and WorkerOptions().num_workers == 3
    machine(64, "max 100000\n")
    assert cores.usable_cores() == 64
    machine(64, "50000 100000\n")
    assert cores.usable_cores() == 1 and WorkerOptions().num_workers == 1
    machine(64, "max 100000\n", SLURM_PROCID="3", SLURM_CPUS_PER_TASK="8")
    assert Training(resume=False, devices=4).num_workers == 7  # srun has dealt them out
    machine(64, "max 100000\n", SLURM_CPUS_PER_TASK="8")  # a shell within a job: the processes share what it has
    assert Training(resume=False, devices=4).num_workers == 15


@pytest.mark.parametrize("verb", ["teacher", "parts", "pretrain", "knn", "probe", "finetune", "segment", "embed"])
def test_the_option_is_a_number_or_auto(verb: str) -> None:
    kind = kind_of(verb)
    given = ["--data", "d", "--out", "o", "--workers"]
    required = ["--encoder", "e"] if "encoder" in kind.__dataclass_fields__ else []
    for text, value in (("auto", "auto"), ("0", 0), ("7", 7)):
        assert tiny.options_from(kind, [*required, *given, text]).workers == value
    with refused("--workers 'many'", "a whole number or auto"):
        tiny.options_from(kind, [*required, *given, "many"])


MB = 10**6


@pytest.mark.parametrize(
    ("room", "asked", "batch", "wanted"),
    [
        (None, 16, 10 * MB, (16, 4)),  # macOS
        (10**12, 16, 10 * MB, (16, 4)),
        (10**12, 16, 77 * MB, (16, 2)),
        (10**12, 0, 10 * MB, (0, 4)),
        (64 * MB, 16, 0, (16, 4)),  # of a size that nobody knows
        (180 * MB, 4, 10 * MB, (4, 4)),
        (179 * MB, 4, 10 * MB, (4, 3)),
        (64 * MB, 4, 10 * MB, (4, 1)),
    ],
)
def test_what_is_loaded_ahead_fits_into_shared_memory(
    room: int | None,
    asked: int,
    batch: int,
    wanted: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workers, "_shared_room", lambda: room)
    assert workers.plan(asked, batch) == wanted and not caplog.records


def test_where_processes_do_not_fit_there_are_fewer_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_shared_room", lambda: 64 * MB)
    assert workers.plan(9, 10 * MB) == workers.plan(9, 10 * MB) == (4, 1)
    assert workers.plan(3, 40 * MB) == (0, 1)
    first, second = (record.message for record in caplog.records)
    for fact in ("/dev/shm", "64 MB", "9 processes", "380 MB", "4 load", "--shm-size=1g", "--workers 4"):
        assert fact in first
    assert "--workers 0" in second and "\n" not in first + second


def test_the_room_is_that_of_the_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3, f_frsize=4096))
    assert workers._shared_room() == 3 * 4096
    monkeypatch.undo()
    monkeypatch.setattr(workers, "_SHARED", str(tmp_path / "none"))
    assert workers._shared_room() is None


def test_every_data_set_knows_the_bytes_of_an_item() -> None:
    """Or its loaders would not be checked against shared memory."""
    for module in ("augment", "loaders", "segment_crops", "token_store"):
        import_module(f"semmae.data.{module}")
    own = [kind for kind in Dataset.__subclasses__() if kind.__module__.startswith("semmae.")]
    assert len(own) >= 6
    assert [kind for kind in own if not hasattr(kind, "item_bytes")] == []


def test_loaders_count_the_bytes_of_their_batches(
    tmp_path: Path, write_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images: ImageSet = open_images(write_images(tmp_path / "photos", *[f"{i}.jpg" for i in range(5)]))
    local = LocalCrops(3, 8, (0.05, 0.25))
    for data in (CropDataset(images, 16), CropDataset(images, 16, views=2, local=local), WholeDataset(images, 24)):
        pictures = [
            value for value in data[0].values() if isinstance(value, torch.Tensor) and value.dtype == torch.uint8
        ]
        assert data.item_bytes == sum(picture.nbytes for picture in pictures)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("semmae.data.loaders.plan", lambda *given: asked.append(given) or (1, 3))
    loader = make_loader(CropDataset(images, 16), 2, workers=8, sharing=4)
    assert asked == [(8, 4 * 2 * 3 * 16 * 16)] and (loader.num_workers, loader.prefetch_factor) == (1, 3)
    assert len(list(loader)) == 3


_KILLED = """
import os, signal
from torch.utils.data import DataLoader
from semmae.data.workers import start_worker

if __name__ == "__main__":
    loader = DataLoader(
        range(10**6), num_workers=2, worker_init_fn=start_worker, multiprocessing_context="forkserver",
        persistent_workers=True,
    )
    next(iter(loader))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_from_a_server_do_not_outlive_the_process_they_load_for(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(_KILLED)
    with subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE) as process:
        assert process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 20)
        assert readable and process.stdout.read() == b""  # they hold it open as long as they live
