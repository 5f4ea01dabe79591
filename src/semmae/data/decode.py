"""Image bytes → uint8 RGB (3, H, W), or the labels of an annotation (H, W): the one door to every decoder.

- Grey and colour JPEG torchvision decodes into a tensor; everything else, and what torchvision refuses, Pillow reads:
  PNG, WebP, BMP, TIFF, GIF (first frame), AVIF, CMYK, 16-bit (the high byte is kept), transparency (composited on
  white), and HEIC where pillow-heif is installed. No other format of Pillow's is tried: some start programs.
- A damaged file is a ValueError, never the end of the process: torchvision's decoder of PNG dies of most damaged ones
  (0.29), its decoder of JPEG and Pillow's of all formats died of none of 40,000 or more each.
- torchvision means to give its decoders up; where it has none, Pillow reads everything. TorchCodec, their successor,
  wants torch 2.11, reads neither BMP nor TIFF, and took 16 s over one damaged WebP.
- The checksums of a PNG are compared, which Pillow leaves out: it decodes a file that ends in zeros to noise.
- The header is looked at first (`headers`): an image of more than `MOST_PIXELS`, one whose pixels would take more than
  1.5 GB, and one of blocks without end are refused before they cost anything.
- One rule of orientation: that of the EXIF block (AVIF, HEIC and TIFF: of their own headers), as browsers do it. What
  XMP says, and an EXIF block that cannot be read, counts for nothing.
- A photo much larger than what is asked for is decoded at 1/2, 1/4 or 1/8 of its size, as the JPEG format allows.
"""

import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from semmae.data import deep
from semmae.data.deep import NPY, OWN, TURNED
from semmae.data.headers import MOST_PIXELS, PNG, check_memory, check_png, check_size, grey_bits, jpeg_header
from semmae.data.wide_png import decode_wide_png, is_wide_png, wide_png_channels
from semmae.errors import reason

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
    + (".npy",)
    + (".avif",) * _AVIF
    + (".heic", ".heif") * _HEIC
)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF") + ("AVIF",) * _AVIF + ("HEIF",) * _HEIC

MOST_BYTES = 2**31  # of a file: that many pixels of 16-bit RGB, uncompressed
_NARROW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel of modes; others: 4
_BAND = 2**24  # pixels that are made RGB at once: what lies between takes some bytes of each

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

_NO_IMAGE = "not an image"
_REDUCED_FROM = 256 * 1024  # bytes; a smaller file is decoded whole: reading it twice would not pay
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION_ENTRY = {"little": b"\x12\x01\x03\0", "big": b"\x01\x12\0\x03"}  # tag 0x0112, of the type SHORT
_FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}  # once they are swapped


def decode(raw: bytes, least: int | None = None, channels: int = 3) -> Tensor:
    """uint8 (3, H, W) RGB of an encoded image; of another number of channels uint16 (C, H, W), see `deep`.

    `OWN` channels: those of `own_channels`. ValueError with a short reason when it cannot be read.

    `least`: pixels of the short side that are enough. A large JPEG whose short side is at least twice as long comes at
    1/2, 1/4 or 1/8 of its size, its short side still at least that; it takes half the time.
    """
    if not raw:
        raise ValueError("empty file")
    channels = own_channels(raw) if channels == OWN else channels
    if raw.startswith(NPY) or channels != 3:
        return deep.decode_array(raw, channels) if raw.startswith(NPY) else _decode_deep(raw, channels)
    jpeg = jpeg_header(raw)
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


def _decode_deep(raw: bytes, channels: int) -> Tensor:
    """uint16 (C, H, W) of an encoded picture, another number than three."""
    if is_wide_png(raw):
        pixels, exif = decode_wide_png(raw, channels)
        return _upright(deep.planes_of(pixels, channels), exif)
    remedy = deep.TIFF_REMEDY if deep.needs_tifffile(raw, channels) else None
    if remedy and deep.HAS_TIFFFILE:
        try:
            return _turned(*deep.decode_tiff(raw, channels))
        except deep.UnknownCompression as error:  # Pillow unpacks more kinds, and refuses what it does not keep whole
            remedy = str(error)
    with _naming(remedy), _opened(raw) as opened:
        return _deep_tensor(opened, channels)


