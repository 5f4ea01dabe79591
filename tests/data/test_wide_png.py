"""Colour of 16 bits in PNG: every bit of it, by an encoder of our own that filters each row otherwise."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from pngs import TYPES, chunk, png
from refusals import refused

from semmae.data import deep
from semmae.data.decode import decode, pixels_of
from semmae.data.transform import ImageTransform


def drawn(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (13, 7, channels), np.uint16)


def exact_grey(pixel: list[int]) -> Fraction:
    """ITU-R 601, what is transparent on white."""
    *colour, alpha = pixel if len(pixel) != 3 else [*pixel, 65535]
    red, green, blue = colour * 3 if len(colour) == 1 else colour
    grey = Fraction(299 * red + 587 * green + 114 * blue, 1000)
    return (grey * alpha + 65535 * (65535 - alpha)) / 65535


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [2, 4])
def test_every_bit_is_read(channels: int, interlaced: bool) -> None:
    pixels = drawn(channels)
    found = decode(png(pixels, interlaced=interlaced), None, channels)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("channels", TYPES)
def test_grey_is_made_of_every_bit(channels: int) -> None:
    pixels = drawn(channels)
    found = decode(png(pixels), None, 1)[0].numpy()
    exact = [exact_grey(pixel) for pixel in pixels.reshape(-1, channels).tolist()]
    # Weights of 65536 are off by a hundred thousandth, each of the two roundings by a half.
    assert max(abs(float(value) - one) for one, value in zip(found.ravel().tolist(), exact, strict=True)) < 2
    assert (found % 257 != 0).any()


def test_the_colour_that_is_transparent_is_white_in_grey() -> None:
    pixels = drawn(3)
    clear = chunk(b"tRNS", pixels[4, 5].astype(">u2").tobytes())
    found, usual = (decode(png(pixels, *before), None, 1)[0].numpy() for before in ([clear], []))
    assert found[4, 5] == 65535 and np.array_equal(np.argwhere(found != usual), [[4, 5]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_as_in_8_bits(orientation: int) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + b"\0" * 4
    grey = np.repeat(drawn(1), 3, 2)  # so that its high byte is that of its grey
    raw = png(grey, chunk(b"eXIf", exif))
    assert np.array_equal(decode(raw, None, 1)[0].numpy() >> 8, decode(raw)[0].numpy())


@pytest.mark.parametrize("depth", [8, 16])
def test_transparency_is_a_channel_in_either_depth(depth: int) -> None:
    pixels = drawn(2)
    file = io.BytesIO()
    Image.fromarray((pixels >> 8).astype(np.uint8), "LA").save(file, "PNG")
    raw = file.getvalue() if depth == 8 else png(pixels)
    assert decode(raw, None, 2).shape == (2, 13, 7)
    with pytest.raises(ValueError, match="2 channels, not 4"):
        decode(raw, None, 4)


def test_damaged_ones_are_refused() -> None:
    raw = png(drawn(4))
    broken = raw[:70] + bytes([raw[70] ^ 1]) + raw[71:]
    for damaged, words in ((raw[:-30], "truncated"), (broken, "checksum")):
        with pytest.raises(ValueError, match=words):
            decode(damaged, None, 4)
    large = raw.replace(raw[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 15000, 15000, 16, 6, 0, 0, 0)))
    with pytest.raises(ValueError, match="limit"):
        decode(large, None, 4)


def test_what_pillow_has_opened_is_not_cut_unsaid() -> None:
    with Image.open(io.BytesIO(png(drawn(4)))) as image:
        with pytest.raises(ValueError, match="16 bits"):
            pixels_of(image, 4)
        with refused("16 bits", "(height, width, 4)"):
            ImageTransform(8, (0.5,) * 4, (0.5,) * 4)(image)
        assert pixels_of(image).shape == (3, 13, 7)  # of three channels the high byte is kept, as of files


def wide_tiff(pixels: np.ndarray) -> bytes:
    """Uncompressed, of uint16 (H, W, C)."""
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    bits = struct.pack("<4H", *[16] * 4)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 16), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries += [(338, 3, 1, 2)] if channels == 4 else []
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 16 + len(data)) + bits + data + directory + b"\0" * 4


def test_a_tiff_that_pillow_would_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = wide_tiff(drawn(4))
    assert np.array_equal(decode(wide_tiff(drawn(3))).permute(1, 2, 0).numpy(), drawn(3) >> 8)
    if deep.HAS_TIFFFILE:
        assert np.array_equal(decode(raw, None, 4).permute(1, 2, 0).numpy(), drawn(4))
    monkeypatch.setattr(deep, "HAS_TIFFFILE", False)
    for channels, remedy in ((1, "or as PNG"), (4, r"semmae\[tiff\]")):
        with pytest.raises(ValueError, match=f"16 bits.*{remedy}"):
            decode(raw, None, channels)
