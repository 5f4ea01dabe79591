"""Part quality: how well labels that nobody supervised agree with parts that somebody drew.

Notable here:
- every method is measured by the same function on nothing but its label grids, so that learned
  parts, attention heads, k-means and a fixed grid are compared alike;
- all figures are invariant to renaming the labels;
- NMI and ARI come from one table that counts how often a part meets a label: on millions of pixels
  that is a hundred times as fast as handing the pixels to scikit-learn, and gives the same numbers;
- `fixed_grid` is the trap: it knows nothing of the images, so what it scores is owed to position alone;
- in annotations 0 is background, and so is 255, which the field writes on borders that are not to be judged; where
  they hold nothing but 0 and 255, it is the one part;
- annotations are compared at 64 x 64 points over the whole image, so that large images weigh no more than
  small ones and thousands of annotations fit into memory.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mutual_info_score

from semmae.data.crop import at_centres
from semmae.data.endings import counted, ending, sort_files
from semmae.data.segmentation import ANNOTATION_SUFFIXES, read_annotation
from semmae.errors import UserError
from semmae.progress import Progress

Labels = npt.NDArray[np.uint8]
Kind = TypeVar("Kind", bound=np.integer[Any])

SAMPLE = 64  # points a side at which labels and annotations are compared
NOT_COMPUTED = 255  # in a part-map store
UNJUDGED = 255  # in annotations of several parts

_log = logging.getLogger("semmae")


def quality(pred: npt.ArrayLike, annotations: Sequence[Labels] | Labels) -> dict[str, float]:
    """Compare predicted labels with annotations of true parts.

    Args:
        pred: labels, integers in 0 to 254, (N, G, G) over the whole image; or (G, G), one for all images.
        annotations: N annotations (H, W) uint8 of any sizes, 0 = background.

    Returns:
        "nmi", "ari": normalised mutual information and adjusted Rand index over the foreground
            pixels of all images together, in percent. A label must mean the same in every image.
            The protocol of Choudhury et al. (arXiv 2111.06349).
        "foreground_iou": in percent, over all pixels of all images, where a label counts as
            foreground when more than half of its pixels are.
        "parts_used": the exponential of the entropy of the labels' areas: 1 when one label covers
            everything, the number of labels when all are equally large.
        "nmi_all", "ari_all": as the first two, over all pixels, with the background as one more
            part. So PDiscoFormer (arXiv 2407.04538) measures on PartImageNet.
    """
    truth = np.stack([sample(annotation) for annotation in annotations])  # (N, 64, 64)
    grids = np.asarray(pred)
    assert grids.ndim == 2 or len(grids) == len(truth), "one label grid for each annotation"
    labels = np.broadcast_to(sample(grids), truth.shape)
    check_foreground(truth)
    foreground = truth > 0
    missing = int((labels == NOT_COMPUTED).any((1, 2)).sum())
    if missing:
        raise UserError(f"{missing} of {len(labels)} images have no part labels yet; finish them first")
    nmi, ari = agreement(truth[foreground], labels[foreground])
    nmi_all, ari_all = agreement(truth.ravel(), labels.ravel())
    return {
        "nmi": nmi,
        "ari": ari,
        "foreground_iou": 100 * _foreground_iou(labels, foreground),
        "parts_used": _parts_used(labels),
        "nmi_all": nmi_all,
        "ari_all": ari_all,
    }


def check_foreground(annotations: Sequence[Labels] | Labels, place: str = "") -> None:
    """UserError where all that is annotated is background."""
    if not any(own.any() for own in annotations):
        fault = f"none of {len(annotations)} annotations has a foreground"
        raise UserError(f"{place}{fault}; 0 is background, 1 and more are parts")


def agreement(parts: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]]) -> tuple[float, float]:
    """How well two namings of the same points agree, whatever the names: integers (n,) from 0 on each.

    NMI and ARI in percent: scikit-learn's `normalized_mutual_info_score` and `adjusted_rand_score`.
    """
    table = _meetings(parts, labels)
    rows, columns = table.sum(1), table.sum(0)
    # A variable's entropy is the information it has about itself.
    shared, known, guessed = (
        float(mutual_info_score(None, None, contingency=counts)) for counts in (table, np.diag(rows), np.diag(columns))
    )
    nmi = 2 * shared / (known + guessed) if known + guessed > 0 else 1.0
    return 100 * nmi, 100 * _adjusted_rand(table)


def _meetings(parts: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """How often each part meets each label, parts and labels that never occur left out."""
    width = int(labels.max()) + 1
    height = int(parts.max()) + 1
    counts = np.bincount(parts.astype(np.int64) * width + labels, minlength=height * width).reshape(height, width)
    table: npt.NDArray[np.int64] = counts[counts.any(1)][:, counts.any(0)]
    return table


def _adjusted_rand(table: npt.NDArray[np.int64]) -> float:
    """The adjusted Rand index (Hubert & Arabie, 1985, equation 5) of a table of meetings."""
    both, same_part, same_label, every = (
        float(sum(math.comb(count, 2) for count in counts.ravel().tolist()))
        for counts in (table, table.sum(1), table.sum(0), table.sum())
    )
    if same_part == same_label == both:
        return 1.0  # the same partition, be it a single one or one of single points
    chance = same_part * same_label / every
    return (both - chance) / ((same_part + same_label) / 2 - chance)


def sample(labels: npt.NDArray[Kind], size: int = SAMPLE) -> npt.NDArray[Kind]:
    """Labels (..., H, W) at `size` x `size` points spread over the image: (..., size, size)."""
    return at_centres(labels, size, size)


def fixed_grid(labels: int, grid: int, *, rows: int | None = None) -> Labels:
    """The baseline that sees no image: (grid, grid), exactly `labels` cells in rows of equal height.

    They are numbered in row-major order, and spread evenly over the rows. By default these are √labels, rounded,
    which makes cells nearly square; `rows=labels` gives horizontal bands: the better trap where the objects stand
    upright.
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


