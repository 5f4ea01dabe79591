"""Part quality: how well labels that nobody supervised agree with parts that somebody drew.

Notable here:
- every method is measured by the same function on nothing but its label grids, so that learned
  parts, attention heads, k-means and a fixed grid are compared alike;
- all figures are invariant to renaming the labels;
- `fixed_grid` is the trap: it knows nothing of the images, so what it scores is owed to position alone;
- masks are compared at 64 x 64 points over the whole image, so that large images weigh no more than
  small ones and thousands of masks fit into memory.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from semmae.errors import UserError
from semmae.progress import Progress

Labels = npt.NDArray[np.uint8]
Kind = TypeVar("Kind", bound=np.integer[Any])

SAMPLE = 64  # points a side at which labels and masks are compared
NOT_COMPUTED = 255  # in a part-map store
MASK_SUFFIXES = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})  # lossless: JPEG would blur labels


def quality(pred: npt.ArrayLike, masks: Sequence[Labels] | Labels) -> dict[str, float]:
    """Compare predicted labels with masks of true parts.

    Args:
        pred: labels, integers in 0 to 254, (N, G, G) over the whole image; or (G, G), one for all images.
        masks: N masks (H, W) uint8 of any sizes, 0 = background.

    Returns:
        "nmi", "ari": normalised mutual information and adjusted Rand index over the foreground
            pixels of all images together, in percent. A label must mean the same in every image.
        "foreground_iou": in percent, over all pixels of all images, where a label counts as
            foreground when more than half of its pixels are.
        "parts_used": the exponential of the entropy of the labels' areas: 1 when one label covers
            everything, the number of labels when all are equally large.

    Raises:
        UserError: labels are not all computed, or no mask has a foreground.
    """
    truth = np.stack([sample(mask) for mask in masks])  # (N, 64, 64)
    grids = np.asarray(pred)
    assert grids.ndim == 2 or len(grids) == len(truth), "one label grid for each mask"
    labels = np.broadcast_to(sample(grids), truth.shape)
    foreground = truth > 0
    if not foreground.any():
        raise UserError(f"none of the {len(truth)} masks has a foreground; 0 is background, 1 and more are parts")
    missing = int((labels == NOT_COMPUTED).any((1, 2)).sum())
    if missing:
        raise UserError(f"{missing} of {len(labels)} images have no part labels yet; finish them first")
    parts, names = truth[foreground], labels[foreground]
    return {
        "nmi": 100 * float(normalized_mutual_info_score(parts, names)),
        "ari": 100 * float(adjusted_rand_score(parts, names)),
        "foreground_iou": 100 * _foreground_iou(labels, foreground),
        "parts_used": _parts_used(labels),
    }


def compare(methods: Mapping[str, npt.ArrayLike], masks: Sequence[Labels] | Labels) -> dict[str, dict[str, float]]:
    """`quality` of several methods, name → label grids, on the same masks: parts beside their baselines."""
    sampled = np.stack([sample(mask) for mask in masks])
    return {name: quality(grids, sampled) for name, grids in methods.items()}


def sample(labels: npt.NDArray[Kind], size: int = SAMPLE) -> npt.NDArray[Kind]:
    """Labels (..., H, W) at `size` x `size` points spread over the image: (..., size, size)."""
    rows, columns = (
        (np.arange(size) * 2 + 1) * length // (2 * size)  # the pixel that holds each cell's centre
        for length in labels.shape[-2:]
    )
    sampled: npt.NDArray[Kind] = labels[..., rows[:, None], columns]
    return sampled


def fixed_grid(labels: int, grid: int, *, rows: int | None = None) -> Labels:
    """The baseline that sees no image: exactly `labels` cells in rows of equal height.

    Args:
        labels: number of cells, 1 to 255.
        grid: points a side, at least √labels.
        rows: the cells are spread evenly over that many rows; by default √labels, rounded, which
            makes them nearly square. `rows=labels` gives horizontal bands: the better trap where
            the objects stand upright.

    Returns:
        (grid, grid), labels 0 to `labels` - 1 in row-major order.
    """
    if rows is None:
        rows = round(math.sqrt(labels))
    assert 1 <= labels <= NOT_COMPUTED, "labels are uint8, and 255 means not computed"
    assert rows <= grid and -(-labels // rows) <= grid, "more cells in a line than the grid has points"
    points = np.arange(grid)
    row = points * rows // grid
    first = row * labels // rows  # cells before this row
    count = (row + 1) * labels // rows - first
    cells: Labels = (first[:, None] + points * count[:, None] // grid).astype(np.uint8)
    return cells


def read_masks(
    names: Sequence[str], masks_dir: str | Path, *, size: int | None = SAMPLE
) -> tuple[list[int], list[Labels]]:
    """The masks that belong to images.

    Args:
        names: of the images, relative paths such as `val/0006.jpg`.
        masks_dir: holds 8-bit images of labels, 0 = background, in folders of any depth. A mask
            belongs to the image whose path without suffix agrees with its own in most trailing
            components, and at least in the last one.
        size: points a side at which masks are sampled, enough for `quality`; None keeps every pixel.

    Returns:
        Rows: indices into `names` of the images that have a mask, ascending. Masks: (H, W) uint8 of
        these, palette indices and grey levels as stored.

    Raises:
        UserError: no mask belongs to any image, it cannot be told which one does, or a mask is not
            an image of 8-bit labels.
    """
    folder = Path(masks_dir)
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give the folder that holds the masks')
    paths = _mask_paths(folder)
    matches = _match(names, paths)
    if not matches:
        first_name, first_path = next(iter(names), "none"), next(iter(paths), "none")
        raise UserError(
            f'no mask in "{folder}" belongs to any of the {len(names)} images; a mask bears the name of its '
            f'image, with .png (first image: "{first_name}"; first of {len(paths)} masks: "{first_path}")'
        )
    rows = sorted(matches)
    masks: list[Labels] = []
    with Progress(len(rows), "masks", "reading masks") as progress:
        for row in rows:
            mask = _read_mask(folder / matches[row])
            masks.append(mask if size is None else sample(mask, size))
            progress.update()
    return rows, masks


def _mask_paths(folder: Path) -> list[str]:
    """Relative paths of the masks below a folder, sorted; hidden files and folders left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in MASK_SUFFIXES)
    relative = (path.relative_to(folder) for path in found)
    return sorted(path.as_posix() for path in relative if not any(part[0] == "." for part in path.parts))


