"""What processes say to each other beside gradients: that they differ, and that one has failed."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from torch import distributed

from semmae.errors import UserError
from semmae.train import together
from semmae.train.together import check_alike, connected_again, listen, tell


def met(tmp_path: Path, work: Callable[[int], int | None]) -> list[Forked]:
    """Two processes that have met, each at its work."""

    def process(rank: int) -> Forked:
        def working() -> int | None:
            os.environ["RANK"] = str(rank)
            store = distributed.FileStore(str(tmp_path / "store"), 2)
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=100))
            return work(rank)

        return Forked(working)

    return [process(rank) for rank in range(2)]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK", "_GRACE", "_GRACE_OF_FIRST"):
        monkeypatch.setattr(together, name, 0.2)


@pytest.mark.parametrize(("failing", "waiting"), [(1, 0), (0, 1)])
def test_who_hangs_in_a_collective_is_ended_and_the_fault_is_told_once(
    failing: int, waiting: int, soon: None, tmp_path: Path
) -> None:
    """The one that fails neither joins the collective nor leaves: its connections stay open."""

    def work(rank: int) -> None:
        listen()
        if rank == waiting:
            distributed.all_reduce(torch.ones(1))
        tell(UserError("photos/7.jpg: not readable"))
        time.sleep(100)

    processes = met(tmp_path, work)
    assert [process.ended(60) for process in processes] == [2, 0], [each.output for each in processes]
    assert [each.output.count("semmae: photos/7.jpg: not readable") for each in processes] == [1, 0]


def test_collectives_of_the_device_are_ended_by_all_at_once(
    soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or NCCL's watchdogs kill the others; without a GPU: who ends them has waited for the one that hears last."""
    monkeypatch.setattr(together, "_waits_on_device", lambda: True)
    monkeypatch.setattr(together, "_GRACE", 5.0)

    def work(rank: int) -> None:
        def abort() -> None:
            (tmp_path / f"aborted-{rank}").write_text(f"heard by all: {(tmp_path / 'heard').exists()}")
            time.sleep(100)  # as it does in some versions of NCCL: the process must end all the same

        together._abort = abort
        if rank == 1:
            hear_late(tmp_path / "heard")
        listen()
        tell(UserError("photos/7.jpg: not readable"))
        time.sleep(100)

    processes = met(tmp_path, work)
    assert [process.ended(60) for process in processes] == [2, 0], [each.output for each in processes]
    assert [(tmp_path / f"aborted-{rank}").read_text() for rank in range(2)] == ["heard by all: True"] * 2


def test_the_first_process_ends_by_its_fault_when_the_others_have_heard_of_it(
    soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it ends the store, and they would wait in a collective of the device until that gives up."""
    monkeypatch.setattr(together, "_waits_on_device", lambda: True)
    monkeypatch.setattr(together, "_GRACE", 5.0)
    monkeypatch.setattr(together, "_abort", lambda: None)

    def work(rank: int) -> int:
        if rank == 1:
            hear_late(tmp_path / "heard")
        listen()
        if rank == 1:
            time.sleep(100)
        fault = UserError("photos/7.jpg: not readable")
        tell(fault)
        return 3 if together.explained(fault) is fault and (tmp_path / "heard").exists() else 4

    first, other = met(tmp_path, work)
    assert first.ended(60) == 3, first.output
    assert other.ended(60) == 0, other.output


def hear_late(mark: Path) -> None:
    """From here on this process learns a while later that another one has failed, and leaves a file when it does."""
    at_once = together.Alarm.word

    def word(alarm: together.Alarm) -> dict[str, Any] | None:
        found = at_once(alarm)
        if found is not None and threading.current_thread().name == "semmae-alarm":
            time.sleep(1.5)
            mark.touch()
        return found

    together.Alarm.word = word  # type: ignore[method-assign]


def test_a_fault_of_a_loaders_process_is_told_without_its_traceback(soon: None, tmp_path: Path) -> None:
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File"

    def work(rank: int) -> None:
        listen()
        if rank == 1:
            tell(UserError(f"{wrapped}\nsemmae.errors.UserError: photos/7.jpg: not readable"))
        time.sleep(100)

    first, _ = met(tmp_path, work)
    assert first.ended(60) == 2
    assert first.output.splitlines()[-1] == "semmae: photos/7.jpg: not readable"


def test_where_stores_cannot_be_cloned_a_second_connection_answers_while_the_first_waits() -> None:
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = distributed.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    again = connected_again(distributed.PrefixStore("a", distributed.PrefixStore("b", first)))
    waiting = threading.Thread(target=first.get, args=("later",))
    waiting.start()
    again.set("now", "said")
    assert again.get("now") == b"said" and waiting.is_alive()
    again.set("later", "")
    waiting.join(30)
    assert not waiting.is_alive()


def test_processes_that_differ_are_refused_by_all(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        check_alike("images", "the same")
        try:
            check_alike("images", f"digest {rank}")
        except UserError as error:
            return 3 if all(f"digest {each}" in str(error) for each in range(2)) else 4
        return 5

    assert [process.ended(60) for process in met(tmp_path, work)] == [3, 3]