def read_annotations(
    names: Sequence[str], annotations_dir: str | Path, *, size: int | None = SAMPLE
) -> tuple[list[int], list[Labels]]:
    """Rows, ascending, of images that have an annotation, and these: `find_annotations`, then `load_annotations`."""
    found = find_annotations(names, annotations_dir)
    return list(found), load_annotations(found.values(), size=size)


def find_annotations(names: Sequence[str], annotations_dir: str | Path) -> dict[int, Path]:
    """Which annotation belongs to which image: index into `names`, ascending → file; none is read yet.

    `names` are relative paths such as `val/0006.jpg`; annotations are 8-bit images of labels, 0 = background, at any
    depth. One belongs to the image whose path without suffix agrees with its own in most trailing components, and at
    least in the last one.
    """
    folder = Path(annotations_dir)
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give the folder that holds the annotations')
    paths = _annotation_paths(folder)
    matches = _match(names, paths)
    if not matches:
        first_name, first_path = next(iter(names), "none"), next(iter(paths), "none")
        raise UserError(
            f'no annotation in "{folder}" belongs to any of the {len(names)} images; it bears the name of its image, '
            f'with .png (first image: "{first_name}"; first of {len(paths)} annotations: "{first_path}")'
        )
    return {row: folder / matches[row] for row in sorted(matches)}


def load_annotations(paths: Collection[Path], *, size: int | None = SAMPLE) -> list[Labels]:
    """Annotations (H, W) uint8: palette indices and grey levels as stored, but for 255, which is 0 beside other parts.

    `paths` are all that are measured together: what 255 means is seen on all of them. Annotations are sampled at `size`
    points a side, enough for `quality`; None keeps every pixel.
    """
    annotations: list[Labels] = []
    with Progress(len(paths), "annotations", "reading annotations") as progress:
        for path in paths:
            whole = read_annotation(path)
            annotations.append(whole if size is None else sample(whole, size))
            progress.update()
    return _without_unjudged(annotations)


def _without_unjudged(annotations: list[Labels]) -> list[Labels]:
    """255 as background, where any annotation holds another part."""
    count = sum(bool((own == UNJUDGED).any()) for own in annotations)
    if not count or not any(((own > 0) & (own < UNJUDGED)).any() for own in annotations):
        return annotations
    words = "%d of %d annotations hold %d beside other parts: not judged, as background"
    _log.info(words, count, len(annotations), UNJUDGED)
    return [np.where(own == UNJUDGED, np.uint8(0), own) for own in annotations]


def _annotation_paths(folder: Path) -> list[str]:
    """Relative paths of the annotations below a folder, sorted; hidden files and folders left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    names = [path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts)]
    found = sort_files(names)
    annotations = [name for name in found.images if ending(name) in ANNOTATION_SUFFIXES]
    others = Counter(kind for name in found.images if (kind := ending(name)) not in ANNOTATION_SUFFIXES)
    if others:
        _log.warning("%s: %s passed over, which blur labels or are not decoded; save as PNG", folder, counted(others))
    return sorted(annotations)


def _match(names: Sequence[str], paths: Sequence[str]) -> dict[int, str]:
    """Row of an image → path of its annotation.

    The closest pairs come first, and an annotation that has found its image is no candidate for a more
    distant one: `dog/0001.jpg`, which has none, does not take that of `cat/0001.jpg`.
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
            raise _ambiguous(f'both annotations "{candidates[0]}" and "{candidates[1]}" fit', f'"{names[row]}"')
        path = candidates[0]
        if path in owners:
            raise _ambiguous(f'the annotation "{path}" fits', f'"{names[owners[path][1]]}" and "{names[row]}"')
        owners[path] = (closeness, row)
    return {row: path for path, (_, row) in owners.items()}


def _candidates(
    tail: tuple[str, ...], by_tail: Mapping[tuple[str, ...], list[str]]
) -> tuple[tuple[int, bool], list[str]]:
    """The annotations, none or more, that share most trailing components with an image, and their closeness.

    That is how many components, and whether they are the image's whole path. One whose whole path is shared stands
    before longer ones: alone.
    """
    for length in range(len(tail), 0, -1):
        paths = by_tail.get(tail[:length])
        if paths:
            whole = [path for path in paths if len(_tail(path)) == length]
            return (length, length == len(tail)), whole or paths
    return (0, False), []


def _tail(path: str) -> tuple[str, ...]:
    """The components of a path from the last to the first, the last without its suffix.

    A row of a Parquet file, `photos.parquet#12`, has no suffix: its annotation is `photos.parquet#12.png`.
    """
    pure = PurePosixPath(path)
    last = pure.name if "#" in pure.suffix else pure.stem
    return (last, *reversed(pure.parts[:-1]))


def _ambiguous(what: str, images: str) -> UserError:
    return UserError(f"{what} {images}; lay the annotations out in the same folders as the images")


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
