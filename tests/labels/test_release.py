"""The authors' token files, made here by the layout that their reader expects, become the labels of their images."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from refusals import refused
from torch.nn import functional

from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.labels.release import NOT_KEPT, import_tokens, read_tokens

NAMES = ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg")


def tokens(patch: int, kept: int | None = None, embedding: int = 0, seed: int = 0) -> tuple[Any, Any]:
    """(labels (g·g,) of all patches, float32 (kept, 15 + embedding + 3·patch²)) in a random order of patches."""
    rng = np.random.default_rng(seed)
    cells = (224 // patch) ** 2
    labels = rng.integers(0, 7, cells)
    order = rng.permutation(cells)[: kept or cells]
    one_hot = functional.one_hot(torch.from_numpy(labels[order]), 7).numpy()
    sizes = np.broadcast_to(one_hot.sum(0), one_hot.shape)
    pixels = rng.random((len(order), embedding + 3 * patch**2))
    packed = np.concatenate([sizes, one_hot, order[:, None], pixels], axis=1).astype(np.float32)
    labels[np.setdiff1d(np.arange(cells), order)] = 7
    return labels, packed


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for name in NAMES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / name)
    return open_images(tmp_path / "images")


def written(folder: Path, **changes: Any) -> dict[str, Any]:
    """A token file for every image; returns their labels."""
    found = {}
    for seed, name in enumerate(NAMES):
        path = (folder / name).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        found[name], packed = tokens(**({"patch": 16, "seed": seed} | changes))
        np.save(path, packed)
    return found


@pytest.mark.parametrize(
    ("form", "grid"),
    [({"patch": 16}, 14), ({"patch": 8}, 28), ({"patch": 8, "kept": 196}, 28), ({"patch": 8, "embedding": 768}, 28)],
    ids=["patch 16", "patch 8", "patch 8, 196 kept", "the older form with positions' embeddings"],
)
def test_every_patch_gets_the_part_of_its_token(form: dict[str, Any], grid: int, tmp_path: Path) -> None:
    labels, packed = tokens(**form)
    np.save(tmp_path / "a.npy", packed)
    assert np.array_equal(read_tokens(tmp_path / "a.npy").labels, labels.reshape(grid, grid))
    np.save(tmp_path / "b.npy", packed.astype(np.float16)[None])  # with the batch's dimension
    assert np.array_equal(read_tokens(tmp_path / "b.npy").labels, labels.reshape(grid, grid))


def test_the_order_of_the_lines_is_that_of_attention(tmp_path: Path) -> None:
    _, packed = tokens(patch=8, kept=196)
    np.save(tmp_path / "a.npy", packed)
    attention = read_tokens(tmp_path / "a.npy").attention
    assert attention is not None
    assert np.array_equal(np.argsort(-attention, kind="stable")[:196], packed[:, 14])
    assert (np.delete(attention, packed[:, 14].astype(int)) == 0).all()
    np.save(tmp_path / "b.npy", packed[packed[:, 14].argsort()])
    assert read_tokens(tmp_path / "b.npy").attention is None


def test_no_two_threads_parse_a_header_at_once(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11's parser fails, now and then, when two of its threads parse (gh-106905)."""
    written(tmp_path / "tokens")
    parsing: list[int] = []
    most = []

    def load(path: Path, read: Any = np.load, **how: Any) -> Any:
        parsing.append(1)
        most.append(len(parsing))
        time.sleep(0.02)
        parsing.pop()
        return read(path, **how)

    monkeypatch.setattr(np, "load", load)
    import_tokens(tmp_path / "tokens", images, tmp_path / "out", workers=3)
    assert max(most) == 1


