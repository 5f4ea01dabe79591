"""Tar shards are read by processes where that is worth it: however many there are, and end, the same is found."""

import io
import logging
import multiprocessing
import os
import pickle
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from forked import Forked, in_a_process
from refusals import refused

from semmae.data import shard_index
from semmae.data.shard_index import Members, members_of
from semmae.data.shard_places import Shard, local_shards
from semmae.data.sources import open_source
from semmae.data.workers import in_processes
from semmae.progress import Progress

SHARDS, IMAGES = 7, 5
KEY, CACHES = "key", ("alone", "many")  # of the data set, and where its index is kept


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Seven, of which each has another count of images, other labels, and something that is passed over."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in range(IMAGES + number):
                label = f"{(row + number) % 3}".encode()
                for kind, content in (("jpg", bytes(row)), ("cls", label), (f"t{number}", b"a text")):
                    member = tarfile.TarInfo(f"{'ä' * (number + 1)}/{row}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
            tar.addfile(link)
    return local_shards(folder, [f"{number}.tar" for number in range(SHARDS)], str(folder))


@pytest.fixture
def read_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Shard]]:
    """Have shards read by so many processes, with a cache of that name; the list is of those that this one reads."""
    here: list[Shard] = []
    real = shard_index._Reader.members

    def members(reader: shard_index._Reader) -> Members:
        here.append(reader.shard)
        return real(reader)

    monkeypatch.setattr(shard_index._Reader, "members", members)

    def prepare(processes: int, cache: str = "cache") -> list[Shard]:
        monkeypatch.setattr(shard_index, "_processes", lambda _: processes)
        monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / cache))
        here.clear()
        return here

    return prepare


def as_lists(found: list[Members]) -> list[tuple[list[str], list[list[int]], tuple[str, ...]]]:
    return [(list(each.names), each.rows.tolist(), each.labels) for each in found]