def own_channels(raw: bytes) -> int:
    """In how many channels most is read of an encoded image, by its header: 3 where RGB of 8 bits holds it all.

    1 of grey of 16 bits, 4 with transparency, else those of the file. ValueError where the header cannot be read.
    """
    if raw.startswith(NPY):
        return deep.array_channels(raw)
    if is_wide_png(raw):
        return wide_png_channels(raw)
    jpeg = jpeg_header(raw)
    if jpeg is not None and jpeg.channels in (1, 3):
        return 3
    bands = deep.tiff_channels(raw)
    if bands is not None:
        return bands
    remedy = deep.TIFF_REMEDY if deep.needs_tifffile(raw, OWN) and not deep.HAS_TIFFFILE else None
    with _naming(remedy), _opened(raw) as opened:
        return picture_channels(opened)


def picture_channels(image: Image.Image) -> int:
    """`own_channels` of a picture of Pillow's."""
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return 4
    return deep.own_count(len(image.getbands()), 16 if image.mode in _INTEGER_MODES else 8)


@contextmanager
def _naming(remedy: str | None) -> Iterator[None]:
    """Where Pillow takes a TIFF for no image, or does not keep all of it, what reads it."""
    try:
        yield
    except ValueError as error:
        # What Pillow would cut says by itself that tifffile reads it; not where that is here, and lacks a codec.
        known = (_NO_IMAGE,) if remedy == deep.TIFF_REMEDY else (_NO_IMAGE, deep.WIDE_TIFF_REMEDY)
        if remedy and str(error) in known:
            raise ValueError(remedy) from error
        raise


def decode_labels(raw: bytes) -> npt.NDArray[np.uint8]:
    """uint8 (H, W): the grey levels or palette indices of an annotation, upright as a photo would be.

    Grey levels of 1, 2 or 4 bits are those of the file, which Pillow stretches to 255. ValueError where it cannot be
    read, or holds no labels of 8 bits or fewer.
    """
    with _opened(raw) as opened:
        if opened.mode not in ("1", "L", "P"):
            raise ValueError(f"it holds no labels of 8 bits or fewer but mode {opened.mode}")
        _check_memory(opened)
        bits = grey_bits(raw, opened)  # known by the header
        stored = np.array(opened).astype(np.uint8)  # of mode "1": bool
        if opened.mode == "L" and bits < 8:
            stored //= 255 // (2**bits - 1)
        labels: npt.NDArray[np.uint8] = _upright(torch.from_numpy(stored), _exif(opened)).numpy()
        return labels


def upright_size(raw: bytes) -> tuple[int, int]:
    """Height and width of an encoded image as `decode` gives it, off the header where possible; ValueError as there."""
    if raw.startswith(NPY):
        return deep.array_size(raw)
    jpeg = jpeg_header(raw)
    if jpeg is not None:
        (height, width), exif = (jpeg.height, jpeg.width), jpeg.exif
    else:
        try:
            with _opened(raw) as opened:
                _check_memory(opened)
                if opened.format in ("TIFF", "HEIF") or b"eXIf" in raw:  # known once the pixels are read
                    opened.load()
                (width, height), exif = opened.size, _exif(opened)
        except ValueError:
            found = deep.tiff_size(raw)
            if found is None:
                raise
            return found
    return (width, height) if _orientation(exif) >= TURNED else (height, width)


@functools.cache
def tell_slow_decoder() -> None:
    """Say it, once, where torchvision cannot decode."""
    if not _DECODES:
        _log.warning(
            "torchvision %s has no image decoders; Pillow reads all images, more slowly: see --workers",
            torchvision.__version__,
        )


def pixels_of(image: Image.Image, channels: int = 3) -> Tensor:
    """An image that Pillow holds, as `decode` makes it of a file. ValueError as there."""
    try:
        return _to_tensor(image) if channels == 3 else _deep_tensor(image, channels)
    except Exception as error:  # of a file that is only read now
        raise ValueError(_reason(error)) from error


# Headers


