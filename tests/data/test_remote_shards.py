"""Shards at addresses: the same images as on the disk, through copies in bounded room; what fails is one line."""

import errno
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from forked import Forked
from refusals import refused
from torch.utils.data import DataLoader

from semmae.data import shard_places
from semmae.data.augment import LabelledCrops
from semmae.data.loaders import CropDataset, make_loader
from semmae.data.manifest import open_images
from semmae.data.sources import has_split, open_source, split_names
from semmae.errors import DiskError
from semmae.files import PART

Jpeg = Callable[[int], bytes]


class Server(SimpleHTTPRequestHandler):
    """Files with ranges, as stores give them; what was asked for; and refusals."""

    asked: list[str] = []
    failing: dict[str, int] = {}  # path → how many times more it fails
    pause = 0.0  # seconds, in the middle of what is sent

    def do_GET(self) -> None:
        Server.asked.append(self.path)
        if Server.failing.get(self.path, 0):
            Server.failing[self.path] -= 1
            return self.send_error(503)
        if self.path.startswith("/secret/"):
            return self.send_error(403)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not found or not path.is_file():
            return self.send_slowly(path.read_bytes()) if Server.pause and path.is_file() else super().do_GET()
        content = path.read_bytes()
        first, last = int(found[1]), int(found[2] or len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def send_slowly(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            self.wfile.write(half)
            self.wfile.flush()
            time.sleep(Server.pause)

    def do_HEAD(self) -> None:
        return self.send_error(403) if self.path.startswith("/secret/") else super().do_HEAD()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def address(shards: Path) -> Iterator[str]:
    """A server of the shards, on this machine."""
    Server.asked, Server.failing, Server.pause = [], {}, 0.0
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=shards))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(params=["address", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def test_shards_at_an_address_are_read_as_those_on_the_disk(place: str, shards: Path, jpeg: Jpeg) -> None:
    here = open_source(shards)
    for data in (f"{place}/", f"{place}/*.tar", f"{place}/{{train-0,train-1,val-0}}.tar"):
        there = open_source(data)
        assert there.names == here.names and there.labels == here.labels == ["cat", "dog"] * 4 + ["cat"]
        assert [there.read(row) for row in range(9)] == [jpeg(row) for row in range(9)]
    assert split_names(f"{place}/") == {"train", "val"} and has_split(f"{place}/*.tar")
    assert open_source(f"{place}/", "val").names == [f"val-0.tar/{row}.jpg" for row in (6, 7, 8)]
    assert split_names("memory://train-photos/x-{0..3}.tar") == set()
    one = open_source(f"{place}/train-1.tar")
    assert one.names == [f"train-1.tar/{row}.jpg" for row in (3, 4, 5)] and one.read(1) == jpeg(4)
    assert open_images(f"{place}/").digest == open_images(shards).digest


def test_processes_that_load_share_the_copies(address: str, cache: Path) -> None:
    images = open_images(f"{address}/", workers=1)
    for path in cache.glob("*.tar"):
        path.unlink()
    Server.asked.clear()
    loader: DataLoader[dict[str, Any]] = make_loader(CropDataset(images, 16), 2, sampler=list(range(9)) * 2, workers=2)
    rows = [int(row) for batch in loader for row in batch["row"]]
    assert sorted(rows) == sorted(list(range(9)) * 2)
    assert sorted(Server.asked) == ["/train-0.tar", "/train-1.tar", "/val-0.tar"]
    assert len(list(cache.glob("*.tar"))) == 3


@pytest.mark.parametrize("labelled", [False, True])
def test_a_shard_is_copied_ahead_of_its_images(
    address: str, cache: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that loads an image of another one, which is as without; what fails is left to a reader."""
    monkeypatch.setattr(shard_places, "_LEAST_ROOM", 0.0)  # on a small disk, too
    images = open_images(f"{address}/", workers=1)
    for path in cache.glob("*.tar"):
        path.unlink()
    Server.asked.clear()
    dataset = LabelledCrops(images, [0] * len(images), 16) if labelled else CropDataset(images, 16)
    keys = [(0, 0, 3), (0, 1, 0), (0, 2)]  # the second is there
    loader: DataLoader[dict[str, Any]] = make_loader(dataset, 3, sampler=keys, workers=1)
    [batch] = list(loader)
    assert batch["images"].equal(next(iter(make_loader(dataset, 3, sampler=[0, 1, 2])))["images"])
    ended_at = time.monotonic() + 60
    while len(list(cache.glob("*.tar"))) < 2 and time.monotonic() < ended_at:
        time.sleep(0.05)
    assert sorted(Server.asked) == ["/train-0.tar", "/train-1.tar"]
    Server.failing["/val-0.tar"] = 3
    assert dataset[(0, 0, 6)]["row"] == 0
    while Server.failing["/val-0.tar"] and time.monotonic() < ended_at:
        time.sleep(0.05)
    assert dataset[(0, 6)]["row"] == 6 and Server.asked.count("/val-0.tar") == 4


def test_a_shard_may_take_longer_than_the_client_of_http_would_wait(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aiohttp = pytest.importorskip("aiohttp.client")
    monkeypatch.setattr(aiohttp, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.3))  # in place of five minutes
    fsspec.get_filesystem_class("http").clear_instance_cache()
    Server.pause = 0.5
    assert len(open_source(f"{address}/train-0.tar")) == 3
    assert Server.asked.count("/train-0.tar") == 1


def test_the_system_is_not_asked_for_a_whole_copy_for_every_image(
    memory: str, cache: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"{memory}/train-0.tar")
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, _from, _size, advice: asked.append(advice), raising=False)
    assert [source.read(row % 3) for row in range(30)] == [jpeg(row % 3) for row in range(30)]
    assert not asked  # it has just been written
    os.utime(next(cache.glob("*.tar")), (0, 0))
    assert [source.read(row % 3) for row in range(30)] == [jpeg(row % 3) for row in range(30)]
    assert len(asked) == 1


def test_copies_keep_to_their_room(address: str, cache: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{address}/")
    size = next(cache.glob("*.tar")).stat().st_size
    monkeypatch.setattr(shard_places, "_LEAST_ROOM", 0.0)
    monkeypatch.setenv("SEMMAE_CACHE_GB", str(2.5 * size / 1e9))
    for path in cache.glob("*.tar"):
        path.unlink()
    Server.asked.clear()
    for row in (0, 3, 6, 7, 0, 1):
        assert source.read(row) == jpeg(row)
        assert len(list(cache.glob("*.tar"))) <= 2
        for path in cache.glob("*.tar"):  # as after a while
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    assert Server.asked == [f"/{name}.tar" for name in ("train-0", "train-1", "val-0", "train-0")]
    monkeypatch.setenv("SEMMAE_CACHE_GB", str(0.5 * size / 1e9))
    with refused(f"{address}/train-0.tar", "SEMMAE_CACHE_GB"):
        open_source(f"{address}/train-0.tar")


def test_copies_that_are_made_at_once_keep_to_their_room_too(
    cache: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two and a half: six are asked for at once, and each takes its time."""
    size = 100_000
    files = fsspec.filesystem("memory")
    for number in range(6):
        files.pipe(f"/bucket/{number}.tar", bytes([number]) * size)
    every = [shard for shard in shard_places.remote_shards(f"{memory}/{{0..5}}.tar")[1]]
    monkeypatch.setattr(shard_places, "_room", lambda: 2.5 * size)
    monkeypatch.setattr(shard_places, "_WAIT", 0.01)
    most, plain = [], type(files).get_file

    def slowly(self: Any, inside: str, beside: str, **given: Any) -> None:
        time.sleep(0.05)
        plain(self, inside, beside, **given)
        written = [path.stat().st_size for path in cache.iterdir() if path.suffix == ".tar" or ".tar." in path.name]
        most.append(sum(written))
        time.sleep(0.05)

    monkeypatch.setattr(type(files), "get_file", slowly)
    with ThreadPoolExecutor(6) as pool:
        copies = list(pool.map(shard_places.copied, every))
    assert len(most) == 6 and max(most) <= 2.5 * size
    assert 1 <= sum(path.exists() for path in copies) <= 2
    assert all(path.suffix in (".tar", ".lock") for path in cache.iterdir())


def test_a_disk_too_full_to_announce_a_copy_is_no_fault_of_the_shard(
    cache: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [shard] = shard_places.remote_shards(f"{memory}/train-0.tar")[1]

    def full(*given: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(given[0]))

    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: (full if PART in path.name else plain)(path, *mode))
    with pytest.raises(DiskError):
        shard_places.copied(shard)
    monkeypatch.undo()
    assert [path.suffix for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_room_that_a_killed_process_had_announced_is_free_again(
    cache: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [shard] = shard_places.remote_shards(f"{memory}/train-0.tar")[1]
    process = Forked(lambda: 0)
    process.ended(60)
    cache.mkdir(parents=True)
    announced, half = (cache / f".{'0' * 32}.{of}.{process.process.pid}{PART}" for of in ("room", "tar"))
    for path in (announced, half):
        with path.open("wb") as file:
            file.truncate(10 * shard.size)
    os.utime(half, (time.time() - 7200,) * 2)  # it may be another machine's, and grow
    foreign = cache / f".of-another-program{PART}"
    foreign.touch()
    monkeypatch.setattr(shard_places, "_room", lambda: 2.5 * shard.size)
    assert shard_places.copied(shard).stat().st_size == shard.size
    assert list(cache.glob(".*")) == [foreign]


def test_room_that_is_no_number_or_too_small_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("many", "0", "15", "nan", "inf", "-3", ""):
        monkeypatch.setenv("SEMMAE_CACHE_GB", value)
        with refused(f"SEMMAE_CACHE_GB '{value}'", "16"):
            open_source(f"{address}/")


def test_a_full_disk_is_named(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shard_places.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match="10 B are free there; free space, or set SEMMAE_CACHE") as raised:
        open_source(f"{address}/train-0.tar")
    assert str(cache) in str(raised.value) and list(cache.glob("*.tar")) == []


def test_what_fails_for_a_moment_is_asked_for_again(address: str, jpeg: Jpeg) -> None:
    Server.failing = {"/train-0.tar": 2}
    assert open_source(f"{address}/train-0.tar").read(0) == jpeg(0)
    Server.failing = {"/train-1.tar": 9}
    with refused(f"{address}/train-1.tar", "503"):
        open_source(f"{address}/train-1.tar")


def test_what_is_not_there_or_not_ours_to_read_is_refused(address: str, memory: str, cache: Path) -> None:
    with refused(f"{address}/train-{{0..3}}.tar", "train-2.tar, train-3.tar of 4", "missing"):
        open_source(f"{address}/train-{{0..3}}.tar")
    with refused(f"{memory}/train-{{0..3}}.tar", "train-2.tar, train-3.tar of 4", "missing"):
        open_source(f"{memory}/train-{{0..3}}.tar")
    with refused(f"{address}/secret/a.tar", "rights"):
        open_source(f"{address}/secret/a.tar")
    for data in (f"{memory}/none/", f"{memory}/none-*.tar"):
        with refused(data, "no tar shards"):
            open_source(data)
    with refused("http://127.0.0.1:1/a.tar", "network"):
        open_source("http://127.0.0.1:1/a.tar")
    with refused(f"{memory}/none.tar", "no such shard"):
        open_source(f"{memory}/none.tar")
    with refused("nosuch://bucket/a.tar", "nosuch"):
        open_source("nosuch://bucket/a.tar")
    assert not cache.exists() or list(cache.glob("*.tar")) == []


def test_a_bucket_without_rights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs and gcsfs say it."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", denied)
    with refused("memory://bucket/a.tar", "Access Denied", "rights"):
        open_source("memory://bucket/a.tar")


def test_a_file_system_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for data in ("s3://bucket/a.tar", "s3://bucket/", "s3://bucket/{0..9}.tar"):
        with refused("s3://bucket/", "s3fs", "semmae[remote]"):
            open_source(data)


def test_shards_that_change_are_read_anew_and_not_under_a_run(memory: str, cache: Path, jpeg: Jpeg) -> None:
    source, files = open_source(f"{memory}/"), fsspec.filesystem("memory")
    files.pipe("/bucket/train-0.tar", files.cat("/bucket/val-0.tar"))
    assert open_source(f"{memory}/train-0.tar").read(0) == jpeg(6)
    assert source.read(0) == jpeg(0)  # of its copy
    for path in cache.glob("*.tar"):
        path.unlink()
    files.pipe("/bucket/train-1.tar", files.cat("/bucket/val-0.tar") + bytes(512))
    with pytest.raises(OSError, match="was changed"):
        source.read(3)
