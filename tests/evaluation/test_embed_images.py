"""`semmae.embed_images`: the numbers that the verb writes, of images in any form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import semmae
from semmae.errors import UserError


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
    tokens = pooling or "mean"
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


def test_nothing_gives_nothing_and_wrong_input_is_refused(encoder: Path) -> None:
    loaded = semmae.load_encoder(encoder)

    assert semmae.embed_images(loaded, []).shape == (0, 24)
    for images, options in (("photos", {}), (["none.jpg"], {}), ([], {"batch_size": 0})):
        with pytest.raises(UserError):
            semmae.embed_images(loaded, images, **options)  # type: ignore[arg-type]
