"""Image bytes → uint8 RGB (3, H, W), or the labels of an annotation (H, W): the one door to every decoder.

- Grey and colour JPEG torchvision decodes into a tensor; everything else, and what torchvision refuses, Pillow reads:
  PNG, WebP, BMP, TIFF, GIF (first frame), AVIF, CMYK, 16-bit (the high byte is kept), transparency (composited on
  white), and HEIC where pillow-heif is installed. No other format of Pillow's is tried: some start programs.
- A damaged file is a ValueError, never the end of the process: torchvision's decoder of PNG dies of most damaged ones
  (0.29), its decoder of JPEG and Pillow's of all formats died of none of 40,000 or more each.
- torchvision means to give its decoders up; where it has none, Pillow reads everything. TorchCodec, named as their
  successor, is not taken: it wants torch 2.11, reads neither BMP nor TIFF, and took 16 s over one damaged WebP.
- The checksums of a PNG are compared, which Pillow leaves out: it decodes a file that ends in zeros to noise.
- The header is looked at first: an image of more than `MOST_PIXELS` is refused before its pixels take any memory.
- One rule of orientation: that of the EXIF block (AVIF, HEIC and TIFF: of their own headers), as browsers do it. What
  XMP says, and an EXIF block that cannot be read, counts for nothing.
- A photo much larger than what is asked for is decoded at 1/2, 1/4 or 1/8 of its size, as the JPEG format allows.
"""

import functools
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from semmae.errors import one_line

try:
    from torchvision.io import decode_jpeg
except ImportError:
    _DECODES = False
else:
    _DECODES = hasattr(torch.ops.image, "decode_jpeg")  # some builds come without the libraries of the formats

_AVIF = find_spec("PIL._avif") is not None
_HEIC = find_spec("pillow_heif") is not None
if _HEIC:
    import_module("pillow_heif").register_heif_opener()

# Endings of files that are decoded here, and the formats that Pillow may take bytes for.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
    + (".avif",) * _AVIF
    + (".heic", ".heif") * _HEIC
)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF") + ("AVIF",) * _AVIF + ("HEIF",) * _HEIC

MOST_PIXELS = 250_000_000  # 0.75 GB as RGB; the largest sensors of cameras have 200 million
MOST_BYTES = 2**31  # of a file: that many pixels of 16-bit RGB, uncompressed
_MOST_SCANS = 100  # of a JPEG: ten are usual, and each passes over all pixels

# Pillow's own limit, 179 million, is below real photos. It warns of so many pixels and refuses twice as many.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What Pillow finds odd about a file that it reads nevertheless, nobody can mend.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# The bytes are only read. torch warns of a tensor over read-only memory; copying costs 2 % of decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable", module=r"semmae\.data\.decode")
# That its decoders will go is provided for, and nothing that the user could mend.
warnings.filterwarnings("ignore", message="The image decoding", category=DeprecationWarning, module=r"torchvision\.io")

_log = logging.getLogger("semmae")

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_REDUCED_FROM = 256 * 1024  # bytes; a smaller file is decoded whole: reading it twice would not pay
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION_ENTRY = {"little": b"\x12\x01\x03\0", "big": b"\x01\x12\0\x03"}  # tag 0x0112, of the type SHORT
_TURNED = 5  # orientations from 5 on swap height and width
_FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}  # once they are swapped


def decode(raw: bytes, least: int | None = None) -> Tensor:
    """uint8 (3, H, W) RGB of an encoded image. ValueError with a short reason when it cannot be read.

    Args:
        raw: the bytes of the file.
        least: pixels of the short side that are enough. A large JPEG whose short side is at least twice as long
            comes at 1/2, 1/4 or 1/8 of its size, with a short side of at least `least`; that takes half the time.
            None: always at its own size.
    """
    if not raw:
        raise ValueError("empty file")
    jpeg = _jpeg_header(raw)
    if jpeg is not None:
        if least is not None and len(raw) >= _REDUCED_FROM and min(jpeg.height, jpeg.width) >= 2 * least:
            reduced = _decode_reduced(raw, least)
            if reduced is not None:
                return reduced
        if _DECODES and jpeg.channels in (1, 3):
            try:
                image = decode_jpeg(torch.frombuffer(raw, dtype=torch.uint8))
            except RuntimeError:
                pass  # Pillow reads some files that torchvision refuses, and names the fault of the others
            else:
                image = image if jpeg.channels == 3 else image.expand(3, -1, -1)
                return _upright(image, jpeg.exif) if jpeg.exif else image
    with _opened(raw) as opened:
        return _to_tensor(opened)


