"""`semmae pack` loses nothing that is read with any `--channels`: depth, channels, transparency."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pngs import png
from refusals import refused
from torch import Tensor
from torch.nn.functional import interpolate

import semmae
from semmae.data import deep
from semmae.data.decode import decode
from semmae.data.manifest import open_images
from semmae.data.sources import open_source

SHORT = 48
SIZES = {"small": (40, 56), "large": (150, 200)}


def smooth(height: int, width: int, channels: int, most: int, seed: int = 0) -> np.ndarray:
    """(H, W, C): waves from 0 to `most`, which JPEG keeps nearly as they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(1, 6, (channels, 3))]
    return np.round((np.stack(waves, -1) + 1) / 2 * most)


def picture(kind: str, size: tuple[int, int]) -> bytes:
    """A file of that kind."""
    mode, form = kind.split()
    bands = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "P": 3}.get(mode, 4)
    pixels = smooth(*size, bands, 65535 if mode == "I;16" else 255)
    plain = pixels.astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(plain[..., 0] if bands == 1 else plain, "CMYK" if mode == "CMYK" else None)
    file, how = io.BytesIO(), {}
    if mode == "P":
        image, how = image.quantize(16), {"transparency": 3}
    assert image.mode == mode
    image.save(file, form, **how)
    return file.getvalue()


def array(shape: tuple[int, ...], dtype: type) -> bytes:
    file = io.BytesIO()
    np.save(file, smooth(*shape, np.iinfo(dtype).max).astype(dtype))
    return file.getvalue()


PICTURES = (
    "I;16 PNG", "I;16 TIFF", "L PNG", "L JPEG", "RGB PNG", "RGB BMP", "RGBA PNG", "RGBA TIFF", "LA PNG", "P PNG",
    "P GIF", "CMYK JPEG", "CMYK TIFF",
)  # fmt: skip
ARRAYS = ((5, np.uint16), (5, np.uint8), (2, np.uint16), (4, np.uint8))
SHRUNK_ARRAYS = ((1, np.uint16), (1, np.uint8), (3, np.uint8), (3, np.uint16))
NOT_SHRUNK = ("RGBA", "LA", "P", "CMYK", "TIFF5", "array2", "array4", "array5")


def files(folder: Path) -> dict[str, bytes]:
    """Name without its ending → content, of a folder of images or of shards."""
    source = open_source(folder)
    keys = [name.rpartition("/")[2].partition(".")[0] for name in source.names]
    found = {key: source.read(row) for row, key in enumerate(keys)}
    assert len(found) == len(source)
    return found


def write(folder: Path, contents: dict[str, bytes], ending: str = ".img") -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / f"{name}{ending}").write_bytes(content)
    return folder


def read(raw: bytes, channels: int) -> Tensor | None:
    """The pixels that a training with so many channels sees, from 0 to 1; None where it refuses the image."""
    try:
        pixels = decode(raw, channels=channels)
    except ValueError:
        return None
    return pixels.double() / (255 if channels == 3 else 65535)


def shrunk(pixels: Tensor) -> Tensor:
    """By another resizer, with the same filter."""
    height, width = (round(side * SHORT / min(pixels.shape[1:])) for side in pixels.shape[1:])
    return interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def check_that_nothing_is_lost(before: dict[str, bytes], packed: Path) -> None:
    after = files(packed)
    assert after.keys() == before.keys()
    for name, raw in before.items():
        kind, size = name.split("-")[0], name.split("-")[-1]
        for channels in range(1, 6):
            expected, found = read(raw, channels), read(after[name], channels)
            if expected is None:
                continue
            assert found is not None, (name, channels)
            is_shrunk = size == "large" and not kind.startswith(NOT_SHRUNK)
            expected = shrunk(expected) if is_shrunk else expected
            assert found.shape == expected.shape, (name, channels)
            if not is_shrunk and after[name] == raw:
                continue
            off = (found - expected).abs().max().item()
            deep_grey = kind in ("I;16", "array1") and channels == 1 and "uint8" not in name
            # In 16 bits rounding, and float32; of grey of 16 bits shown in 8 the last bit; else what JPEG loses.
            assert off < (4e-5 if deep_grey else 0.06), (name, channels, off)


def test_pictures_of_any_depth_and_channels_are_read_as_before(tmp_path: Path) -> None:
    before = {
        f"{kind.replace(' ', '-')}-{name}": picture(kind, size) for kind in PICTURES for name, size in SIZES.items()
    }
    write(tmp_path / "photos", before, ".png")  # what they are is not asked of their names
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", short_side=SHORT, workers=0)
    check_that_nothing_is_lost(before, tmp_path / "packed")
    levels = {name: len(np.unique(decode(raw, channels=1))) for name, raw in files(tmp_path / "packed").items()}
    assert levels["I;16-PNG-large"] > 1000 and levels["L-PNG-large"] <= 256


@pytest.mark.parametrize("size", SIZES)
def test_colour_of_16_bits_is_kept_where_its_grey_is_asked_for(size: str, tmp_path: Path) -> None:
    before = {"colour": png(smooth(*SIZES[size], 3, 65535).astype(np.uint16))}
    write(tmp_path / "photos", before, ".png")
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", short_side=SHORT, workers=0, channels=1)
    expected, found = read(before["colour"], 1), read(files(tmp_path / "packed")["colour"], 1)
    assert expected is not None and found is not None
    expected = shrunk(expected) if size == "large" else expected
    assert (found - expected).abs().max() < 4e-5


