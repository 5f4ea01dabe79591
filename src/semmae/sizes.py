"""Sizes of images in pixels, and of grids in patches or cells: a square's side, or (height, width).

A square is one whole number wherever a size is given, kept or shown, and only what is not square is a pair: options,
config.yaml and config.json of squares hold what they always held. Whoever computes takes `sides`.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

Grid = tuple[int, int]  # rows and columns
Size = int | Grid


def sides(size: Size) -> Grid:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """Height and width as a size: of a square its side."""
    return height if height == width else (height, width)


def around(size: Size, share: float) -> Size:
    """The size of which this one is a share of each side, rounded down, as timm and MAE do."""
    height, width = sides(size)
    return as_size(int(height / share), int(width / share))


def patch_grid(size: Size, patch_size: int) -> Grid:
    """Rows and columns of the whole patches of an image."""
    height, width = sides(size)
    return height // patch_size, width // patch_size


def num_patches(size: Size, patch_size: int) -> int:
    """L of an image of that size."""
    rows, columns = patch_grid(size, patch_size)
    return rows * columns


def whole_patches(size: Size, patch_size: int, most: int) -> Size:
    """A size in whole patches, its longer side `most` pixels at most; one patch at least."""
    height, width = sides(size)
    longest = max(height, width)
    rows, columns = (max(side * min(most, longest) // longest // patch_size, 1) for side in (height, width))
    return as_size(rows * patch_size, columns * patch_size)


def square(length: int) -> Grid:
    """The grid of so many patches, if it is a square; ValueError where it cannot be one."""
    side = isqrt(max(length, 0))
    if side * side != length:
        raise ValueError(f"{length} patches are no square grid; give its rows and columns")
    return side, side


def grid_in(length: int, height: int, width: int) -> Grid:
    """The grid of so many square patches over an image of height × width; ValueError where there is none."""
    rows = round((length * height / width) ** 0.5)
    if rows < 1 or length % rows or abs(rows * width - length // rows * height) > max(height, width):
        raise ValueError(f"{length} patches are no grid of squares over {height} × {width} pixels")
    return rows, length // rows


def read_size(value: Any) -> Size:
    """A size as JSON or YAML holds it, lists for pairs; ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(isinstance(side, int) and not isinstance(side, bool) for side in value):
        raise ValueError("neither a whole number nor two, height and width")
    return as_size(*value)


def size_text(size: Size | Sequence[int]) -> str:
    """As an option is given: 224, or 224 160."""
    return str(size) if isinstance(size, int) else " ".join(map(str, size))


def size_shown(size: Size) -> str:
    """For people: 224 × 160, height first."""
    return " × ".join(map(str, sides(size)))
