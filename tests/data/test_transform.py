"""Images in any form → input: all forms agree, and with what whole data sets show an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import open_images
from semmae.data.transform import ImageTransform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def drawn(height: int, width: int, seed: int = 0) -> Any:
    """Smooth colours and some noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    down, across = np.linspace(0, 200, height)[:, None, None], np.linspace(0, 50, width)[None, :, None]
    return (down + across * rng.random(3) + rng.integers(0, 6, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_paths_give_what_a_data_set_shows(kind: str, crop_pct: float, tmp_path: Path) -> None:
    """Also of a photo so large that it is decoded at a fraction of its size, of grey, and of one lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn(50, 70)).save(tmp_path / f"a.{kind}", exif=exif)
    Image.fromarray(drawn(1200, 900)).save(tmp_path / f"b.{kind}", quality=98)
    Image.fromarray(drawn(40, 30)[..., 0]).save(tmp_path / f"c.{kind}")
    images = open_images(tmp_path, workers=0)
    whole = WholeDataset(images, 32, fit="centre", crop_pct=crop_pct)
    wanted = normalise(torch.stack([whole[row]["image"] for row in range(3)]), MEAN, STD)
    transform, paths = ImageTransform(32, MEAN, STD, crop_pct), sorted(tmp_path.iterdir())

    assert torch.equal(transform(paths), wanted)
    assert torch.equal(transform(str(paths[0])), wanted[0])


@pytest.mark.parametrize("size", [(50, 70), (33, 20), (32, 32)])
def test_all_forms_agree(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = drawn(*size)
    picture, planes = Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)
    picture.save(tmp_path / "a.png")
    transform = ImageTransform(32, MEAN, STD)

    found = [picture, pixels, planes, planes.contiguous(), planes / 255, planes.double() / 255, tmp_path / "a.png"]

    assert transform(found).dtype == torch.float32 and transform(found).shape == (len(found), 3, 32, 32)
    assert all(torch.equal(one, transform(picture)) for one in transform(found))
    grey = pixels[..., 0]
    greys = [grey, Image.fromarray(grey), torch.from_numpy(grey)[None], grey[..., None], np.stack([grey] * 3, -1)]
    assert all(torch.equal(one, transform(grey)) for one in transform(greys))


def test_a_picture_is_taken_as_it_is_and_made_rgb() -> None:
    pixels = drawn(32, 32)
    clear = Image.fromarray(np.dstack([pixels, np.zeros((32, 32), np.uint8)]), "RGBA")

    assert (ImageTransform(32, (0, 0, 0), (1, 1, 1))(clear) == 1).all()  # transparent: the white behind it


def test_no_images_are_no_input() -> None:
    assert ImageTransform(32, MEAN, STD)([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (lambda folder: folder / "none.jpg", "none.jpg"),
        (lambda folder: folder, ""),
        (lambda folder: folder / "damaged.jpg", "damaged.jpg"),
        (lambda _: 3.5, "3.5"),
        (lambda _: torch.full((3, 8, 8), 2.0), "2"),
        (lambda _: torch.full((3, 8, 8), float("nan")), "nan"),
        (lambda _: torch.zeros(4, 8, 8, dtype=torch.uint8), "(4, 8, 8)"),
        (lambda _: torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (lambda _: torch.zeros(3, 0, 8), "(3, 0, 8)"),
        (lambda _: np.zeros((8, 8, 3), np.float32), "float32"),
        (lambda _: Image.new("F", (8, 8)), "Image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(image: Callable[[Path], Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")

    with refused(named):
        ImageTransform(32, MEAN, STD)([image(tmp_path)])