@pytest.mark.parametrize("kinds", [ARRAYS, SHRUNK_ARRAYS])
def test_arrays_are_read_as_before(kinds: Any, tmp_path: Path) -> None:
    before = {
        f"array{channels}-{dtype.__name__}-{name}": array((*size, channels), dtype)
        for channels, dtype in kinds
        for name, size in SIZES.items()
    }
    semmae.pack(data=write(tmp_path / "a", before, ".npy"), out=tmp_path / "packed", short_side=SHORT, workers=0)
    check_that_nothing_is_lost(before, tmp_path / "packed")
    semmae.pack(data=tmp_path / "packed", out=tmp_path / "again", short_side=SHORT, workers=0)
    assert files(tmp_path / "again") == files(tmp_path / "packed")


def test_a_tiff_of_many_channels_is_kept(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    before = {}
    for name, size in SIZES.items():
        file, bands = io.BytesIO(), smooth(*size, 5, 65535).astype(np.uint16)
        tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
        before[f"TIFF5-{name}"] = file.getvalue()
    semmae.pack(data=write(tmp_path / "a", before, ".tif"), out=tmp_path / "packed", short_side=SHORT, workers=0)
    assert files(tmp_path / "packed") == before
    assert open_images(tmp_path / "packed", channels=5).read(0).shape[0] == 5


def test_a_tiff_that_nothing_reads_names_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "HAS_TIFFFILE", False)
    write(tmp_path / "a", {"1": b"II*\0\x08\0\0\0\0\0\0\0\0\0"}, ".tif")
    with refused("1 of 1 images", "semmae[tiff]"):
        semmae.pack(data=tmp_path / "a", out=tmp_path / "packed", workers=0)
    assert not (tmp_path / "packed").exists()


def test_what_was_kept_is_said_and_how_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = list(SIZES.values())
    rgba = write(tmp_path / "rgba", {str(i): picture("RGBA PNG", size) for i, size in enumerate(sizes)}, ".png")
    (rgba / "deep.png").write_bytes(picture("I;16 PNG", (60, 60)))
    (rgba / "rgb.png").write_bytes(picture("RGB PNG", (60, 60)))

    def pack(folder: Path, **how: Any) -> str:
        semmae.pack(data=folder, out=tmp_path / "packed", short_side=SHORT, workers=0, overwrite=True, **how)
        return capsys.readouterr().out

    said = pack(rgba)
    assert "1 image of 16-bit grey" in said and "2 images of 4 channels" in said and "--channels 3" in said
    assert json.loads((tmp_path / "packed" / "pack.json").read_text())["images_of"] == {"1": 1, "3": 1, "4": 2}
    as_rgb = pack(rgba, channels=3)
    assert "16-bit" not in as_rgb and "--channels" not in as_rgb
    assert {decode(raw).dtype for raw in files(tmp_path / "packed").values()} == {torch.uint8}
    assert max(min(decode(raw).shape[1:]) for raw in files(tmp_path / "packed").values()) == SHORT
    assert "1 image of 16-bit grey" in (in_grey := pack(rgba, channels=1)) and "4 channels" not in in_grey
    assert in_grey.rstrip().endswith("--channels 1 --out runs/a")

    grey = write(tmp_path / "grey", {"1": picture("I;16 PNG", (60, 60))}, ".png")
    assert "--channels 1" in pack(grey)
    semmae.pack(data=grey, out=tmp_path / "packed", short_side=SHORT, workers=0)  # known again
    assert "already finished" in (again := capsys.readouterr().out) and "--channels 1" in again
    with refused("packed otherwise", "--overwrite"):
        semmae.pack(data=grey, out=tmp_path / "packed", short_side=SHORT, workers=0, channels=3)
    with refused("4 of 4 images", "4 channels, not 2"):
        semmae.pack(data=rgba, out=tmp_path / "other", workers=0, channels=2)


def test_arrays_among_pictures_cannot_be_packed_and_nothing_is_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"1": array((40, 40, 4), np.uint8)}, ".npy")
    (folder / "2.png").write_bytes(picture("RGBA PNG", (40, 40)))
    with refused("1.npy", "2.png", "apart"):
        semmae.pack(data=[folder / "1.npy", folder / "2.png"], out=tmp_path / "packed", workers=0)
    assert sorted(tmp_path.iterdir()) == [folder]


def test_images_of_python_are_kept_where_their_channels_are_said(tmp_path: Path) -> None:
    grey = smooth(40, 56, 1, 65535).astype(np.uint16)
    five = smooth(150, 200, 5, 65535).astype(np.uint16)
    rgba = smooth(40, 56, 4, 255).astype(np.uint8)
    for number, (channels, given) in enumerate(
        [(1, Image.fromarray(grey[..., 0])), (1, grey), (5, five), (5, torch.from_numpy(five).permute(2, 0, 1)),
         (4, rgba), (4, Image.fromarray(rgba))]
    ):  # fmt: skip
        with refused("item 0", f"--channels {channels}"):
            semmae.pack(data=[given], out=tmp_path / "packed", workers=0)
        out = tmp_path / str(number)
        semmae.pack(data=[given], out=out, workers=0, channels=channels)
        expected = open_images([given], workers=0, channels=channels).read(0)
        assert torch.equal(open_images(out, workers=0, channels=channels).read(0), expected)
    semmae.pack(data=[Image.fromarray(rgba)], out=tmp_path / "rgb", workers=0, channels=3)
    assert torch.equal(open_images(tmp_path / "rgb").read(0), open_images([Image.fromarray(rgba)]).read(0))
    assert not (tmp_path / "packed").exists()