def _match(names: Sequence[str], paths: Sequence[str]) -> dict[int, str]:
    """Row of an image → path of its mask.

    The closest pairs come first, and a mask that has found its image is no candidate for a more
    distant one: `dog/0001.jpg`, which has no mask, does not take the mask of `cat/0001.jpg`.
    """
    by_tail: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        tail = _tail(path)
        for length in range(1, len(tail) + 1):
            by_tail.setdefault(tail[:length], []).append(path)
    claims = [(*_candidates(_tail(name), by_tail), row) for row, name in enumerate(names)]
    owners: dict[str, tuple[tuple[int, bool], int]] = {}
    for closeness, candidates, row in sorted(claims, key=lambda claim: (claim[0], -claim[2]), reverse=True):
        if all(path in owners and owners[path][0] > closeness for path in candidates):
            continue
        if len(candidates) > 1:
            raise _ambiguous(f'both masks "{candidates[0]}" and "{candidates[1]}" fit', f'"{names[row]}"')
        path = candidates[0]
        if path in owners:
            raise _ambiguous(f'the mask "{path}" fits', f'"{names[owners[path][1]]}" and "{names[row]}"')
        owners[path] = (closeness, row)
    return {row: path for path, (_, row) in owners.items()}


def _candidates(
    tail: tuple[str, ...], by_tail: Mapping[tuple[str, ...], list[str]]
) -> tuple[tuple[int, bool], list[str]]:
    """The masks that share most trailing components with an image.

    Returns:
        Closeness: how many components, and whether that is the image's whole path. The masks, none
        or more; a mask whose whole path is shared stands before longer ones: alone.
    """
    for length in range(len(tail), 0, -1):
        paths = by_tail.get(tail[:length])
        if paths:
            whole = [path for path in paths if len(_tail(path)) == length]
            return (length, length == len(tail)), whole or paths
    return (0, False), []


def _tail(path: str) -> tuple[str, ...]:
    """The components of a path from the last to the first, the last without its suffix.

    A row of a Parquet file, `photos.parquet#12`, has no suffix: its mask is `photos.parquet#12.png`.
    """
    pure = PurePosixPath(path)
    last = pure.name if "#" in pure.suffix else pure.stem
    return (last, *reversed(pure.parts[:-1]))


def _ambiguous(what: str, images: str) -> UserError:
    return UserError(f"{what} {images}; lay the masks out in the same folders as the images")


def _read_mask(path: Path) -> Labels:
    """(H, W) uint8: grey levels or palette indices as stored."""
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'the mask "{path}" cannot be read: {error}; write it again or remove it') from error
    if mode not in ("L", "P"):
        raise UserError(
            f'the mask "{path}" does not hold 8-bit labels but mode {mode}; save it as an 8-bit grey '
            "or palette PNG, 0 = background, 1, 2, … = parts"
        )
    return mask.astype(np.uint8)


def _foreground_iou(labels: npt.NDArray[np.integer[Any]], foreground: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of the foreground and the labels that lie mostly on it; 0 to 1."""
    area = np.bincount(labels.ravel(), minlength=256)
    covered = np.bincount(labels[foreground], minlength=256)
    chosen = 2 * covered > area
    intersection = covered[chosen].sum()
    return float(intersection / (foreground.sum() + area[chosen].sum() - intersection))


def _parts_used(labels: npt.NDArray[np.integer[Any]]) -> float:
    """The exponential of the entropy of the labels' areas."""
    area = np.bincount(labels.ravel()) / labels.size
    area = area[area > 0]
    return float(np.exp(-(area * np.log(area)).sum()))
