"""What parts.html shows of a labelled data set, chosen once and kept in one file, pictures/parts.npz.

- Images spread over the data set, with their soft maps and labels.
- For every part the crops in which it is most typical: stored labels, which cost nothing to read, propose
  images where the part's region has its usual size; soft maps, made for these only, say how strong it is there.
- The share of every part in up to a thousand images.
"""

import dataclasses
import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from semmae.data.crop import WHOLE, Crop, crop_image
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.files import open_regular, write_bytes
from semmae.levels import in_rgb
from semmae.names import shown
from semmae.progress import Progress
from semmae.sizes import Size

SoftMaps = Callable[[Sequence[int], Tensor], Tensor]  # rows, images uint8 (B, 3, s, s) → (B, K, h, w)

FILE = Path("pictures", "parts.npz")

_SHOWN, _SHOWN_SIDE = 16, 224  # images with their maps, pixels a side
_CROP_SIDE, _MARGIN = 128, 1.3
_SCANNED = 1000  # images whose labels are looked at
_CROPS = 420  # of all parts together: with very many parts each has fewer, but at least two
_MOST_CROPS = 8  # of one part
_PROPOSED = 3  # candidates for every crop that is shown
_UNUSUAL = 3.0  # times larger or smaller than usual: no candidate
_BATCH = 16
_MOST_BYTES = 2**30  # of the file, unpacked


@dataclass(frozen=True)
class PartSamples:
    """K labels; n images; m images scanned; c crops, those of one label together, the most typical first."""

    label_names: NDArray[np.str_]  # (K,)
    names: NDArray[np.str_]  # (n,)
    aspects: NDArray[np.float32]  # (n,) width / height before the image was stretched to a square
    images: NDArray[np.uint8]  # (n, 3, 224, 224)
    labels: NDArray[np.uint8]  # (n, G, G)
    maps: NDArray[np.float16]  # (n, K, h, w)
    shares: NDArray[np.float32]  # (m, K) of the image's area
    crops: NDArray[np.uint8]  # (c, 3, 128, 128)
    regions: NDArray[np.bool_]  # (c, 128, 128) where the label wins
    crop_labels: NDArray[np.int64]  # (c,)
    crop_names: NDArray[np.str_]  # (c,)
    strengths: NDArray[np.float32]  # (c,) mean of the soft map over the region


_FIELDS = [field.name for field in dataclasses.fields(PartSamples)]


@dataclass(frozen=True)
class _Candidate:
    """A region that a part's row of crops may show."""

    label: int
    row: int
    region: NDArray[np.bool_]  # (G, G), connected


@dataclass(frozen=True)
class _Cut:
    """A candidate cut out of its image."""

    candidate: _Candidate
    crop: Crop
    pixels: Tensor  # uint8 (3, 128, 128)


