"""A crop as a value, applied alike to an image and to its part grid.

A crop is given in fractions of the image, so that it fits any resolution: the photo, a grid of part labels.
Part labels are for the whole image stretched to a square: fractions of height and width are independent.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from semmae.levels import as_pixels, levels
from semmae.sizes import Grid as Cells, Size, sides, square

Grid = TypeVar("Grid", Tensor, npt.NDArray[Any])

NARROWEST = 3 / 4  # of a random crop: its height to its width, or the other way round
_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A box in fractions of the image's height and width, in [0, 1]; `flip` mirrors what is cut out."""

    top: float
    left: float
    height: float
    width: float
    flip: bool

    @property
    def numbers(self) -> tuple[float, ...]:
        """Top, left, height, width, and 1 where flipped: a row of a tensor of crops."""
        return (self.top, self.left, self.height, self.width, float(self.flip))


WHOLE = Crop(0.0, 0.0, 1.0, 1.0, False)


def random_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    shape: Size = 1,
) -> Crop:
    """A crop of an image of height × width pixels, distributed as torchvision's RandomResizedCrop and a flip.

    The area is uniform in `scale`, log(width / height) uniform in that of 3/4 to 4/3, of crops of another `shape`
    than a square in that of so much less and more than its own: nothing is stretched further. When ten draws do not fit
    into the image, the largest central crop with a permitted ratio is taken. The number of draws is fixed.
    """
    draws = rng.random(2 * _TRIES + 3).tolist()
    flip = draws[-1] < 0.5
    own = _width_to_height(shape)
    low, high = math.log(NARROWEST), math.log(1 / NARROWEST)
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1]) * own
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(draws[-3] * (height - h + 1)), int(draws[-2] * (width - w + 1))
            return Crop(top / height, left / width, h / height, w / width, flip)
    h, w, narrowest, widest = height, width, NARROWEST * own, 1 / NARROWEST * own
    if width < narrowest * height:
        h = round(width / narrowest)
    elif width > widest * height:
        w = round(height * widest)
    return Crop((height - h) // 2 / height, (width - w) // 2 / width, h / height, w / width, flip)


def _width_to_height(size: Size) -> float:
    height, width = sides(size)
    return width / height


def least_side(size: Size, share: float) -> int:
    """The short side at which no random crop of `size` pixels, at least `share` of the image's area, is enlarged."""
    height, width = sides(size)
    return math.ceil(math.sqrt(height * width) / math.sqrt(share * NARROWEST))


def centre_crop(height: int, width: int, share: float = 1.0, shape: Size = 1) -> Crop:
    """The largest box of that shape in the middle of an image of height × width pixels, each side `share` of it."""
    down, across = (side / min(sides(shape)) for side in sides(shape))
    unit = share * min(height / down, width / across)
    down, across = down * unit, across * unit
    return Crop((1 - down / height) / 2, (1 - across / width) / 2, down / height, across / width, False)


def crop_image(image: Tensor, crop: Crop, size: Size) -> Tensor:
    """uint8 (3, H, W) → uint8 (3, *size): cut out, resized (bicubic, antialiased), flipped."""
    top, left, height, width = pixel_box(crop, image.shape[-2], image.shape[-1])
    out = resized(image[:, top : top + height, left : left + width], sides(size), "bicubic")
    return out.flip(-1) if crop.flip else out


def resized(image: Tensor, size: Cells, mode: str) -> Tensor:
    """uint8 or uint16 (C, H, W) → the same (C, *size), antialiased."""
    # As torchvision's resized_crop, pixel for pixel, less its dispatch; pixels that hang together are resized faster.
    if image.dtype == torch.uint8:
        found: Tensor = interpolate(
            image[None].contiguous(memory_format=torch.channels_last), size, mode=mode, antialias=True
        )[0]
        return found
    return as_pixels(interpolate(levels(image)[None], size, mode=mode, antialias=True)[0], image.dtype)


def pixel_box(crop: Crop, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of an image of height × width; inside it, at least one pixel."""
    top, left = min(round(crop.top * height), height - 1), min(round(crop.left * width), width - 1)
    h = min(max(round(crop.height * height), 1), height - top)
    w = min(max(round(crop.width * width), 1), width - left)
    return top, left, h, w


def crop_parts(grid: np.ndarray | Tensor, crop: Crop, side: Size) -> Tensor:
    """uint8 (G, G) → int64 (L,), row-major: the label under the centre of each patch of the crop, a grid of `side`."""
    labels = np.asarray(grid)
    down, across = _centres(crop, side)
    rows, columns = _cells(down, labels.shape[0]), _cells(across, labels.shape[1])
    return torch.from_numpy(labels[rows[:, None], columns].ravel().astype(np.int64))


def at_centres(labels: Grid, height: int, width: int) -> Grid:
    """Labels (…, H, W) → (…, height, width): the label under each new cell's centre, for none lies between two."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), labels.shape[-2:], strict=True)
    )
    found: Grid = labels[..., rows, :][..., columns]
    return found


def _cells(positions: np.ndarray, cells: int) -> np.ndarray:
    """The cell of a row of `cells` equal ones in which each position in [0, 1] lies."""
    found: np.ndarray = np.minimum((positions * cells).astype(np.int64), cells - 1)  # cut to whole numbers
    return found


def _centres(crop: Crop, side: Size) -> tuple[np.ndarray, np.ndarray]:
    """Where in the image, in fractions, the centres of a crop's patches lie, a grid of `side`: of rows, of columns."""
    down, across = ((np.arange(patches) + 0.5) / patches for patches in sides(side))
    return crop.top + crop.height * down, crop.left + crop.width * (1 - across if crop.flip else across)


def crop_scores(grid: np.ndarray, crop: Crop, side: Size) -> Tensor:
    """Numbers (G, G) → float32 (L,), row-major: interpolated at the centre of each patch of the crop.

    A cell's number holds at its centre; between centres bilinear, outside the outermost as there.
    """
    down, across = _crop_hats(crop, side, *grid.shape)
    return torch.from_numpy((down @ grid.astype(np.float32) @ across.T).ravel())


def crop_tokens(tokens: np.ndarray, crop: Crop, side: Size, cells: Cells | None = None) -> Tensor:
    """Tokens (l, D) of a whole image, a grid of `cells` (None: a square) → float16 (L, D) of a crop, both row-major.

    Interpolated as `crop_scores` does it: a token holds at its patch's centre.
    """
    (rows, columns), width = cells or square(len(tokens)), tokens.shape[1]
    down, across = _crop_hats(crop, side, rows, columns)
    lines = down @ tokens.astype(np.float32).reshape(rows, -1)
    found = across @ lines.reshape(len(down), columns, width)
    return torch.from_numpy(found.reshape(-1, width).astype(np.float16))


def _crop_hats(crop: Crop, side: Size, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each row and each column of a grid counts at the centres of a crop's patches: (L's rows, rows), …."""
    down, across = _centres(crop, side)
    return _hats(down, rows), _hats(across, columns)


def _hats(positions: np.ndarray, cells: int) -> np.ndarray:
    """How much each of a row of equal cells counts at positions in [0, 1]: float32 (P, cells), rows of sum 1."""
    places = np.minimum(np.maximum(positions * cells - 0.5, 0), cells - 1).astype(np.float32)
    weights = np.abs(places[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(np.subtract(1, weights, out=weights), 0, out=weights)
