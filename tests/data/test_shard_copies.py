"""Copies of shards that threads of one process make at once, and those made ahead of being read."""

import errno
import fcntl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest
from forked import Forked

from semmae.data import shard_places
from semmae.data.shard_places import Shard

SIZE = 100_000


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Shard]]:
    """Three at addresses, of which no copies are there."""
    monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_places, "_PAUSE", 0.0)
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"/copies/{number}.tar", bytes([number]) * SIZE)
    yield shard_places.remote_shards("memory://copies/{0..2}.tar")[1]
    files.rm("/copies", recursive=True)


def test_threads_make_one_copy_where_files_cannot_be_locked(
    shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Lustre without its option `flock`; the name of what is written is that of the process."""
    asked, files = [], fsspec.filesystem("memory")

    def slowly(self: Any, inside: str, beside: str, **_: Any) -> None:
        asked.append(inside)
        with Path(beside).open("wb") as file:
            for _ in range(10):
                file.write(bytes([1]) * (SIZE // 10))
                file.flush()
                time.sleep(0.01)

    def unlocked(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(type(files), "get_file", slowly)
    monkeypatch.setattr(shard_places.fcntl, "flock", unlocked)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shard: shard_places.copied(shard).read_bytes(), [shards[1]] * 4))
    assert found == [bytes([1]) * SIZE] * 4 and len(asked) == 1


@pytest.mark.parametrize("bound", ["room", "disk"])
def test_a_copy_ahead_does_not_take_the_place_of_one_that_is_read(
    bound: str, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shard_places.copied(shards[0])
    monkeypatch.setattr(shard_places, "_LEAST_ROOM", 0.0)
    if bound == "room":
        monkeypatch.setattr(shard_places, "_room", lambda: 2.5 * SIZE)
    else:
        usage = type("Usage", (), {})
        monkeypatch.setattr(
            shard_places.shutil, "disk_usage",
            lambda folder: setattr(usage, "free", 2.5 * SIZE - SIZE * len(list(folder.glob("*.tar")))) or usage,
        )  # fmt: skip
    for shard in shards[1:]:
        shard_places.copied_soon(shard)
        for thread in threading.enumerate():
            if thread.name == "semmae-copy":
                thread.join()
    assert list(shown.parent.glob("*.tar")) == [shown]
    assert shard_places.copied(shards[1]).read_bytes() == bytes([1]) * SIZE  # whoever reads it has it made


def test_a_lock_is_free_again_though_a_process_was_forked_meanwhile(tmp_path: Path) -> None:
    """As those that load images are, while a thread copies."""
    with shard_places._locked(tmp_path / "a.lock"):
        process = Forked(lambda: time.sleep(60))
    with (tmp_path / "a.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.process.kill()
    process.process.join()
