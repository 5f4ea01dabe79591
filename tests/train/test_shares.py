"""Work dealt out to processes that were started together, forked here; what fails one of them ends all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from forked import Forked

from semmae.cli import run
from semmae.errors import UserError
from semmae.run.ranks import sharing, take_rank
from semmae.run.signals import Stopped, stoppable
from semmae.train.shares import Made, Place, by_devices, shared_out, take_part

Prepare = Callable[[int], None]


def started(count: int, work: Callable[[int], int | None], *, by_hand: bool = False) -> list[Forked]:
    """So many processes, each as torchrun starts it, or as a user does on every node; they are given their rank."""

    def process(rank: int) -> Forked:
        def working() -> int | None:
            named = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": str(rank)}
            if not by_hand:
                named = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": str(count), "RANK": str(rank)}
                named["LOCAL_RANK"] = str(rank)
            os.environ.update(named)
            return work(rank)

        return Forked(working)

    return [process(rank) for rank in range(count)]


class Squares:
    """A `Work`: the squares of the numbers of blocks; `before` is called with each."""

    def __init__(self, before: Prepare = lambda block: None) -> None:
        self.before = before

    def made(self, blocks: Sequence[int], place: Place) -> Iterator[tuple[Made, float]]:
        for block in blocks:
            self.before(block)
            yield {"rows": np.array([block]), "square": np.array([block**2])}, 1.0


def squared(out: Path, processes: int, work: Squares, *, by_hand: bool = False) -> list[tuple[int | None, str]]:
    """Of the numbers to 9, written to out/found; how each process ended, and what it wrote."""

    def one(rank: int) -> int:
        nodes, devices = (processes, 1) if by_hand else (1, processes)
        take_rank(nodes, devices)
        try:
            with sharing(out, nodes, devices):
                if rank:
                    take_part("squares", lambda: work, devices)
                else:
                    every = shared_out("squares", work, range(10), devices)
                    found = sorted(int(made["square"][0]) for made, _ in every)
                    (out / "found").write_text(" ".join(map(str, found)))
        except (UserError, RuntimeError, Stopped) as error:
            print(f"semmae: {error}")
            return 2
        except SystemExit:
            return 0
        return 0

    children = started(processes, one, by_hand=by_hand)
    return [(child.ended(60), child.output) for child in children]


@pytest.mark.parametrize(("processes", "by_hand"), [(3, False), (2, True)])
def test_every_block_is_computed_once(processes: int, by_hand: bool, tmp_path: Path) -> None:
    """By whom each was, its file says."""
    work = Squares(lambda block: (tmp_path / f"{block}-{os.getpid()}").touch())
    ended = squared(tmp_path, processes, work, by_hand=by_hand)
    assert [code for code, _ in ended] == [0] * processes, ended
    assert (tmp_path / "found").read_text() == "0 1 4 9 16 25 36 49 64 81"
    assert len({path.name.partition("-")[2] for path in tmp_path.glob("*-*")}) == processes
    assert len([*tmp_path.glob("*-*")]) == 10


def fault(kind: str, folder: Path) -> Prepare:
    """Of the second of three processes, or the first, when all of them are at work."""

    def fail(block: int) -> None:
        (folder / str(block)).touch()
        if block != (3 if kind == "first" else 4):
            return
        while not all((folder / str(first)).exists() for first in range(3)):
            time.sleep(0.01)
        if kind == "bug":
            raise KeyError("seven")
        if kind == "lost":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stopped":
            raise Stopped(signal.SIGUSR1)
        raise UserError("photos/7.jpg: not readable")

    return fail


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("user", "photos/7.jpg: not readable"),
        ("bug", "KeyError: 'seven'"),
        ("lost", "process 1 of this run was lost"),
        ("stopped", "SIGUSR1"),
        ("first", "photos/7.jpg: not readable"),
    ],
)
def test_what_fails_one_process_ends_all_with_one_message(kind: str, said: str, tmp_path: Path) -> None:
    began = time.monotonic()
    ended = squared(tmp_path, 3, Squares(fault(kind, tmp_path)))
    assert ended[0][0] == 2 and said in ended[0][1], ended[0][1]
    assert [code for code, _ in ended[1:]] == [-9 if kind == "lost" else 0, 0], ended
    assert sum("semmae: " in output for _, output in ended) == 1, ended
    assert time.monotonic() - began < 30 and not (tmp_path / "found").exists()


@pytest.mark.parametrize("by_hand", [False, True])
def test_embeddings_of_two_processes_are_those_of_one(
    by_hand: bool, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    given = ["embed", "--data", str(creatures / "images"), "--encoder", str(encoder), "--workers", "0"]
    given += ["--batch-size", "5", "--tokens", "cls,patch"]
    assert run([*given, "--out", str(tmp_path / "one.npz")]) == 0
    both = ["--nodes", "2"] if by_hand else ["--devices", "2"]
    children = started(2, lambda _: run([*given, *both, "--out", str(tmp_path / "two.npz")]), by_hand=by_hand)
    assert [child.ended(120) for child in children] == [0, 0], [child.output for child in children]
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    again = started(2, lambda _: run([*given, *both, "--out", str(tmp_path / "two.npz")]), by_hand=by_hand)
    assert [child.ended(120) for child in again] == [0, 0], [child.output for child in again]
    assert sum("already finished" in child.output for child in again) == 1


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
def test_labels_of_two_processes_are_those_of_one(
    by_hand: bool, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    """Learned from some of the images, by the first alone; the second run is killed as it labels, and goes on."""
    given = ["parts", "--data", str(creatures / "images"), "--teacher", str(encoder), "--workers", "0"]
    given += ["--sample", "12", "--steps", "2", "--batch-size", "4", "--grid", "7"]
    assert run([*given, "--out", str(tmp_path / "one")]) == 0
    command = [*given, "--nodes" if by_hand else "--devices", "2", "--out", str(tmp_path / "two")]

    def killed(rank: int) -> int:
        from semmae.data.part_store import PartStore

        real, written = PartStore.write, list[int]()

        def write(*arguments: object) -> None:
            written.append(1)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)  # type: ignore[arg-type]

        PartStore.write = write  # type: ignore[method-assign, assignment]
        return run(command)

    children = started(2, killed, by_hand=by_hand)
    codes = [child.ended(120) for child in children]
    assert codes[0] == -signal.SIGKILL and codes[1] in (0, 2), [child.output for child in children]  # 2: was on its way
    children = started(2, lambda _: run(command), by_hand=by_hand)
    assert [child.ended(120) for child in children] == [0, 0], [child.output for child in children]
    for name in ("parts.npy", "attention.npy"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_what_a_process_has_begun_does_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before they have met: the other one would look for it for hours, and hear no signal meanwhile."""
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    reader, writer = os.pipe()

    def first() -> None:
        with sharing(tmp_path, 1, 2):
            if os.fork():
                time.sleep(100)
            os.environ["LOCAL_RANK"] = "1"
            with sharing(tmp_path, 1, 2):
                os.write(writer, b"begun")
                time.sleep(100)
                os.write(writer, b"alive")

    process = Forked(first)
    os.close(writer)
    with os.fdopen(reader, "rb") as both:
        assert both.read(5) == b"begun"
        os.kill(process.process.pid or 0, signal.SIGKILL)
        assert both.read() == b""  # the other one holds it open as long as it lives