def collect(images: ImageSet, store: PartStore, soft_maps: SoftMaps, size: Size, path: Path) -> None:
    """Choose what parts.html shows of a finished store and write it to `path`, whole or not at all.

    `soft_maps` takes batches of rows and of whole images, stretched to `size`.
    """
    scanned, shown = spread(len(images), _SCANNED), spread(len(images), _SHOWN)
    labels = np.asarray(store.labels[scanned])
    crops_each = min(max(_CROPS // store.num_labels, 2), _MOST_CROPS)
    candidates = _propose(labels, scanned, store.num_labels, _PROPOSED * crops_each)
    maps, cuts, aspects = _look(images, candidates, shown, soft_maps, size)
    chosen = _most_typical(cuts, maps, crops_each)
    samples = PartSamples(
        label_names=np.array(store.label_names, np.str_),
        names=np.array([images.names[row] for row in shown], np.str_),
        aspects=np.array([aspects[row] for row in shown], np.float32),
        images=np.stack([in_rgb(crop_image(images.read(row), WHOLE, _SHOWN_SIDE)).numpy() for row in shown]),
        labels=np.asarray(store.labels[shown]),
        maps=np.stack([maps[row].numpy() for row in shown]),
        shares=np.stack([(labels == label).mean((1, 2)) for label in range(store.num_labels)], 1).astype(np.float32),
        crops=np.stack([cut.pixels.numpy() for cut, _ in chosen]),
        regions=np.stack([_won(maps[cut.candidate.row], cut) for cut, _ in chosen]),
        crop_labels=np.array([cut.candidate.label for cut, _ in chosen], np.int64),
        crop_names=np.array([images.names[cut.candidate.row] for cut, _ in chosen], np.str_),
        strengths=np.array([strength for _, strength in chosen], np.float32),
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: getattr(samples, name) for name in _FIELDS})
    write_bytes(path, buffer.getvalue())


def read_samples(path: Path) -> PartSamples:
    """What `collect` wrote. UserError when it is missing, damaged, or its arrays do not fit each other."""
    if not path.exists():
        raise UserError(f"{path}: no such file; `semmae parts` writes it, with --resume into a run that lacks it")
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > _MOST_BYTES:
                raise ValueError(f"it would be {size} bytes")
            content = np.load(file, allow_pickle=False)
            samples = PartSamples(**{name: content[name] for name in _FIELDS})
        _check_fit(samples)
        return samples
    except Exception as error:  # those of unpacking and of Python's own parser, which reads the headers, are many
        raise UserError(f"{path}: damaged ({shown(str(error))}); remove it and resume its run") from error


def _check_fit(samples: PartSamples) -> None:
    """ValueError where an array is not of the type and the shape that the others ask for, or holds what none may."""
    labels, images, crops = len(samples.label_names), len(samples.names), len(samples.crop_labels)
    side, cells, crop = (array.shape[-1:] * 2 for array in (samples.images, samples.labels, samples.crops))
    grid = samples.maps.shape[-2:]
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "label_names": ("U", (labels,)),
        "names": ("U", (images,)),
        "aspects": ("f", (images,)),
        "images": ("u", (images, 3, *side)),
        "labels": ("u", (images, *cells)),
        "maps": ("f", (images, labels, *grid)),
        "shares": ("f", (len(samples.shares), labels)),
        "crops": ("u", (crops, 3, *crop)),
        "regions": ("b", (crops, *crop)),
        "crop_labels": ("i", (crops,)),
        "crop_names": ("U", (crops,)),
        "strengths": ("f", (crops,)),
    }
    for name, (kind, shape) in wanted.items():
        array = getattr(samples, name)
        if array.dtype.kind != kind or array.shape != shape or (kind == "u" and array.dtype != np.uint8):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if kind == "f" and not (np.isfinite(array).all() and (array >= 0).all()):
            raise ValueError(f"{name} holds what is no share")
    if not (labels and images and len(samples.shares)) or (samples.maps.max() <= 0):
        raise ValueError("it holds nothing")
    for name in ("labels", "crop_labels"):
        array = getattr(samples, name)
        if array.size and not 0 <= array.min() <= array.max() < labels:
            raise ValueError(f"{name} holds a label without a name")


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` rows, spread evenly, so that every class of a sorted folder is seen."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return chosen


def _propose(labels: NDArray[np.uint8], rows: Sequence[int], num_labels: int, most: int) -> list[_Candidate]:
    """For every label at most `most` images, those in which its largest region is nearest to its usual size.

    The usual size is the one that half of the part's area lies above: stray cells do not count for much.
    labels: (m, G, G) of the rows.
    """
    proposed = []
    for label in range(num_labels):
        regions = {row: _largest_region(grid == label) for row, grid in zip(rows, labels, strict=True)}
        found = {row: region for row, region in regions.items() if region.any()}
        if not found:
            continue
        sizes = np.array([region.sum() for region in found.values()])
        ascending = np.sort(sizes)
        usual = ascending[np.searchsorted(ascending.cumsum(), ascending.sum() / 2)]
        unusual = np.abs(np.log(sizes / usual))
        nearest = np.argsort(unusual, kind="stable")[: min(most, (unusual < math.log(_UNUSUAL)).sum())]
        proposed += [_Candidate(label, row, found[row]) for row in np.array(list(found))[nearest].tolist()]
    return proposed


def _largest_region(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest set of cells that hang together by their edges; bool (G, G) → bool (G, G)."""
    regions, _ = ndimage.label(where)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = where & (regions == sizes.argmax())
    return largest


def _look(
    images: ImageSet, candidates: Sequence[_Candidate], shown: Sequence[int], soft_maps: SoftMaps, size: Size
) -> tuple[dict[int, Tensor], list[_Cut], dict[int, float]]:
    """Decode every image that may be shown, once: row → soft maps float16 (K, h, w), cuts, row → width / height."""
    by_row: dict[int, list[_Candidate]] = {row: [] for row in shown}
    for candidate in candidates:
        by_row.setdefault(candidate.row, []).append(candidate)
    rows = sorted(by_row)
    maps: dict[int, Tensor] = {}
    aspects: dict[int, float] = {}
    cuts: list[_Cut] = []
    with Progress(len(rows), "images", "choosing pictures") as progress:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            whole = []
            for row in batch:
                image = images.read(row)
                height, width = image.shape[-2:]
                aspects[row] = width / height
                whole.append(crop_image(image, WHOLE, size))
                crops = [_square_around(candidate.region, height, width) for candidate in by_row[row]]
                cuts += [
                    _Cut(candidate, crop, in_rgb(crop_image(image, crop, _CROP_SIDE)))
                    for candidate, crop in zip(by_row[row], crops, strict=True)
                ]
            maps |= dict(zip(batch, soft_maps(batch, torch.stack(whole)).cpu().half(), strict=True))
            progress.update(len(batch))
    return maps, cuts, aspects


def _square_around(region: NDArray[np.bool_], height: int, width: int) -> Crop:
    """A square in the pixels of an image of height × width: the region and a margin, within the image."""
    spans = []
    for axis, length in ((1, height), (0, width)):
        cells = np.flatnonzero(region.any(axis))
        scale = length / region.shape[0]
        spans.append((cells[0] * scale, (cells[-1] + 1) * scale))
    longest = max(high - low for low, high in spans)
    side = min(max(_MARGIN * longest, min(height, width) / 5), height, width)
    top, left = (
        min(max((low + high - side) / 2, 0), length - side)
        for (low, high), length in zip(spans, (height, width), strict=True)
    )
    return Crop(top / height, left / width, side / height, side / width, flip=False)


def _most_typical(cuts: Sequence[_Cut], maps: Mapping[int, Tensor], most: int) -> list[tuple[_Cut, float]]:
    """The cuts with the highest strength, `most` of a label: label by label, the strongest first."""
    scored = [(cut, _strength(maps[cut.candidate.row], cut.candidate)) for cut in cuts]
    chosen = []
    for label in sorted({cut.candidate.label for cut in cuts}):
        own = [(cut, strength) for cut, strength in scored if cut.candidate.label == label]
        chosen += sorted(own, key=lambda scored: -scored[1])[:most]
    return chosen


def _strength(maps: Tensor, candidate: _Candidate) -> float:
    """The mean of the candidate's soft map over its region; maps (K, h, w)."""
    own = maps[candidate.label].float()[None, None]
    fine = interpolate(own, candidate.region.shape, mode="bilinear", align_corners=False)[0, 0]
    return float(fine[torch.from_numpy(candidate.region)].mean())


def _won(maps: Tensor, cut: _Cut) -> NDArray[np.bool_]:
    """Where in the crop its label has the highest of the soft maps (K, h, w); bool (128, 128)."""
    centres = (torch.arange(_CROP_SIDE) + 0.5) / _CROP_SIDE
    rows, columns = cut.crop.top + cut.crop.height * centres, cut.crop.left + cut.crop.width * centres
    points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None] * 2 - 1
    # As the labels were made: the maps upsampled before the argmax.
    fine = grid_sample(maps[None].float(), points, padding_mode="border", align_corners=False)
    return (fine[0].argmax(0) == cut.candidate.label).numpy()
