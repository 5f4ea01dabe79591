"""Part quality at keypoints: how well the labels under named points agree with their names.

The protocol by which PDiscoFormer (arXiv 2407.04538) measures on CUB, and Choudhury et al. (arXiv 2111.06349)
before it: every visible keypoint of every test image is one point; its true part is its name, its
predicted part the label at its place, background among them; NMI and ARI over all points together. They
take the label from maps upsampled to the image's size; here it is the label of the stored grid's cell
that holds the keypoint, since that is what maskings read.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from semmae.data.layouts import read_ids
from semmae.errors import UserError, near
from semmae.evaluation.quality import NOT_COMPUTED, agreement
from semmae.files import read_numbered, read_text
from semmae.names import shown

_COLUMNS = ("image", "part", "x", "y")
_CUB = "part_locs.txt"
_VISIBLE = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True)
class Keypoints:
    """Visible keypoints of some images, one entry a point."""

    part_names: tuple[str, ...]
    rows: npt.NDArray[np.int64]  # (K,) index of the image
    parts: npt.NDArray[np.int64]  # (K,) index into part_names
    places: npt.NDArray[np.float64]  # (K, 2) x and y: in pixels as read, in 0 to 1 when `relative`

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: Sequence[int]) -> "Keypoints":
        """The keypoints of the images `rows`, ascending, their index now that into `rows`."""
        known = np.asarray(rows, dtype=np.int64)
        kept = np.isin(self.rows, known)
        indices = np.searchsorted(known, self.rows[kept])
        return replace(self, rows=indices, parts=self.parts[kept], places=self.places[kept])

    def relative(self, size_of: Callable[[int], tuple[int, int]], names: Sequence[str]) -> "Keypoints":
        """Places as shares of the image's width and height; `size_of` a row gives height and width, asked once each."""
        images, which = np.unique(self.rows, return_inverse=True)
        heights, widths = np.array([size_of(row) for row in images.tolist()]).reshape(-1, 2)[which].T
        sizes = np.stack([widths, heights], axis=1)
        inside = ((self.places >= 0) & (self.places <= sizes)).all(1)  # so written, NaN is outside too
        if not inside.all():
            at = int(np.argmin(inside))
            x, y = self.places[at].tolist()
            point = f"keypoint {shown(self.part_names[self.parts[at]])} of {shown(names[self.rows[at]])}"
            raise UserError(
                f"{point} at x {x:g}, y {y:g} lies "
                f"outside the image, {widths[at]} x {heights[at]} pixels; give x and y in its pixels, or visible 0"
            )
        return replace(self, places=self.places / sizes)


class _Line(NamedTuple):
    """One line of the file, visible or not."""

    number: int
    image: str
    part: str
    x: str
    y: str
    visible: bool


def read_keypoints(path: str | Path, names: Sequence[str], *, skipped: Collection[str] = ()) -> Keypoints:
    """The visible keypoints of a CSV file, or of CUB's `parts/part_locs.txt`, the other images of which are left out.

    The CSV has a header, and columns image (one of `names`, relative paths whose index is the row), part (any text), x
    and y in pixels of the image from its top left corner, and, where not all are visible, visible (1 or 0). Those of
    images that were `skipped`, as they could not be read, are left out.
    """
    path = Path(path)
    row_of = {name: row for row, name in enumerate(names)}
    left_out = frozenset(skipped)
    first: dict[tuple[str, str], int] = {}
    points: list[tuple[int, str, float, float]] = []
    for line in _read_cub(path, row_of) if path.name == _CUB else _read_lines(path):
        place = f"{path}, line {line.number}"
        earlier = first.setdefault((line.image, line.part), line.number)
        if earlier != line.number:
            named = f"keypoint {shown(line.part)} of {shown(line.image)}"
            raise UserError(f"{place}: {named} was given in line {earlier} already; keep one of the two")
        if line.image in left_out:
            continue
        if line.image not in row_of:
            raise _unknown(place, line.image, names)
        if line.visible:
            points.append((row_of[line.image], line.part, _number(place, "x", line.x), _number(place, "y", line.y)))
    if not points:
        raise UserError(f"{path}: no keypoint is visible; there must be one at least, with visible 1")
    part_names = tuple(sorted({part for _, part, _, _ in points}))
    part_of = {part: index for index, part in enumerate(part_names)}
    return Keypoints(
        part_names,
        rows=np.array([row for row, _, _, _ in points], dtype=np.int64),
        parts=np.array([part_of[part] for _, part, _, _ in points], dtype=np.int64),
        places=np.array([(x, y) for _, _, x, y in points], dtype=np.float64),
    )