def decode_labels(raw: bytes) -> npt.NDArray[np.uint8]:
    """uint8 (H, W): the grey levels or palette indices of an annotation, upright as a photo would be.

    Raises:
        ValueError: it cannot be read, or does not hold 8-bit labels.
    """
    with _opened(raw) as opened:
        if opened.mode not in ("L", "P"):
            raise ValueError(f"it holds no 8-bit labels but mode {opened.mode}")
        labels: npt.NDArray[np.uint8] = _upright(torch.from_numpy(np.array(opened)), _exif(opened)).numpy()
        return labels


def upright_size(raw: bytes) -> tuple[int, int]:
    """Height and width of an encoded image as `decode` gives it, off the header where that tells them.

    Raises:
        ValueError: it cannot be read.
    """
    jpeg = _jpeg_header(raw)
    if jpeg is not None:
        (height, width), exif = (jpeg.height, jpeg.width), jpeg.exif
    else:
        with _opened(raw) as opened:
            if opened.format in ("TIFF", "HEIF") or b"eXIf" in raw:  # known once the pixels are read
                opened.load()
            (width, height), exif = opened.size, _exif(opened)
    return (width, height) if _orientation(exif) >= _TURNED else (height, width)


@functools.cache
def tell_slow_decoder() -> None:
    """Say it, once, where torchvision cannot decode."""
    if not _DECODES:
        _log.warning(
            "torchvision %s has no image decoders; Pillow reads all images, more slowly: see --workers",
            torchvision.__version__,
        )


# Headers


class _Jpeg(NamedTuple):
    """What the segments before the first scan of a JPEG say."""

    height: int
    width: int
    channels: int
    exif: bytes  # empty where there is none


_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}  # of these
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_LENGTHLESS = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))  # stuffed bytes, restarts, padding: passed over
_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd8-\xfe]")  # any other


def _jpeg_header(raw: bytes) -> _Jpeg | None:
    """Of a JPEG; None of anything else, and where libjpeg would find no frame and scan either.

    Raises:
        ValueError: it has too many pixels, or so many scans that decoding would not end.
    """
    if not raw.startswith(_JPEG):
        return None
    height, width, channels, several, exif, at = 0, 0, 0, False, b"", 2
    try:
        while True:
            if raw[at] != 0xFF or raw[at + 1] in _LENGTHLESS:
                at = _next_marker(raw, at)
            marker, begin = raw[at + 1], at + 2
            if marker in (_START_OF_SCAN, _END_OF_IMAGE):
                several |= raw[begin + 2] < channels  # where a scan holds some of them alone
                break
            at = begin + (raw[begin] << 8 | raw[begin + 1])
            if marker == _APP1 and raw.startswith(b"Exif\0\0", begin + 2):
                exif += raw[begin + (8 if exif else 2) : at]  # a long block comes in several segments
            elif marker in _START_OF_FRAME and not channels:
                height, width, channels = struct.unpack_from(">HHB", raw, begin + 3)
                several = marker in _PROGRESSIVE
    except (IndexError, struct.error):
        return None
    if not channels:
        return None
    _check_size(height * width)
    if several and raw.count(b"\xff\xda") > _MOST_SCANS:  # which is more than there are
        _check_scans(raw, at)
    return _Jpeg(height, width, channels, exif)


def _next_marker(raw: bytes, at: int) -> int:
    """Where the next marker with a length is, beyond what is none. IndexError where there is none."""
    found = _MARKER.search(raw, at)
    if found is None:
        raise IndexError
    return found.end() - 2


