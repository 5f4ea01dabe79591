"""Part labels that nobody learned: what each kind holds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.evaluation.quality import fixed_grid
from semmae.labels.kinds import annotated_parts, grid_parts, majority, shuffled_parts

COUNT = 7


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for number in range(COUNT):
        path = tmp_path / "images" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 0, 0)).save(path)
    return open_images(tmp_path / "images", workers=0)


def annotate(folder: Path, number: int, values: np.ndarray) -> None:
    path = folder / "a" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def test_the_majority_of_each_cell() -> None:
    annotation = np.array([[1, 1, 2, 0], [1, 3, 2, 2], [0, 0, 9, 9], [0, 5, 9, 8]], np.uint8)
    assert majority(annotation, 2).tolist() == [[1, 2], [0, 9]]
    assert majority(annotation[:2, :2], 4).tolist() == np.kron([[1, 1], [1, 3]], np.ones((2, 2))).tolist()
    assert majority(np.array([[1, 0, 0], [0, 0, 0], [0, 0, 7]], np.uint8), 1).tolist() == [[0]]


def test_true_parts_are_those_of_the_annotations(images: ImageSet, tmp_path: Path) -> None:
    for number in range(COUNT):
        values = np.zeros((8, 8))
        values[:4], values[4:, :2], values[4:, 2:4] = 3, 40, 255
        annotate(tmp_path / "masks", number, values)
    store = annotated_parts(tmp_path / "out", images, tmp_path / "masks", grid=4)
    assert store.label_names == ["background", "part 3", "part 40"]
    assert (np.asarray(store.labels) == [[1] * 4, [1] * 4, [2, 0, 0, 0], [2, 0, 0, 0]]).all()
    assert PartStore.open(tmp_path / "out", manifest_digest=images.digest).complete


def test_a_silhouette_is_the_one_part(images: ImageSet, tmp_path: Path) -> None:
    for number in range(COUNT):
        annotate(tmp_path / "masks", number, 255 * np.eye(4))
    store = annotated_parts(tmp_path / "out", images, tmp_path / "masks", grid=4)
    assert store.num_labels == 2 and (np.asarray(store.labels) == np.eye(4)).all()


def test_each_image_needs_an_annotation(images: ImageSet, tmp_path: Path) -> None:
    annotate(tmp_path / "masks", 3, np.eye(4))
    with refused("--masks", "6 of 7", "a/0.png"):
        annotated_parts(tmp_path / "out", images, tmp_path / "masks", grid=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(4))
def test_no_image_keeps_its_own_labels(images: ImageSet, tmp_path: Path, seed: int) -> None:
    learned = PartStore.create(
        tmp_path / "learned", images=COUNT, grid=2, label_names=[str(number) for number in range(COUNT)],
        teacher_digest="t", manifest_digest=images.digest, attention_grid=3,
    )  # fmt: skip
    rows = np.arange(COUNT)
    learned.write(rows, np.broadcast_to(rows[:, None, None], (COUNT, 2, 2)))
    learned.write_attention(rows, np.broadcast_to(rows[:, None, None], (COUNT, 3, 3)))
    learned.finish()
    store = shuffled_parts(tmp_path / "out", images, learned, seed=seed)
    found = np.asarray(store.labels)[:, 0, 0]
    assert sorted(found) == rows.tolist() and (found != rows).all()
    assert (np.asarray(store.attention)[:, 0, 0] == found).all()
    assert shuffled_parts(tmp_path / "again", images, learned, seed=seed).digests == learned.digests
    assert (tmp_path / "again/parts.npy").read_bytes() == (tmp_path / "out/parts.npy").read_bytes()


def test_one_image_has_no_other(images: ImageSet, tmp_path: Path) -> None:
    one = images.select([0])
    store = grid_parts(tmp_path / "grid", one, labels=4, grid=8)
    assert (np.asarray(store.labels)[0] == fixed_grid(4, 8)).all()
    with refused("one image"):
        shuffled_parts(tmp_path / "out", one, store)
