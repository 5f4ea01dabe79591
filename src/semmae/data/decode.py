"""Image bytes → uint8 RGB (3, H, W).

- The usual files (8-bit JPEG, PNG and WebP without transparency) torchvision decodes into a tensor.
- Everything else, and whatever torchvision refuses, goes through Pillow: BMP, TIFF, GIF (first frame), CMYK,
  16-bit (the high byte is kept), transparency (composited on white).
- The orientation that the EXIF block tells is applied on every way.
- A photo much larger than what is asked for is decoded at 1/2, 1/4 or 1/8 of its size, as the JPEG format allows.
- torchvision means to give its decoders up (deprecated since 0.29); where it has none, Pillow reads everything.
"""

import functools
import io
import logging
import warnings
from typing import Literal

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:
    _DECODES = False
else:
    _DECODES = hasattr(torch.ops.image, "decode_image")  # some builds come without the libraries of the formats

# The bytes are only read. torch warns of a tensor over read-only memory; copying costs 2 % of decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable", module=r"semmae\.data\.decode")
# That its decoders will go is provided for, and nothing that the user could mend.
warnings.filterwarnings("ignore", message="The image decoding", category=DeprecationWarning, module=r"torchvision\.io")

_log = logging.getLogger("semmae")

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_REDUCED_FROM = 256 * 1024  # bytes; a smaller file is decoded whole before a look at its header pays
_INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


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
    if least is not None and len(raw) >= _REDUCED_FROM and raw.startswith(_JPEG):
        reduced = _decode_reduced(raw, least)
        if reduced is not None:
            return reduced
    mode = _fast_mode(raw) if _DECODES else None
    if mode is not None:
        data = torch.frombuffer(raw, dtype=torch.uint8)
        try:
            image: Tensor = decode_image(data, ImageReadMode[mode], apply_exif_orientation=True)
        except RuntimeError:
            # Pillow reads some files that torchvision refuses, and names the fault of the others.
            return _decode_with_pillow(raw)
        if image.shape[0] == 3:
            return image
        if image.shape[0] == 1:
            return image.expand(3, -1, -1)
    return _decode_with_pillow(raw)


@functools.cache
def tell_slow_decoder() -> None:
    """Say it, once, where torchvision cannot decode."""
    if not _DECODES:
        _log.warning(
            "torchvision %s has no image decoders; Pillow reads all images, more slowly: see --workers",
            torchvision.__version__,
        )


def _fast_mode(raw: bytes) -> Literal["UNCHANGED", "RGB"] | None:
    """How torchvision should read these bytes, None where only Pillow reads them rightly."""
    if raw.startswith(_JPEG):
        return "UNCHANGED"  # 1, 3 or 4 (CMYK) channels tell what the file holds
    if raw.startswith(_PNG):
        # IHDR is the first chunk: byte 24 is the bit depth, 25 the colour type (0 gray, 2 RGB, 3 palette).
        plain = raw[24:25] == b"\x08" and raw[25:26] in (b"\x00", b"\x02", b"\x03")
        extra = b"tRNS" in raw or b"eXIf" in raw
        return "RGB" if plain and not extra else None
    if raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8 ":  # the extended forms may hold alpha, EXIF, animation
        return "RGB"
    return None


def _decode_reduced(raw: bytes, least: int) -> Tensor | None:
    """A JPEG at a fraction of its size; None where it is too small for that, or cannot be read so.

    The decoder leaves out the high frequencies of each block instead of computing all pixels (Pillow's `draft`).
    """
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            if min(opened.size) < 2 * least:
                return None
            opened.draft(opened.mode, (least, least))
            return _to_tensor(opened)
    except Exception:  # whether anything is wrong with it, and what, decoding the whole will tell
        return None


def _decode_with_pillow(raw: bytes) -> Tensor:
    """As `decode`, by Pillow."""
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            return _to_tensor(opened)
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        raise ValueError(_reason(error)) from error


def _to_tensor(opened: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an image that Pillow has opened: loaded, turned upright, made RGB."""
    opened.load()
    return torch.from_numpy(np.array(_to_rgb(ImageOps.exif_transpose(opened)))).permute(2, 0, 1)


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
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    if "truncated" in line.lower() or isinstance(error, EOFError):
        return "truncated"
    return line[:120]