def keypoint_quality(pred: npt.ArrayLike, keypoints: Keypoints) -> dict[str, float]:
    """Compare the labels at keypoints, `relative`, with their names: NMI and ARI in percent, over all together.

    Labels are integers in 0 to 254, (N, G, G) over the whole image; or (G, G), one for all images.
    """
    grids: npt.NDArray[np.integer[Any]] = np.asarray(pred)
    side = grids.shape[-1]
    columns, rows = np.minimum((keypoints.places * side).astype(np.int64), side - 1).T
    labels = grids[rows, columns] if grids.ndim == 2 else grids[keypoints.rows, rows, columns]
    missing = int((labels == NOT_COMPUTED).sum())
    if missing:
        raise UserError(f"{missing} of {len(labels)} keypoints lie where no part labels are yet; finish them first")
    nmi, ari = agreement(keypoints.parts, labels)
    return {"keypoint_nmi": nmi, "keypoint_ari": ari}


def _read_lines(path: Path) -> Iterator[_Line]:
    """Every line of the file that is not empty."""
    (_, header), *rows = read_numbered(path, trim=True) or [(0, [])]
    absent = [name for name in _COLUMNS if name not in header]
    if absent:
        raise UserError(
            f"{path}: no column {' and '.join(absent)} (columns: {', '.join(header)[:200] or 'none'}); "
            "the first line must name image, part, x, y and, if need be, visible"
        )
    for number, row in rows:
        values = dict(zip_longest(header, row[: len(header)], fillvalue=""))
        visible = _visible(f"{path}, line {number}", values.get("visible", "1"))
        image, part, x, y = (values[name] for name in _COLUMNS)
        yield _Line(number, image, part, x, y, visible)


def _read_cub(path: Path, images: Collection[str]) -> Iterator[_Line]:
    """The lines of `part_locs.txt` (image, part, x, y, visible) that are of these images."""
    parts = read_ids(path.with_name("parts.txt"))
    files = read_ids(path.parent.parent / "images.txt")
    for number, line in enumerate(read_text(path).splitlines(), 1):
        place, values = f"{path}, line {number}", line.split()
        if len(values) != 5 or values[0] not in files or values[1] not in parts:
            raise UserError(f"{place}: {shown(line)} is no image, part, x, y, visible; restore the file")
        image, part, x, y, visible = values
        name = f"images/{files[image]}"
        if name in images:
            yield _Line(number, name, parts[part], x, y, _visible(place, visible))


def _visible(place: str, text: str) -> bool:
    if text.lower() not in _VISIBLE:
        raise UserError(f"{place}: visible {shown(text)}; write 1 for a visible keypoint, 0 for a hidden one")
    return _VISIBLE[text.lower()]


def _number(place: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{place}: {column} {shown(text)} is not a number; give pixels, or visible 0") from error


def _unknown(place: str, image: str, names: Sequence[str]) -> UserError:
    tail = image.rpartition("/")[2]
    alike = [name for name in names if name.rpartition("/")[2] == tail]
    hint = near(image, alike) if alike else f' (the first is "{next(iter(names), "none")}")'
    return UserError(f"{place}: {shown(image)} is not among the {len(names)} images{hint}; mend or remove its lines")
