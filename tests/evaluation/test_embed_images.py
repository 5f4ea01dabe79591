"""`semmae.embed_images`: the numbers that the verb writes, of images in any form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader

import semmae


class Labelled:
    """A map-style data set as torchvision's."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.images[row], row % 2


@pytest.mark.parametrize("pooling", [None, "cls"])
def test_they_are_what_embed_writes(pooling: Any, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    data, batch = creatures / "images", 5
    tokens = pooling or semmae.load_encoder(encoder).pooling
    semmae.embed(
        encoder=encoder, data=data, out=tmp_path / "a.npz", tokens=pooling or "auto", batch_size=batch, workers=0
    )
    wanted = np.load(tmp_path / "a.npz")[tokens]
    paths: list[Any] = sorted(data.rglob("*.png"))
    pictures = [Image.open(path) for path in paths]
    loaded = semmae.load_encoder(encoder)
    options: dict[str, Any] = {"pooling": pooling, "batch_size": batch}

    found = [
        semmae.embed_images(encoder, paths, **options),
        semmae.embed_images(str(encoder), [str(path) for path in paths], **options),
        semmae.embed_images(loaded.train(), Labelled(pictures), **options),
        semmae.embed_images(loaded, [{"image": picture, "label": 0} for picture in pictures], **options),
    ]

    assert loaded.training  # left as it came
    assert wanted.dtype == np.float32 and wanted.shape == (len(paths), 24)
    for vectors in found:
        assert vectors.dtype == np.float32 and np.array_equal(vectors, wanted)


def test_a_single_image_and_an_iterator(encoder: Path) -> None:
    loaded = semmae.load_encoder(encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(image) for image in pixels]
    wanted = semmae.embed_images(loaded, pictures)
    assert np.array_equal(semmae.embed_images(loaded, iter(pictures), batch_size=2), wanted)
    assert np.array_equal(semmae.embed_images(loaded, pixels), wanted)
    planes = torch.from_numpy(pixels[0]).permute(2, 0, 1)
    for image in (pictures[0], pixels[0], planes):
        found = semmae.embed_images(loaded, image)
        assert found.shape == (1, 24) and np.allclose(found, wanted[:1], atol=1e-5)


@pytest.mark.parametrize("images", ["photos", None, 3, {"image": 1}, {1}, b"x", list, DataLoader([1])])
def test_what_is_no_list_of_images_is_refused_in_one_line(images: Any, encoder: Path) -> None:
    with refused("give a list"):
        semmae.embed_images(encoder, images)


def test_nothing_gives_nothing_and_wrong_input_is_refused(encoder: Path) -> None:
    loaded = semmae.load_encoder(encoder)

    assert semmae.embed_images(loaded, []).shape == (0, 24)
    for images in ("photos", ["none.jpg"]):
        with refused():
            semmae.embed_images(loaded, images)  # type: ignore[arg-type]
    for batch_size in (0, -1, "a", 1.5, None, True):
        with refused("--batch-size", repr(batch_size)):
            semmae.embed_images(loaded, [], batch_size=batch_size)  # type: ignore[arg-type]