@pytest.mark.parametrize("processes", [2, 3, SHARDS + 2])
def test_any_number_of_processes_finds_the_same(
    processes: int,
    shards: list[Shard],
    read_by: Callable[..., list[Shard]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = read_by(1, CACHES[0])
    alone = as_lists(members_of(shards, KEY))
    assert sorted(here) == shards and [len(names) for names, _, _ in alone] == [IMAGES + n for n in range(SHARDS)]
    (said,) = caplog.messages
    here = read_by(processes, CACHES[1])
    assert as_lists(members_of(shards, KEY)) == alone and here == []
    assert caplog.messages == [said] * 2 and f"{SHARDS} links" in said
    first, second = ([file.read_bytes() for file in (tmp_path / cache / "index").iterdir()] for cache in CACHES)
    assert len(first) == 1 and first == second


@pytest.mark.parametrize("processes", [1, 3])
def test_the_first_refused_shard_is_named_and_those_before_it_are_not_read_again(
    processes: int, shards: list[Shard], read_by: Callable[..., list[Shard]]
) -> None:
    whole = {number: Path(shards[number].place).read_bytes() for number in (3, 4, 6)}
    for number, content in whole.items():
        Path(shards[number].place).write_bytes(content[: 700 if number == 3 else 1])
        os.utime(shards[number].place, ns=(0, shards[number].stamp))
    damaged = local_shards(Path(shards[0].place).parent, [shard.name for shard in shards], "")
    read_by(processes)
    with refused(shards[3].place):
        members_of(damaged, KEY)
    for number, content in whole.items():
        Path(shards[number].place).write_bytes(content)
        os.utime(shards[number].place, ns=(0, shards[number].stamp))
    here = read_by(1)
    assert len(members_of(shards, KEY)) == SHARDS and sorted(here) == shards[3:]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[], object]], Path]:
    """Have processes but the test's own do something before they read the fourth shard; the file that names one."""
    file, own, real = tmp_path / "process", os.getpid(), shard_index._Reader.members

    def prepare(act: Callable[[], object]) -> Path:
        def members(reader: shard_index._Reader) -> Members:
            if reader.shard.name == "3.tar" and os.getpid() != own:
                file.write_text(str(os.getpid()))
                act()
            return real(reader)

        monkeypatch.setattr(shard_index._Reader, "members", members)
        return file

    return prepare


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_had_to_read_is_read_without_it(
    shards: list[Shard],
    read_by: Callable[..., list[Shard]],
    elsewhere: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    read_by(1, CACHES[0])
    alone = as_lists(members_of(shards, KEY))
    caplog.clear()
    here = read_by(2, CACHES[1])
    file = elsewhere(killed)
    assert as_lists(members_of(shards, KEY)) == alone
    assert shards[3] in here and not is_there(int(file.read_text()))
    assert len([message for message in caplog.messages if "was killed" in message]) == 1


def test_ctrl_c_ends_processes_that_read_and_keeps_what_was_read(
    shards: list[Shard],
    read_by: Callable[..., list[Shard]],
    elsewhere: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, though they are deaf to what a terminal sends to all of them."""
    read_by(2)
    file, taken, update = elsewhere(lambda: time.sleep(600)), tmp_path / "taken", Progress.update

    def noted(progress: Progress, *given: int) -> None:
        update(progress, *given)
        taken.write_text(str(progress.done))

    monkeypatch.setattr(Progress, "update", noted)
    child = in_a_process(
        ["pack", "--data", str(tmp_path / "shards"), "--out", str(tmp_path / "packed"), "--workers", "0"]
    )
    assert waited_for(taken, child, "3")
    reader = int(waited_for(file, child))
    assert reader != child.process.pid
    for signum in (signal.SIGINT, signal.SIGUSR1):
        os.kill(reader, signum)
    assert is_there(reader)
    os.kill(child.process.pid or 0, signal.SIGINT)
    assert child.ended(60) == 130, child.output
    assert not is_there(reader) and "Traceback" not in child.output, child.output
    here = read_by(1)
    open_source(tmp_path / "shards")
    assert sorted(here) == shards[3:]


def waited_for(file: Path, child: Forked, wanted: str = "") -> str:
    """What a process writes into a file, as soon as it does, and what is wanted is there."""
    while child.process.is_alive():
        if file.exists() and (text := file.read_text()) and wanted in text:
            return text
        time.sleep(0.02)
    raise AssertionError(child.output)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# Where there are no processes


def process_and_item(item: int) -> tuple[int, int]:
    return os.getpid(), item


def refusing(item: int) -> NoReturn:
    raise UnsentError(item, "an error that is not what its arguments say")


class UnsentError(ValueError):
    """One that cannot be made again of its message, and so not be sent."""

    def __init__(self, item: int, text: str) -> None:
        super().__init__(f"{item}: {text}")


def test_processes_do_the_work_in_order() -> None:
    made = list(in_processes(process_and_item, range(50), 3, 2))
    assert [item for _, item in made] == list(range(50)) and os.getpid() not in {process for process, _ in made}
    assert not multiprocessing.active_children()


def signals_of(_: int) -> tuple[list[object], set[signal.Signals]]:
    """What a process does at SIGINT and SIGTERM, and which signals it does not hear."""
    heard = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    return heard, signal.pthread_sigmask(signal.SIG_BLOCK, ())  # type: ignore[return-value]


def test_they_end_by_what_their_pool_ends_them_by() -> None:
    """From Python 3.12 on a pool of which one was killed waits for the others, and the first process for the pool."""
    found = list(in_processes(signals_of, range(6), 2, 2))
    assert found == [([signal.SIG_IGN, signal.SIG_DFL], set())] * 6


def test_nothing_is_left_of_them_when_the_reader_stops() -> None:
    for taken in range(4):
        made = in_processes(process_and_item, range(50), 2, 2)
        assert [next(made)[1] for _ in range(taken)] == list(range(taken))
        assert isinstance(made, Iterator)
        made.close()  # type: ignore[attr-defined]
        assert not multiprocessing.active_children()


def no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is one too many."""
    real, left = os.fork, [1]

    def fork() -> int:
        if not left:
            raise BlockingIOError("Resource temporarily unavailable")
        left.pop()
        return real()

    monkeypatch.setattr(os, "fork", fork)


def no_semaphores(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError("Function not implemented")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)


def others_are_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, or where the user has chosen so."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")


def is_one_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a process may have none of its own."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("prepare", [no_more_processes, no_semaphores, others_are_begun_anew, is_one_of_a_pool])
def test_where_there_can_be_no_processes_threads_do_the_work(
    prepare: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(monkeypatch)
    made = list(in_processes(process_and_item, range(20), 3, 2))
    monkeypatch.undo()
    assert made == [(os.getpid(), item) for item in range(20)]
    assert not multiprocessing.active_children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_an_error_that_cannot_be_sent_is_raised_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(UnsentError, match="0: an error"):
        list(in_processes(refusing, range(5), 2, 2))


def test_a_thread_may_begin_processes_too() -> None:
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(lambda: list(in_processes(process_and_item, range(10), 2, 2))).result()
    assert [item for _, item in made] == list(range(10)) and os.getpid() not in {process for process, _ in made}


# How many


@pytest.fixture
def dense(tmp_path: Path) -> list[Shard]:
    """Four with 500 images each, and their classes."""
    names = [f"{number}.tar" for number in range(4)]
    for name in names:
        with tarfile.open(tmp_path / name, "w") as tar:
            for row in range(500):
                for kind in ("jpg", "cls"):
                    tar.addfile(tarfile.TarInfo(f"{row:08}.{kind}"))
    return local_shards(tmp_path, names, "")


def test_processes_are_begun_where_their_work_takes_longer_than_their_start(
    dense: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 4000 <= shard_index._headers_about(dense) < 4100  # also the marks of the end
    assert shard_index._processes(dense) == 0
    for worth, most, cores, wanted in [(1, 9, 1, 0), (1, 9, 2, 3), (1, 9, 64, 4), (1, 2, 64, 3), (2000, 9, 64, 2)]:
        monkeypatch.setattr(shard_index, "_THREADS", 3)
        monkeypatch.setattr(shard_index, "_MOST", most)
        monkeypatch.setattr(shard_index, "_WORTH", worth)
        monkeypatch.setattr(shard_index, "usable_cores", lambda cores=cores: cores)
        assert shard_index._processes(dense) == wanted
    monkeypatch.setattr(shard_index, "_WORTH", 1)
    assert shard_index._processes(dense[:1]) == 0
    assert shard_index._processes([shard._replace(remote=True) for shard in dense]) == 0
    Path(dense[0].place).write_bytes(b"no tar")
    assert shard_index._processes(dense) == 0
    Path(dense[0].place).unlink()
    assert shard_index._processes(dense) == 0


def test_a_process_sends_little_more_than_names_and_numbers(dense: list[Shard]) -> None:
    sent = pickle.dumps(shard_index._read_shard(dense[0]))
    assert len(sent) < 500 * (len("00000000.jpg") + (3 + 1) * 8) + 1000
    members, _ = pickle.loads(sent)
    assert list(members.names) == [f"{row:08}.jpg" for row in range(500)]