def _check_scans(raw: bytes, at: int) -> None:
    """ValueError where a JPEG, of which a segment begins at `at`, has too many scans."""
    scans = 0
    while (found := _MARKER.search(raw, at)) and raw[found.end() - 1] != _END_OF_IMAGE:
        scans += raw[found.end() - 1] == _START_OF_SCAN
        at = found.end() + int.from_bytes(raw[found.end() : found.end() + 2], "big")
    if scans > _MOST_SCANS:
        raise ValueError(f"{scans} scans, limit {_MOST_SCANS}; save it anew")


def _check_png(raw: bytes) -> None:
    """ValueError where a PNG breaks off, or a chunk that its pixels depend on has another checksum than it bears."""
    view, at = memoryview(raw), len(_PNG)
    while at + 12 <= len(raw):
        kind, end = raw[at + 4 : at + 8], at + 12 + int.from_bytes(raw[at : at + 4], "big")
        if end > len(raw):
            break
        needed = kind[:1].isupper()
        if needed and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], "big"):
            raise ValueError("damaged: a checksum differs")
        if kind == b"IEND":
            return
        at = end
    raise ValueError("truncated")


def _check_size(pixels: int) -> None:
    """ValueError above `MOST_PIXELS`."""
    if pixels > MOST_PIXELS:
        raise ValueError(f"{pixels:,} pixels, limit {MOST_PIXELS:,}; scale it down")


@contextmanager
def _opened(raw: bytes) -> Iterator[Image.Image]:
    """An image whose header Pillow has read; whatever is wrong with it, now or in the block, as ValueError."""
    try:
        if raw.startswith(_PNG):
            _check_png(raw)
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as opened:
            _check_size(opened.width * opened.height)
            opened.info.pop("xmp", None)  # Pillow turns a TIFF as it loads, and would do so by XMP, too
            yield opened
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        if isinstance(error, Image.DecompressionBombError):
            _check_size(int(re.findall(r"\d+", str(error))[0]))  # in our words
        raise ValueError(_reason(error)) from error


# Pixels


def _decode_reduced(raw: bytes, least: int) -> Tensor | None:
    """A JPEG at a fraction of its size; None where it cannot be read so.

    The decoder leaves out the high frequencies of each block instead of computing all pixels (Pillow's `draft`).
    """
    try:
        with _opened(raw) as opened:
            opened.draft(opened.mode, (least, least))
            return _to_tensor(opened)
    except ValueError:  # whether anything is wrong with it, and what, decoding the whole will tell
        return None


def _to_tensor(opened: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an image that Pillow has opened: loaded, made RGB, turned upright."""
    opened.load()
    pixels = torch.from_numpy(np.array(_to_rgb(opened)))  # (H, W, 3)
    return _upright(pixels.permute(2, 0, 1), _exif(opened))


def _exif(opened: Image.Image) -> bytes:
    """The EXIF block of an image that Pillow has loaded; empty where there is none."""
    found = opened.info.get("exif")
    return found if isinstance(found, bytes) else b""


def _orientation(exif: bytes) -> int:
    """1 to 8, as EXIF defines it; 1, upright, where the block does not tell it as EXIF wants it told.

    Read here, for Pillow takes twenty times as long, and warns of other entries.
    """
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"
    begin = int.from_bytes(block[4:8], order)
    entries = int.from_bytes(block[begin : begin + 2], order)
    for at in range(begin + 2, min(begin + 2 + 12 * entries, len(block)), 12):
        if block[at : at + 4] == _ORIENTATION_ENTRY[order]:
            value = int.from_bytes(block[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(image: Tensor, exif: bytes) -> Tensor:
    """An image (…, H, W) turned and mirrored as its EXIF block says."""
    orientation = _orientation(exif)
    if orientation >= _TURNED:
        image = image.transpose(-2, -1)
    return image.flip(_FLIPS[orientation]) if orientation in _FLIPS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB: 16 bits cut to the high byte, transparency composited on white."""
    if image.mode in _INTEGER_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels, of which the range is unknown")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, of which the range is unknown")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """One short line for the list of skipped files."""
    line = one_line(error) or type(error).__name__
    if "truncated" in line.lower() or isinstance(error, EOFError):
        return "truncated"
    return line[:120]