def test_a_signal_while_processes_are_begun_ends_the_run() -> None:
    """What they are forked from imports for ten seconds or more."""
    reader, writer = os.pipe()

    def importing(_: object) -> None:
        os.write(writer, b"begun")
        time.sleep(100)

    def two() -> int:
        forkserver.ensure_running, forkserver.connect_to_new_process = lambda: None, importing  # type: ignore[assignment]
        try:
            with stoppable(lambda _: None):
                list(by_devices(Squares(print), range(4), 2))
        except Stopped as error:
            return error.signum
        return 0

    process = Forked(two)
    os.close(writer)
    with os.fdopen(reader, "rb") as begun:
        assert begun.read(5) == b"begun"
    os.kill(process.process.pid or 0, signal.SIGTERM)
    assert process.ended(20) == signal.SIGTERM, process.output


# What asks the driver for GPUs, after which no process can be forked that uses one.
_ASKED = """
import torch
asked = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda name=name: asked.append(name) or 0)
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, lambda name=name: asked.append(name) or 0)
import semmae.evaluation.features, semmae.labels.blocks, semmae.train.shares
assert not asked, asked
torch.cuda.is_available()
assert asked
"""


@pytest.mark.slow
def test_what_processes_are_forked_from_has_asked_for_no_gpu() -> None:
    subprocess.run([sys.executable, "-c", _ASKED], check=True)
