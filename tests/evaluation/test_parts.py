"""Measuring a labelled data set: the same images for all, true parts that are checked, a table that lines up."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from refusals import refused

import semmae
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.evaluation.keypoints import keypoint_quality
from semmae.evaluation.parts import Truth, measure, read_truth, score
from semmae.evaluation.quality import fixed_grid, quality, read_annotations
from semmae.reporting.page import quality_text

CLUSTERED = ["kmeans", "kmeans_centred", "kmeans_two_steps"]
METHODS = ["learned", "heads", "heads_background", *CLUSTERED, "grid", "bands"]
FIGURES = ["nmi", "ari", "foreground_iou", "parts_used", "nmi_all", "ari_all"]


@pytest.fixture(scope="module")
def images(creatures: Path) -> ImageSet:
    return open_images(creatures / "images")


@pytest.fixture(scope="module")
def keypoints(images: ImageSet, creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keypoint in the middle of each true part of each image but the first."""
    lines = ["image,part,x,y"]
    for row, mask in zip(*read_annotations(images.names, creatures / "masks", size=None), strict=True):
        for part in np.unique(mask[mask > 0]) if row else ():
            y, x = (values[len(values) // 2] for values in np.nonzero(mask == part))
            lines.append(f"{images.names[row]},part {part},{x + 0.5},{y + 0.5}")
    path = tmp_path_factory.mktemp("keypoints") / "keypoints.csv"
    path.write_text("\n".join(lines))
    return path


def measured(run: Path, images: ImageSet, truth: Truth, out: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    store = PartStore.open(run / "parts", manifest_digest=images.digest)
    encoder = semmae.load_encoder(run / "teacher")
    return measure(store, images, encoder, truth, out, size=32, batch_size=5, workers=0, seed=seed)


def test_every_method_on_the_same_images(
    whole_run: Path,
    creatures: Path,
    images: ImageSet,
    keypoints: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = read_truth(images, masks=creatures / "masks", keypoints=keypoints)
    assert truth.rows == truth.annotated == list(range(tiny.COUNT))
    out = tmp_path / "quality.json"
    with caplog.at_level(logging.INFO, "semmae"):
        scores = measured(whole_run, images, truth, out)
    written = json.loads(out.read_text())
    protocol = written.pop("protocol")
    assert written == scores
    assert list(scores) == METHODS
    assert all(list(row) == [*FIGURES, "keypoint_nmi", "keypoint_ari"] for row in scores.values())
    assert protocol["images"] == protocol["masks_measured"] == tiny.COUNT
    assert protocol["keypoints_measured"] == len(keypoints.read_text().splitlines()) - 1
    store = PartStore.open(whole_run / "parts")
    assert scores["learned"] == pytest.approx(score(store.labels, truth), abs=0.006)
    assert scores["bands"] == pytest.approx(score(fixed_grid(7, 32, rows=7), truth), abs=0.006)
    # A seed is all that k-means hangs on; everything else hangs on none.
    again, other = (measured(whole_run, images, truth, out, seed=seed) for seed in (0, 1))
    assert again == scores
    assert [name for name in METHODS if other[name] != scores[name]] == CLUSTERED


def test_a_limit_draws_images_for_all_methods(creatures: Path, images: ImageSet, keypoints: Path) -> None:
    truth = read_truth(images, masks=creatures / "masks", keypoints=None, limit=7, seed=3)
    assert len(truth.rows) == 7 and truth.annotated == list(range(7))
    assert truth.protocol["images"] == 7 and truth.protocol["images_with_truth"] == tiny.COUNT
    assert truth.rows != read_truth(images, masks=creatures / "masks", limit=7, seed=4).rows
    # Labels that are the truth score 100: masks and labels are of the same images.
    rows, masks = read_annotations(images.names, creatures / "masks")
    assert rows == list(range(tiny.COUNT))
    assert score(np.stack(masks)[truth.rows], truth)["nmi"] == pytest.approx(100)
    both = read_truth(images, masks=creatures / "masks", keypoints=keypoints, limit=7, seed=3)
    perfect = score(np.stack(masks)[both.rows], both)
    assert len(both.rows) >= 7 and perfect["ari"] == pytest.approx(100)
    assert perfect["keypoint_ari"] > 95, "a keypoint at a border of parts may lie in the next cell"


def test_images_without_masks_are_not_measured_by_them(
    creatures: Path, images: ImageSet, keypoints: Path, tmp_path: Path
) -> None:
    rows, masks = read_annotations(images.names, creatures / "masks", size=None)
    for row in (0, 4, 9):
        path = (tmp_path / "masks" / images.names[row]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(masks[row]).save(path)
    labels = np.random.default_rng(0).integers(0, 7, (tiny.COUNT, 28, 28), dtype=np.uint8)
    truth = read_truth(images, masks=tmp_path / "masks")
    assert truth.rows == [0, 4, 9]
    few = score(labels[truth.rows], truth)
    assert few == quality(labels[[0, 4, 9]], [masks[row] for row in (0, 4, 9)])
    wider = read_truth(images, masks=tmp_path / "masks", keypoints=keypoints)
    assert wider.rows == list(range(tiny.COUNT)) and wider.annotated == [0, 4, 9]
    assert wider.keypoints is not None
    assert score(labels, wider) == {**few, **keypoint_quality(labels, wider.keypoints)}


def test_keypoints_alone_are_enough(images: ImageSet, keypoints: Path) -> None:
    truth = read_truth(images, masks=None, keypoints=keypoints)
    assert truth.rows == list(range(1, tiny.COUNT)), "the first image has none"
    assert list(score(fixed_grid(7, 28), truth)) == ["keypoint_nmi", "keypoint_ari"]


def test_truth_that_cannot_be_used_is_refused(creatures: Path, images: ImageSet, tmp_path: Path) -> None:
    with refused("give --masks or --keypoints"):
        read_truth(images, masks=None)
    for name in images.names:
        path = (tmp_path / "empty" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    with refused("32 annotations"):
        read_truth(images, masks=tmp_path / "empty")
    (tmp_path / "outside.csv").write_text(f"image,part,x,y\n{images.names[5]},eye,20,49\n")
    with refused("outside", "48 x 48 pixels"):
        read_truth(images, masks=None, keypoints=tmp_path / "outside.csv")


def test_the_table_lines_up_and_stars_the_best() -> None:
    learned = {"nmi": 41.26, "ari": 9.0, "foreground_iou": 63.0, "parts_used": 2.7}
    grid = {"nmi": 20.0, "ari": 10.04, "foreground_iou": 63.0, "parts_used": 31.0}
    *table, verdict = quality_text({"learned": learned, "grid": grid}, 12).splitlines()
    assert table == [
        "Part quality on 12 images (* best of its column)",
        "                NMI %   ARI %   Foreground IoU %   Parts in use",
        "Learned parts    41.3*    9.0               63.0*           2.7",
        "Fixed grid       20.0    10.0*              63.0*          31.0",
    ]
    assert "ARI (by Fixed grid), Foreground IoU (by Fixed grid)" in verdict and "NMI" not in verdict
    best = quality_text({"learned": learned | {"ari": 11.0, "foreground_iou": 64.0}, "grid": grid}, 12)
    assert "Fixed grid" not in best.splitlines()[-1]


def test_without_an_encoder_nothing_of_one_is_compared(
    whole_run: Path, creatures: Path, images: ImageSet, tmp_path: Path
) -> None:
    truth, store = read_truth(images, masks=creatures / "masks"), PartStore.open(whole_run / "parts")
    path = tmp_path / "quality.json"
    scores = measure(store, images, None, truth, path, size=0, batch_size=5, workers=0, seed=0)
    assert list(scores) == ["learned", "grid", "bands"]
    assert "heads" not in json.loads(path.read_text())["protocol"]
