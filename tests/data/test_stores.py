"""What stores say of shards, and when: versions, lists that grow old, odd names; and S3 itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from refusals import refused

from semmae.data import shard_places
from semmae.data.manifest import open_images
from semmae.data.sources import open_source

Jpeg = Callable[[int], bytes]


def test_a_shard_that_is_replaced_by_one_of_its_size_is_not_read_under_a_run(memory: str, cache: Path) -> None:
    files = fsspec.filesystem("memory")
    source = open_source(f"{memory}/train-0.tar")
    for path in cache.glob("*.tar"):
        path.unlink()
    files.pipe("/bucket/train-0.tar", files.cat("/bucket/train-0.tar")[::-1])
    with pytest.raises(OSError, match=r"train-0\.tar was changed"):
        source.read(0)
    assert list(cache.glob("*.tar")) == []


def test_a_copy_of_two_versions_is_none(
    memory: str, shards: Path, cache: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files are fetched in parts, side by side, and may be replaced between two of them."""
    files, old = fsspec.filesystem("memory"), (shards / "train-0.tar").read_bytes()
    [shard] = shard_places.remote_shards(f"{memory}/train-0.tar")[1]
    new = old[: len(old) // 2] + old[len(old) // 2 :][::-1]
    asked: list[str] = []

    def in_parts(self: Any, inside: str, beside: str, **_: Any) -> None:
        asked.append(inside)
        files.pipe("/bucket/train-0.tar", new)
        Path(beside).write_bytes(old[:1000] + new[1000:])

    with monkeypatch.context() as patched:
        patched.setattr(type(files), "get_file", in_parts)
        with pytest.raises(OSError, match="was changed"):
            shard_places.copied(shard)
    assert len(asked) == 1  # a third time would find the same
    assert list(cache.glob("*.tar")) == []


def test_what_was_listed_before_is_listed_anew(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores remember what they listed as long as the process lives, and two calls of Python lie in one."""
    files = type(fsspec.filesystem("memory"))
    plain, found = files.glob, dict[str, Any]()

    def remembered(self: Any, pattern: str, **given: Any) -> Any:
        if pattern not in found:
            found[pattern] = plain(self, pattern, **given)
        return found[pattern]

    monkeypatch.setattr(files, "glob", remembered)
    assert len(shard_places.remote_addresses(f"{memory}/")[1]) == 3
    fsspec.filesystem("memory").pipe("/bucket/train-2.tar", b"0")
    assert found  # another process would not have it forgotten
    monkeypatch.setattr(files, "invalidate_cache", lambda self, path=None: found.clear())
    assert len(shard_places.remote_addresses(f"{memory}/")[1]) == 4


def test_a_version_is_the_same_however_a_store_says_it(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO gives the time in a list in milliseconds, of one file in seconds; Azure an ETag without its quotes."""
    stamps = []
    for said in (
        {"ETag": '"a1"', "LastModified": "2026-01-01 00:00:00.123"},
        {"etag": "a1", "last_modified": "2026-01-01 00:00:00"},
        {"ETag": '"b2"', "LastModified": "2026-01-01 00:00:00.123"},
    ):
        facts = {"size": 10, "type": "file", **said}
        with monkeypatch.context() as patched:
            patched.setattr(type(fsspec.filesystem("memory")), "info", lambda *_, facts=facts, **__: facts)
            found = shard_places.remote_shards(f"{memory}/train-0.tar")[1]
        stamps += [shard.stamp for shard in found]
    assert stamps[0] == stamps[1] != stamps[2]


def test_letters_of_patterns_are_letters_of_a_folder(memory: str, shards: Path, jpeg: Jpeg) -> None:
    """But for `*`."""
    content, files = (shards / "train-1.tar").read_bytes(), fsspec.filesystem("memory")
    for folder in ("[y]", "z?", "with spaces, é and #"):
        files.pipe(f"/bucket/{folder}/train-1.tar", content)
        for data in (f"{memory}/{folder}/", f"{memory}/{folder}/*.tar", f"{memory}/{folder}/train-1.tar"):
            assert [open_source(data).read(row) for row in range(3)] == [jpeg(row) for row in (3, 4, 5)]
    files.pipe("/bucket/y/train-1.tar", content[:100])
    assert len(open_source(f"{memory}/[y]/")) == 3


def test_a_folder_that_is_called_as_a_shard_is_none(memory: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/photos.tar/train-0.tar", b"0")
    assert len(open_source(f"{memory}/")) == 9
    with refused(f"{memory}/photos.tar", "folder"):
        open_source(f"{memory}/photos.tar")


def test_s3_by_a_server_that_behaves_like_it(
    shards: Path, jpeg: Jpeg, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where moto and s3fs are installed; both are heavy, so that no extra brings them."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for name, value in {"KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}.items():
            monkeypatch.setenv(f"AWS_{'ACCESS_' if name == 'KEY_ID' else ''}{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem()
        files.mkdir("photos")
        for path in shards.iterdir():
            files.pipe(f"photos/{path.name}", path.read_bytes())
        there = open_source("s3://photos/")
        assert [there.read(row) for row in range(9)] == [jpeg(row) for row in range(9)]
        assert open_images("s3://photos/train-{0..1}.tar").labels == ["cat", "dog"] * 3
        with refused("s3://photos/train-{0..2}.tar", "train-2.tar of 3", "missing"):
            open_source("s3://photos/train-{0..2}.tar")
        for data in ("s3://other/a.tar", "s3://other/", "s3://other/{0..3}.tar"):
            with refused("s3://other/"):
                open_source(data)
        for path in cache.glob("*.tar"):
            path.unlink()
        replaced = (shards / "train-0.tar").read_bytes()[::-1]
        s3fs.S3FileSystem(skip_instance_cache=True).pipe("photos/train-0.tar", replaced)  # as another process does
        with pytest.raises(OSError, match="was changed"):
            there.read(0)
        with refused("s3://photos/train-0.tar"):
            open_source("s3://photos/")
        for name in ("KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.delenv(f"AWS_{'ACCESS_' if name == 'KEY_ID' else ''}{name}")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        with refused("s3://photos/", "credentials"):
            open_source("s3://photos/")
    finally:
        running.stop()
