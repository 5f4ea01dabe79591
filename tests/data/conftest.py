"""Small real image files and Parquet tables."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

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
