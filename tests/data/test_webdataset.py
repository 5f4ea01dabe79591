"""WebDataset's own writer and reader: we read what it writes, and it reads what we pack."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import semmae
from semmae.data.manifest import open_images
from semmae.data.sources import open_source

wds = pytest.importorskip("webdataset")

Jpeg = Callable[[int], bytes]


@pytest.mark.parametrize("mapping", ["cls", "json"])
def test_what_its_writer_writes(tmp_path: Path, jpeg: Jpeg, mapping: str) -> None:
    label = {"cls": lambda row: row % 3, "json": lambda row: {"label": row % 3, "caption": "a photo"}}[mapping]
    with wds.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=4, verbose=0) as sink:
        for row in range(10):
            sink.write({"__key__": f"photos/{row:05}", "jpg": jpeg(row), mapping: label(row)})
    source = open_source(f"{tmp_path}/train-{{0000..0002}}.tar")
    assert source.names == [f"train-{row // 4:04}.tar/photos/{row:05}.jpg" for row in range(10)]
    assert [source.read(row) for row in range(10)] == [jpeg(row) for row in range(10)]
    assert source.labels == [str(row % 3) for row in range(10)]


def test_encoded_images_and_texts_of_its_writer(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
    with wds.TarWriter(str(tmp_path / "x.tar")) as sink:
        sink.write({"__key__": "a", "png": pixels, "seg.png": pixels[..., 0], "txt": "a cat", "cls": "cat"})
    images = open_images(tmp_path / "x.tar")
    assert images.names == ["x.tar/a.png"] and images.labels == ["cat"]
    assert np.array_equal(images.read(0).permute(1, 2, 0).numpy(), pixels)


def test_its_reader_reads_what_we_pack(tmp_path: Path, jpeg: Jpeg) -> None:
    for row in range(9):
        place = tmp_path / "photos" / ("cat", "dog")[row % 2] / f"{row}.v1.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(row))
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", workers=1)
    urls = [str(path) for path in sorted((tmp_path / "packed").glob("*.tar"))]
    found = {}
    data = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "cls", "__key__")
    for image, number, key in data:
        found[key] = (np.asarray(image), number)
    assert sorted(found) == sorted(f"{('cat', 'dog')[row % 2]}/{row}_v1" for row in range(9))
    for row in range(9):
        pixels, number = found[f"{('cat', 'dog')[row % 2]}/{row}_v1"]
        assert number == row % 2 and np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(jpeg(row)))))
    assert os.path.isfile(tmp_path / "packed" / "classes.json")