def test_a_store_of_the_images_in_their_order(images: ImageSet, tmp_path: Path) -> None:
    expected = written(tmp_path / "tokens", patch=8, kept=196)
    import_tokens(tmp_path / "tokens", images, tmp_path / "out")
    store = PartStore.open(tmp_path / "out", manifest_digest=images.digest)
    for row, name in enumerate(images.names):
        assert np.array_equal(store.labels[row].ravel(), expected[name])
        # 2 × 2 patches a cell: the most attended cells hold patches that were kept, cells of none lie lowest.
        kept = (store.labels[row] < 7).reshape(14, 2, 14, 2).any((1, 3))
        assert store.attention[row].max() == 254 and kept[store.attention[row] > 120].all()
        assert len(set(store.attention[row][~kept])) == 1 and store.attention[row][~kept].max() < 120
    assert store.label_names == [*(f"part {number}" for number in range(1, 8)), NOT_KEPT]


def test_files_of_both_orders_are_not_mixed(images: ImageSet, tmp_path: Path) -> None:
    written(tmp_path / "tokens", patch=8, kept=196)
    last = (tmp_path / "tokens" / NAMES[2]).with_suffix(".npy")
    packed = np.load(last)
    np.save(last, packed[packed[:, 14].argsort()])
    with refused("dog/a.npy", "attention"):
        import_tokens(tmp_path / "tokens", images, tmp_path / "out")


def test_files_in_the_grids_order_give_no_attention(images: ImageSet, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        path = (tmp_path / "tokens" / name).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = tokens(patch=16, seed=seed)[1]
        np.save(path, packed[packed[:, 14].argsort()])
    store = import_tokens(tmp_path / "tokens", images, tmp_path / "out")
    assert not (tmp_path / "out" / "attention.npy").exists()
    with refused("token files", "`semmae parts --teacher`"):
        store.attention  # noqa: B018


def test_whole_grids_have_seven_labels_and_are_gone_on_with(images: ImageSet, tmp_path: Path) -> None:
    expected = written(tmp_path / "tokens")
    store = import_tokens(tmp_path / "tokens", images, tmp_path / "out")
    store.labels[1] = 255
    store.labels.flush()
    tiny.rewrite_store(tmp_path / "out", complete=False)  # as if it had been stopped
    again = import_tokens(tmp_path / "tokens", images, tmp_path / "out")
    assert again.num_labels == 7
    assert np.array_equal(again.labels.reshape(3, -1), [expected[name] for name in images.names])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda packed: packed[:, :-1], ["float32 (196, 782)", "15 + 3"]),
        (lambda packed: packed.astype(int), ["int64"]),
        (lambda packed: packed[0], ["(783,)"]),
        (lambda packed: packed * 2, ["columns 7 to 13", "one-hot"]),
        (lambda packed: np.concatenate([packed, packed]), ["column 14", "392 different positions", "14 × 14"]),
        (lambda packed: np.array([{"a": 1}]), ["no readable .npy"]),  # a pickle, which is not executed
        (lambda packed: packed[:100], ["100 patches", "first file"]),
        (lambda packed: tokens(8)[1], ["grid of 28"]),
    ],
)
def test_a_file_of_another_form_is_named(change: Any, named: list[str], images: ImageSet, tmp_path: Path) -> None:
    written(tmp_path / "tokens")
    path = tmp_path / "tokens" / "cat" / "b.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)
    with refused(path, *named):
        import_tokens(tmp_path / "tokens", images, tmp_path / "out")


def test_missing_and_unknown_files_are_named(images: ImageSet, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with refused(folder):
        import_tokens(folder, images, tmp_path / "out")
    written(folder)
    (folder / "cow").mkdir()
    (folder / "cat" / "b.npy").rename(folder / "cow" / "c.npy")
    with refused("1 of 3 images", "cat/b.npy"):
        import_tokens(folder, images, tmp_path / "out")
    (folder / "cat" / "b.npy").write_bytes((folder / "cow" / "c.npy").read_bytes())
    with refused("1 of 4 token files", "cow/c.npy"):
        import_tokens(folder, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert import_tokens(folder, images, tmp_path / "out", subset=True).complete
