"""Images of other than three channels, and arrays in files: uint16 (C, H, W), at full range.

| what                                 | how it is read                                                              |
|--------------------------------------|-----------------------------------------------------------------------------|
| 8 bits a channel                     | times 257, so that 255 is 65535                                             |
| 16 bits a channel                    | as they are; a sensor of 12 bits fills a sixteenth, which mean and std mend |
| one channel asked for, of a colour   | its grey (ITU-R 601), transparency on white                                 |
| PNG of 16 bits in colour             | all of them, see `wide_png`; Pillow gives the high 8                        |
| .npy, uint8 or uint16 (H, W[, C])    | so many channels as are asked for, and no other number                      |
| TIFF of more than one channel        | as .npy, in whatever order its planes lie, by tifffile where it is installed |
| .npy where three are asked for       | uint8 RGB as any other; of 16 bits the high byte, of one channel as grey    |
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semmae.data.headers import check_memory, check_size
from semmae.errors import reason

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OWN = 0  # asked for in place of a number of channels: those in which most is read of an image, see `own_count`
_MOST_CHANNELS = 4096
TURNED = 5  # EXIF's orientations from 5 on swap height and width
_ORIENTATION = 274  # the tag of a TIFF
HAS_TIFFFILE = find_spec("tifffile") is not None
TIFF_REMEDY = 'a TIFF that Pillow does not read: pip install "semmae[tiff]"'
CODEC_REMEDY = "a TIFF packed in a way that needs another package: pip install imagecodecs"
WIDE_TIFF_REMEDY = 'a TIFF of 16 bits a channel, of which Pillow keeps 8: pip install "semmae[tiff]"'
_OTHER_CHANNELS = re.compile(r"(\d+) channels?, not \d+")  # what `_check_channels` says


def decode_array(raw: bytes, channels: int) -> Tensor:
    """The image of a .npy file: uint16 (C, H, W), of three channels uint8. ValueError where it holds none such."""
    shape, dtype = _header(raw)
    array = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    assert array.shape == shape and array.dtype == dtype
    if channels != 3:
        return planes_of(array, channels)
    found = (array >> 8).astype(np.uint8) if dtype == np.uint16 else array
    if found.ndim == 2 or found.shape[2] == 1:
        return torch.from_numpy(np.ascontiguousarray(found.reshape(shape[:2])))[None].expand(3, -1, -1)
    _check_channels(found.shape[2], 3)
    return torch.from_numpy(np.ascontiguousarray(found)).permute(2, 0, 1)


def needs_tifffile(raw: bytes, channels: int) -> bool:
    """Whether these bytes are a TIFF, and so many channels asked for that Pillow may not read them."""
    return channels not in (1, 3) and raw.startswith(TIFF)


class UnknownCompression(ValueError):
    """A TIFF is packed in a way for which tifffile needs a package that is not here."""


def decode_tiff(raw: bytes, channels: int) -> tuple[Tensor, int]:
    """uint16 (C, H, W) of a TIFF as it lies, by tifffile, and its orientation. ValueError where it cannot be read."""
    with _tiff(raw) as series:
        shape, axes, dtype = series.shape, series.axes, series.dtype
        orientation = _orientation(series)
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a TIFF of {dtype}; save it as uint8 or uint16")
    bands = _bands(shape, axes)
    if not bands:
        raise ValueError(f"a TIFF of {shape}, and no image (height, width[, channels])"[:120])
    _check_channels(bands, channels)
    check_size(shape[axes.index("Y")] * shape[axes.index("X")])
    check_memory(2 * math.prod(shape))
    with _tiff(raw) as series:  # again: what is wrong with the pixels is damage, which what is above is not
        array = series.asarray()
    if array.ndim == 3:
        array = np.moveaxis(array, next(i for i, axis in enumerate(axes) if axis not in "YX"), -1)
    return planes_of(array, channels), orientation


def own_count(channels: int, bits: int) -> int:
    """3 of an image with so many channels of which RGB of 8 bits holds all that is ever read, else their number."""
    return 3 if channels == 3 or (channels == 1 and bits <= 8) else channels


def array_channels(raw: bytes) -> int:
    """`own_count` of a .npy file, by its header. ValueError where it holds no image."""
    shape, dtype = _header(raw)
    return own_count(shape[2] if len(shape) == 3 else 1, 8 * dtype.itemsize)


def tiff_channels(raw: bytes) -> int | None:
    """Channels of a TIFF that tifffile alone reads whole; None where there is no such TIFF, or no tifffile."""
    found = _tiff_shape(raw)
    return found[0] if found is not None and found[0] not in (0, 1, 3) else None


def tiff_size(raw: bytes) -> tuple[int, int] | None:
    """Height and width of a TIFF, upright, by tifffile; None as of `tiff_channels`, and where it holds no image.

    ValueError where it has too many pixels.
    """
    found = _tiff_shape(raw)
    if found is None or not found[0]:
        return None
    check_size(found[1] * found[2])
    return found[1:]


def _tiff_shape(raw: bytes) -> tuple[int, int, int] | None:
    """Channels, 0 where it is no image, height and width of a TIFF; None where there is none, or no tifffile."""
    if needs_tifffile(raw, OWN) and HAS_TIFFFILE:
        with suppress(ValueError), _tiff(raw) as series:
            shape, axes, turned = series.shape, series.axes, _orientation(series) >= TURNED
            height, width = (shape[axes.index(axis)] for axis in ("XY" if turned else "YX"))
            return _bands(shape, axes), height, width
    return None


def _orientation(series: Any) -> int:
    """1 to 8, as EXIF defines it; 1, upright, of anything else."""
    found = series.keyframe.tags.valueof(_ORIENTATION)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _bands(shape: tuple[int, ...], axes: str) -> int:
    """Channels of an image with these axes; 0 where it is none, or a stack of several."""
    others = [length for length, axis in zip(shape, axes, strict=True) if axis not in "YX"]
    return (others or [1])[0] if len(others) < 2 and {"Y", "X"} <= set(axes) else 0


@contextmanager
def _tiff(raw: bytes) -> Iterator[Any]:
    """The first image of a TIFF, its pixels not read; whatever is wrong with it as ValueError."""
    from tifffile import TiffFile

    try:
        with TiffFile(io.BytesIO(raw)) as file:
            yield file.series[0]
    except Exception as error:  # of a foreign reader on damaged bytes: any
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise UnknownCompression(CODEC_REMEDY) from error
        raise ValueError(str(error) if "TIFF" in str(error) else f"a damaged TIFF ({reason(error)})"[:200]) from error


def array_size(raw: bytes) -> tuple[int, int]:
    """Height and width of the image of a .npy file, by its header."""
    height, width = _header(raw)[0][:2]
    return height, width


def planes_of(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], channels: int) -> Tensor:
    """uint8 or uint16 (H, W) or (H, W, C) → uint16 (C, H, W), a pixel's numbers side by side in memory.

    ValueError where there is another number of channels.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    _check_channels(pixels.shape[2], channels)
    wide = pixels.astype(np.uint16) * np.uint16(257) if pixels.dtype == np.uint8 else pixels
    return torch.from_numpy(np.ascontiguousarray(wide, dtype=np.uint16)).permute(2, 0, 1)


def other_channels(reason: str) -> int | None:
    """Of why an image cannot be read: the number of channels that it has, where it is nothing but that."""
    found = _OTHER_CHANNELS.fullmatch(reason)
    return None if found is None else int(found[1])


def _check_channels(found: int, asked: int) -> None:
    if found != asked:  # what to do about it depends on who asks
        raise ValueError(f"{found} channel{'' if found == 1 else 's'}, not {asked}")


def _header(raw: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of an array in a file, if it can be an image; ValueError for any other."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # damaged bytes are evaluated as Python's own text
        raise ValueError("a damaged .npy file") from error
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an array of {dtype}; save it as uint8 or uint16")
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] > _MOST_CHANNELS):
        raise ValueError(f"an array of {shape}, and no image (height, width[, channels])"[:120])
    check_size(shape[0] * shape[1])
    check_memory(2 * math.prod(shape))
    if len(raw) < file.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError("truncated")
    return shape, dtype
