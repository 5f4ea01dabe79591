"""PNG of 16 bits in colour or with transparency, all bits of it: opened as a picture of Pillow's it has the high 8.

Pillow undoes filters and interlacing by how many bits a pixel has, and then keeps one byte of each number: which one is
for the caller to say. The numbers lie high byte first; read as if the low one came first, what is kept is the low one.
"""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from semmae.data.headers import PNG, check_memory, check_png, check_size

Pixels = npt.NDArray[np.uint16]

_COLOUR, _GREY_ALPHA, _COLOUR_ALPHA = 2, 4, 6  # PNG's colour types
_TYPES = (_COLOUR, _GREY_ALPHA, _COLOUR_ALPHA)
_BYTES = 20  # a pixel, at most, of what is held at once: 8 of pixels, and what grey is summed up in
_MOST = 65535


def is_wide_png(raw: bytes) -> bool:
    """Whether these bytes are such a PNG: of 16 bits, in colour or with transparency."""
    return raw.startswith(PNG) and raw[12:16] == b"IHDR" and raw[24:25] == b"\x10" and raw[25] in _TYPES


def wide_png_channels(raw: bytes) -> int:
    """Channels of such a PNG, as the file has them."""
    return {_COLOUR: 3, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}[raw[25]]


def decode_wide_png(raw: bytes, channels: int) -> tuple[Pixels, bytes]:
    """uint16 (H, W, C) as the file has them, for one channel (H, W) in grey on white; and its EXIF block, or nothing.

    `raw` is one by `is_wide_png`. ValueError where it cannot be read.
    """
    check_png(raw)
    width, height, _, kind, *methods, interlaced = struct.unpack_from(">IIBBBBB", raw, 16)
    check_size(width * height)
    check_memory(width * height * _BYTES)
    chunks = list(_chunks(raw))
    if any(methods) or interlaced > 1 or not width * height:
        raise ValueError("not an image")
    data = b"".join(content for name, content in chunks if name == b"IDAT")
    pixels = _pixels(data, (width, height), kind, interlaced)
    found = dict(reversed(chunks))  # the first of each name
    if channels == 1:
        pixels = _grey(pixels, kind, found.get(b"tRNS", b""))
    return pixels, found.get(b"eXIf", b"")


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk of a PNG that is whole."""
    at = len(PNG)
    while at < len(raw):
        begin = at + 8
        end = begin + int.from_bytes(raw[at : at + 4], "big")
        name = raw[at + 4 : begin]
        yield name, raw[begin:end]
        if name == b"IEND":
            return
        at = end + 4  # behind the checksum


def _pixels(data: bytes, size: tuple[int, int], kind: int, interlaced: int) -> Pixels:
    """uint16 (H, W, C) of what the chunks of pixels hold."""

    def kept(mode: str, layout: str) -> npt.NDArray[np.uint8]:
        try:
            return np.asarray(Image.frombytes(mode, size, data, "zip", layout, interlaced))
        except ValueError as error:
            raise ValueError("truncated" if "not enough" in str(error) else "damaged pixels") from error

    if kind == _GREY_ALPHA:  # two numbers are four bytes: a pixel as Pillow holds it, none of them left out
        return kept("RGBA", "RGBA").view(">u2").astype(np.uint16)
    mode = "RGB" if kind == _COLOUR else "RGBA"
    pixels = kept(mode, f"{mode};16B").astype(np.uint16)
    pixels <<= 8
    pixels |= kept(mode, f"{mode};16L")
    return pixels


def _grey(pixels: Pixels, kind: int, clear: bytes) -> Pixels:
    """uint16 (H, W): ITU-R 601 in the whole numbers that Pillow makes grey by, transparency on white.

    `clear`: the one colour (three numbers of 16 bits) that is transparent, of pixels without a channel for that.
    """
    if kind == _GREY_ALPHA:
        grey = pixels[..., 0].astype(np.uint32)
    else:
        grey = np.full(pixels.shape[:2], 1 << 15, np.uint32)  # half of the unit, to round
        for channel, weight in enumerate((19595, 38470, 7471)):  # of 65536; the sum stays within 32 bits
            grey += pixels[..., channel] * np.uint32(weight)
        grey >>= 16
    if kind != _COLOUR:
        alpha = pixels[..., -1].astype(np.uint32)
        grey *= alpha
        alpha = _MOST - alpha
        alpha *= _MOST
        grey += alpha
        grey += _MOST // 2
        grey //= _MOST
    elif len(clear) == 6:
        grey[(pixels == np.frombuffer(clear, ">u2")).all(-1)] = _MOST
    return grey.astype(np.uint16)
