"""Small real image files, Parquet tables and tar shards."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semmae.data import shard_places

WriteImages = Callable[..., Path]


def _encode(seed: int, height: int = 20, width: int = 28) -> bytes:
    """A JPEG of noise, another one for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """jpeg(seed): the bytes that the other fixtures write as image number `seed`."""
    return _encode


@pytest.fixture
def write_images() -> WriteImages:
    """write_images(root, name, ...): a different JPEG (whatever the suffix) under each name."""

    def write(root: Path, *names: str) -> Path:
        for seed, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(_encode(seed))
        return root

    return write


@pytest.fixture
def write_table() -> WriteImages:
    """write_table(path, count, label=[...], struct=True): a Parquet file of `count` JPEGs."""

    def write(path: Path, count: int, *, label: list[object] | None = None, struct: bool = True) -> Path:
        raws = [_encode(seed) for seed in range(count)]
        columns: dict[str, list[object]] = {
            "image": [{"bytes": raw, "path": f"{i}.jpg"} for i, raw in enumerate(raws)] if struct else list(raws)
        }
        if label is not None:
            columns["label"] = label
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=3)
        return path

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept; a shard that cannot be fetched is asked for again at once."""
    monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_places, "_PAUSE", 0.0)
    return tmp_path / "cache" / "shards"


@pytest.fixture
def shards(tmp_path: Path, jpeg: Callable[[int], bytes], cache: Path) -> Path:
    """Two shards to train on and one to measure on, three images each."""
    folder = tmp_path / "served"
    folder.mkdir()
    for number, name in enumerate(("train-0", "train-1", "val-0")):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for row in range(3 * number, 3 * number + 3):
                for ending, content in (("jpg", jpeg(row)), ("cls", str(row % 2).encode())):
                    member = tarfile.TarInfo(f"{row}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "classes.json").write_text('["cat", "dog"]')
    return folder


@pytest.fixture
def memory(shards: Path) -> Iterator[str]:
    """The shards in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)