@contextmanager
def _opened(raw: bytes) -> Iterator[Image.Image]:
    """An image whose header Pillow has read; whatever is wrong with it, now or in the block, as ValueError."""
    try:
        if raw.startswith(PNG):
            check_png(raw)
        else:
            jpeg_header(raw)  # for its bounds
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as opened:
            check_size(opened.width * opened.height)
            opened.info.pop("xmp", None)  # Pillow turns a TIFF as it loads, and would do so by XMP, too
            yield opened
    except UnidentifiedImageError:
        raise ValueError(_NO_IMAGE) from None
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        if isinstance(error, Image.DecompressionBombError):
            check_size(int(re.findall(r"\d+", str(error))[0]))  # in our words
        raise ValueError(_reason(error)) from error


# Pixels


def _decode_reduced(raw: bytes, least: int) -> Tensor | None:
    """A JPEG at a fraction of its size, without high frequencies (Pillow's `draft`); None where that cannot be."""
    try:
        with _opened(raw) as opened:
            opened.draft(opened.mode, (least, least))
            return _to_tensor(opened)
    except ValueError:  # decoding the whole will show whether anything is wrong with it, and what
        return None


def _to_tensor(opened: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an image that Pillow has opened: loaded, made RGB, turned upright."""
    _check_memory(opened)
    opened.load()
    return _upright(picture_pixels(opened), _exif(opened))


def _deep_tensor(opened: Image.Image, channels: int) -> Tensor:
    """uint16 (C, H, W) of an image that Pillow has opened: loaded, turned upright."""
    _check_memory(opened)
    _check_bits(opened, channels)  # loaded, most do not say it any more
    opened.load()
    return _upright(picture_pixels(opened, channels), _exif(opened))


def _check_memory(opened: Image.Image) -> None:
    """ValueError where the pixels of an image that is not loaded yet would take too much: as they are, and as RGB."""
    check_memory(opened.width * opened.height * (_NARROW.get(opened.mode, 4) + 3))


def _check_bits(image: Image.Image, channels: int) -> None:
    """ValueError for a picture of several channels of 16 bits, of which Pillow gives the high 8.

    One that was loaded before is what it is by then, of 8 bits; a TIFF says what it was of.
    """
    if image.mode in (*_INTEGER_MODES, "F"):
        return
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) > 8:
            as_grey = "a TIFF of 16 bits in colour, of which Pillow keeps 8; save it in grey, or as PNG"
            raise ValueError(as_grey if channels == 1 else deep.WIDE_TIFF_REMEDY)
    elif any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise ValueError("colour of 16 bits, of which Pillow keeps 8; by its path it is read whole")


def picture_pixels(image: Image.Image, channels: int = 3) -> Tensor:
    """uint8 (3, H, W) RGB of a picture of Pillow's, not turned; of another number of channels uint16 (C, H, W).

    ValueError for pixels of an unknown range, and for a picture that has not so many channels.
    """
    if channels != 3:
        _check_bits(image, channels)
        return deep.planes_of(_deep_pixels(image, channels), channels)
    return torch.from_numpy(_rgb_pixels(image)).permute(2, 0, 1)


def _rgb_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3), by bands of rows where the image is large."""
    width, height = image.size
    rows = max(1, _BAND // width)
    if height <= rows:
        return np.array(_to_rgb(image))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = np.asarray(_to_rgb(band))
    return pixels


def _deep_pixels(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """uint8 or uint16 (H, W) or (H, W, C): one channel in grey, of 16 bits whole; others as the file has them."""
    if image.mode in _INTEGER_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels, of which the range is unknown")
        return values.astype(np.uint16)
    if channels == 1:
        return np.asarray(image if image.mode == "L" else _to_rgb(image).convert("L"))
    return np.asarray(image.convert("RGBA") if image.mode in ("P", "PA") else image)


def _exif(opened: Image.Image) -> bytes:
    """The EXIF block of an image that Pillow has loaded; empty where there is none."""
    found = opened.info.get("exif")
    return found if isinstance(found, bytes) else b""


def _orientation(exif: bytes) -> int:
    """1 to 8, as EXIF defines it; 1, upright, where the block does not hold it as EXIF defines.

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
    return _turned(image, _orientation(exif))


def _turned(image: Tensor, orientation: int) -> Tensor:
    if orientation >= TURNED:
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
    line = reason(error)
    return "truncated" if "truncated" in line.lower() or isinstance(error, EOFError) else line
