"""Parquet files at addresses: the same images as from the disk, what is no table or not there in one line."""

import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from refusals import refused

from semmae.data.manifest import open_images
from semmae.data.sources import open_source, split_names


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of `tmp_path`, on this machine."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_table_at_an_address_is_read_as_one_on_the_disk(address: str, tmp_path: Path) -> None:
    path = tmp_path / "val.parquet"
    pq.write_table(pa.table({"image": [png(10 * row) for row in range(6)], "label": ["a", "b"] * 3}), path)
    there, here = open_source(f"{address}/val.parquet"), open_source(path)
    assert list(there.names) == list(here.names) == [f"val.parquet#{row}" for row in range(6)]
    assert list(there.labels or ()) == list(here.labels or ()) == ["a", "b"] * 3
    assert [there.read(row) for row in range(6)] == [here.read(row) for row in range(6)]
    images = open_images(f"{address}/val.parquet")
    assert len(images) == 6 and images.labels == ("a", "b") * 3
    assert open_images(f"{address}/val.parquet").digest == images.digest
    assert split_names(f"{address}/val.parquet") == {"val.parquet"}


def test_what_is_not_there_or_no_table_is_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"no table")
    for name in ("none.parquet", "text.parquet"):
        with refused(f"{address}/{name}"):
            open_source(f"{address}/{name}")
    with refused(f"{address}/photos.zip", "Parquet"):
        open_source(f"{address}/photos.zip")
    with refused("nosuch://bucket/a.parquet", "nosuch"):
        open_source("nosuch://bucket/a.parquet")


def test_a_file_system_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with refused("s3://bucket/a.parquet", "s3fs", "semmae[remote]"):
        open_source("s3://bucket/a.parquet")
