"""Part quality of a labelled data set: learned parts beside their baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from semmae.data.coding import IGNORED
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, sample_rows
from semmae.data.part_store import PartStore
from semmae.data.segmentation import LabelledImages
from semmae.errors import UserError
from semmae.evaluation.baselines import baseline_labels, fit_baselines
from semmae.evaluation.keypoints import Keypoints, keypoint_quality, read_keypoints
from semmae.evaluation.quality import (
    SAMPLE,
    Labels,
    check_foreground,
    find_annotations,
    fixed_grid,
    load_annotations,
    quality,
    sample,
)
from semmae.files import Fields, read_json, write_json
from semmae.models.parts import images_to_fit
from semmae.models.vit import Encoder
from semmae.progress import Progress
from semmae.sizes import Size

MOST_IMAGES = 2000  # measured unless given otherwise: enough for the first decimal of every figure

Scores = dict[str, dict[str, float]]  # method → figure → value


@dataclass(frozen=True)
class Truth:
    """What is known of true parts, read and checked, and the images that are measured by it."""

    rows: list[int]  # of the images measured, ascending
    annotated: list[int]  # indices into `rows` of those that have annotations
    annotations: list[Labels]  # of these, sampled
    keypoints: Keypoints | None  # relative; their rows are indices into `rows`
    protocol: dict[str, Any]  # what quality.json says of it


def read_truth(
    images: ImageSet, *, masks: Path | None, keypoints: Path | None = None, limit: int = MOST_IMAGES, seed: int = 0
) -> Truth:
    """Read and check true parts; to be called before anything long begins.

    From annotations (`find_annotations`), a file of keypoints (`read_keypoints`), or both: of either at most `limit`
    images are measured, which `seed` draws.
    """
    if masks is None and keypoints is None:
        raise UserError("no true parts to measure against; give --masks or --keypoints")
    found = find_annotations(images.names, masks) if masks is not None else {}
    points = None
    if keypoints is not None:
        points = read_keypoints(keypoints, images.names, skipped=[name for name, _ in images.manifest.skipped])
    pointed = np.unique(points.rows).tolist() if points else []
    rows = sorted({*_drawn(list(found), limit, seed), *_drawn(pointed, limit, seed)})
    annotated = [index for index, row in enumerate(rows) if row in found]
    loaded = load_annotations([found[rows[index]] for index in annotated])
    protocol: dict[str, Any] = {"images": len(rows), "images_with_truth": len({*found, *pointed}), "seed": seed}
    if masks is not None:
        check_foreground(loaded, f"{masks}: ")
        protocol |= {"masks": str(masks), "masks_measured": len(annotated), "points_a_side": SAMPLE}
    if points is not None:
        points = _relative(points.of(rows), rows, images)
        protocol |= {"keypoints": str(keypoints), "keypoints_measured": len(points)}
    return Truth(rows, annotated, loaded, points, protocol)


def pixel_truth(labelled: LabelledImages, *, seed: int = 0) -> Truth:
    """True parts of images whose pixels have classes: 0, but with `reduce_zero`, and what is ignored are background."""
    rows = sample_rows(len(labelled), MOST_IMAGES, seed)
    part_of_label = np.arange(256, dtype=np.uint8)
    if labelled.coding.reduce_zero:
        part_of_label += 1  # what is ignored, 255, becomes 0
    part_of_label[IGNORED] = 0
    annotations = [part_of_label[sample(labelled.labels(row).numpy())] for row in rows]
    check_foreground(annotations)
    protocol = {"images": len(rows), "points_a_side": SAMPLE, "seed": seed}
    return Truth(rows, list(range(len(rows))), annotations, None, protocol)


def measure(
    store: PartStore,
    images: ImageSet,
    encoder: Encoder | None,
    truth: Truth,
    path: Path,
    *,
    size: Size,
    batch_size: int,
    workers: int,
    seed: int,
) -> Scores:
    """Part quality beside all baselines, on the same images and points; writes quality.json to `path`.

    `store` has complete labels of `images`, `truth` is of these. The encoder is the one that the parts were learned
    from, and sees images of `size` pixels as it did for the labels; without one nothing of an encoder's is
    compared. `seed` is of k-means.
    """
    protocol = truth.protocol | {"labels": store.num_labels, "grid": store.grid}
    scores = {"learned": _rounded(score(store.labels[truth.rows], truth))}
    if encoder is not None:
        found, fitted = measure_encoder(
            encoder, images, truth, labels=store.num_labels, grid=store.grid, size=size, batch_size=batch_size,
            workers=workers, seed=seed,
        )  # fmt: skip
        scores |= found
        protocol |= {"heads": encoder.spec.num_heads, "kmeans_images": fitted}
    scores |= measure_grids(truth, labels=store.num_labels, grid=store.grid)
    write_json(path, {**scores, "protocol": protocol})
    return scores


def measured_against(path: Path, masks: Path) -> bool:
    """Whether a quality.json is there, and of the annotations in this folder."""
    if not path.is_file():
        return False
    protocol = Fields(path, Fields(path, read_json(path)).need("protocol", dict))
    measured: str | None = protocol.get("masks", str)
    return measured == str(masks)


def measure_encoder(
    encoder: Encoder,
    images: ImageSet,
    truth: Truth,
    *,
    labels: int,
    grid: int,
    size: Size,
    batch_size: int,
    workers: int,
    seed: int,
) -> tuple[Scores, int]:
    """Quality of an encoder's heads and of `labels` clusters of its tokens; how many images these are fitted to."""

    def loader(rows: Sequence[int]) -> Iterable[Mapping[str, Tensor]]:
        return make_loader(WholeDataset(images, size), batch_size, sampler=rows, workers=workers)

    fitted = _drawn(truth.rows, images_to_fit(encoder, size), seed)
    clusters = fit_baselines(encoder, loader(fitted), labels, seed, images=len(fitted))
    found = baseline_labels(encoder, loader(truth.rows), clusters, grid, images=len(truth.rows))
    return {name: _rounded(score(own, truth)) for name, own in found.items()}, len(fitted)


def measure_grids(truth: Truth, *, labels: int, grid: int) -> Scores:
    """Quality of parts that no image was looked at for: cells of a fixed grid, horizontal bands."""
    bands = min(labels, grid)
    methods = {"grid": fixed_grid(min(labels, grid**2), grid), "bands": fixed_grid(bands, grid, rows=bands)}
    return {name: _rounded(score(own, truth)) for name, own in methods.items()}


def score(labels: npt.NDArray[np.uint8], truth: Truth) -> dict[str, float]:
    """Every figure of labels (N, G, G) of the rows of `truth`, or of one grid (G, G) for all of them."""
    figures: dict[str, float] = {}
    if truth.annotations:
        figures |= quality(labels if labels.ndim == 2 else labels[truth.annotated], truth.annotations)
    if truth.keypoints is not None:
        figures |= keypoint_quality(labels, truth.keypoints)
    return figures


def _relative(points: Keypoints, rows: Sequence[int], images: ImageSet) -> Keypoints:
    """Keypoints as shares of their images, which are decoded for their sizes."""
    with Progress(len(np.unique(points.rows)), label="sizes of images with keypoints") as progress:

        def size_of(index: int) -> tuple[int, int]:
            progress.update()
            _, height, width = images.read(rows[index]).shape
            return height, width

        return points.relative(size_of, [images.names[row] for row in rows])


def _drawn(rows: Sequence[int], limit: int, seed: int) -> list[int]:
    """At most `limit` of the rows, ascending as they came."""
    return [rows[index] for index in sample_rows(len(rows), limit, seed)]


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in figures.items()}
