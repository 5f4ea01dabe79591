"""Part labels that nobody learned, to hold learned ones against: clusters, a grid, another image's, true parts.

Each function labels all images of a set in a store of its own, which is read as those that were learned are.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, sample_rows
from semmae.data.part_store import PartStore
from semmae.data.segmentation import read_annotation
from semmae.errors import UserError
from semmae.evaluation.baselines import fit_baselines
from semmae.evaluation.quality import UNJUDGED, find_annotations, fixed_grid, sample
from semmae.files import file_digest
from semmae.labels.labelling import label_images, labelling_job
from semmae.models.parts import images_to_fit
from semmae.models.vit import Encoder
from semmae.options.shared import Precision
from semmae.progress import Progress
from semmae.sizes import Size

Labels = npt.NDArray[np.uint8]

_POINTS = 4  # a side of a cell, at which an annotation is looked at


def cluster_parts(
    out: Path,
    images: ImageSet,
    encoder: Encoder,
    *,
    teacher: object,
    labels: int,
    size: Size,
    grid: int,
    batch_size: int,
    precision: Precision = "auto",
    workers: int = 0,
    seed: int = 0,
) -> PartStore:
    """K-means in two steps of the encoder's tokens, without learning: `labels` labels, the background among them.

    That is the baseline of `semmae.evaluation.baselines`, with attention beside it. The encoder, what `teacher` names,
    sees images of `size` pixels.
    """
    fitted = sample_rows(len(images), images_to_fit(encoder, size), seed)
    batches = make_loader(WholeDataset(images, size), batch_size, sampler=fitted, workers=workers)
    clusters = fit_baselines(encoder, batches, labels, seed, images=len(fitted))
    job = labelling_job(
        images, encoder, clusters.two_steps, size=size, grid=grid, batch_size=batch_size, precision=precision,
        workers=workers,
    )  # fmt: skip
    return label_images(out, job, teacher=teacher)


def grid_parts(out: Path, images: ImageSet, *, labels: int, grid: int) -> PartStore:
    """The same `labels` cells of equal size in every image: what position alone is worth."""
    cells = fixed_grid(labels, grid)
    return _written(out, images, [f"cell {number}" for number in range(labels)], np.stack([cells] * len(images)))


def shuffled_parts(out: Path, images: ImageSet, learned: PartStore, *, seed: int = 0) -> PartStore:
    """Each image's labels, and attention, from another one: the same shapes, which fit nothing.

    In an order drawn by the seed every image gets those of the one after it, and the last those of the first: a single
    circle, in which no image keeps its own. UserError where there is but one.
    """
    if len(images) < 2:
        raise UserError(f"{images.source.root}: one image has no other to take parts from; give more images")
    order = np.random.default_rng(seed).permutation(len(images))
    source = np.empty_like(order)
    source[order] = np.roll(order, -1)
    attention = learned.attention[source] if learned.attention_grid else None
    extra = {**learned.extra, "shuffled_by_seed": seed}
    return _written(out, images, learned.label_names, learned.labels[source], attention, learned.digests, extra)


def annotated_parts(out: Path, images: ImageSet, masks: Path, *, grid: int) -> PartStore:
    """True parts: in each cell the number that most of the pixels in it have in the image's annotation.

    0 is background, and so is 255 beside other parts, as part quality has it. UserError where an image has none.
    """
    found = find_annotations(images.names, masks)
    check_all_annotated(images, masks, found)
    extra = {"annotations_digest": annotations_digest(images, masks)}
    cells = np.empty((len(images), grid, grid), np.uint8)
    with Progress(len(found), "annotations", "true parts") as progress:
        for row, path in found.items():
            cells[row] = majority(read_annotation(path), grid)
            progress.update()
    values = np.unique(cells)
    if (values % UNJUDGED).any():  # others than 0 and 255
        cells[cells == UNJUDGED] = 0
    values = np.union1d(values[values < UNJUDGED] if (values % UNJUDGED).any() else values, [0])
    names = ["background", *(f"part {value}" for value in values[1:])]
    return _written(out, images, names, np.searchsorted(values, cells).astype(np.uint8), extra=extra)


def annotations_digest(images: ImageSet, masks: Path) -> str:
    """SHA-256, in hexadecimal, of the annotations of these images, in their order; wherever they lie."""
    digest = hashlib.sha256()
    for row, path in find_annotations(images.names, masks).items():
        digest.update(f"{row} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def check_all_annotated(images: ImageSet, masks: Path, found: dict[int, Path]) -> None:
    """Refuse images of which some have no annotation."""
    missing = [images.names[row] for row in range(len(images)) if row not in found]
    if missing:
        raise UserError(
            f"--masks {masks}: {len(missing)} of {len(images)} images have no annotation, such as {missing[0]}; "
            "give one of each, or leave out rows with parts: annotations"
        )


def majority(annotation: Labels, grid: int) -> Labels:
    """The most frequent value in each cell, (H, W) → (grid, grid), by 4 x 4 points; of several the lowest."""
    points = sample(annotation, _POINTS * grid).reshape(grid, _POINTS, grid, _POINTS)
    values = np.unique(points)
    counts = np.stack([(points == value).sum((1, 3)) for value in values])
    chosen: Labels = values[counts.argmax(0)]
    return chosen


def _written(
    out: Path,
    images: ImageSet,
    names: list[str],
    labels: Labels,
    attention: Labels | None = None,
    digests: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> PartStore:
    """A complete store of these labels (N, G, G)."""
    known = digests or {"teacher_digest": "", "learner_digest": ""}
    store = PartStore.create(
        out,
        images=len(images),
        grid=labels.shape[1],
        label_names=names,
        manifest_digest=images.digest,
        attention_grid=0 if attention is None else attention.shape[1],
        extra=extra,
        **{name: digest for name, digest in known.items() if name != "manifest_digest"},
    )
    rows = np.arange(len(images))
    store.write(rows, labels)
    if attention is not None:
        store.write_attention(rows, attention)
    store.finish()
    return store
