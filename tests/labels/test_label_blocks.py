"""Labels and attention are the same whoever computes them, in how many goes, and wherever an earlier go was killed."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from semmae.data.attention import attention_ranks
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.filters import guides, refine_maps, upsample_maps
from semmae.formats.folders import AnyPartLearner, digest
from semmae.labels.blocks import Job, compute_labels, keep
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.shares import Place, by_devices

SIZE, GRID, BLOCK = 32, 7, 5  # 32 creatures: six blocks and two images


@pytest.fixture(scope="module")
def images(creatures: Path) -> ImageSet:
    return open_images(creatures / "images")


@pytest.fixture(scope="module", params=["tokens", "pixels"])
def networks(request: pytest.FixtureRequest, images: ImageSet) -> tuple[Encoder, AnyPartLearner]:
    """An encoder, and a learner of either kind that has learned nothing yet."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec.named("vit_mini", SIZE, 8)).eval()
    if request.param == "pixels":
        return encoder, PublishedPartLearner(PublishedPartsSpec(encoder.width, 8, head_dim=32), encoder).eval()
    learner = PartLearner(PartsSpec.of(encoder)).eval()
    pixels = torch.stack([WholeDataset(images, SIZE)[row]["image"] for row in range(16)])
    with torch.inference_mode():
        views, _, _ = encoder.token_views(normalise(pixels, encoder.spec.mean, encoder.spec.std))
        learner.fit_reductions(views)
        learner.start_from_clusters(learner.reduce(views), 0)
    return encoder, learner


def job(
    out: Path,
    images: ImageSet,
    networks: tuple[Encoder, AnyPartLearner],
    workers: int = 0,
    precision: Literal["float32", "bf16"] = "float32",
) -> tuple[Job, PartStore]:
    encoder, learner = networks
    store = PartStore.create(
        out, images=len(images), grid=GRID, label_names=learner.spec.label_names,
        teacher_digest=digest(encoder), learner_digest=digest(learner), manifest_digest=images.digest,
        attention_grid=SIZE // 8,
    )  # fmt: skip
    return Job(images, encoder, learner, SIZE, GRID, BLOCK, precision, workers), store


def done(mine: Job, store: PartStore, threads: int = 1) -> list[int]:
    """Computes and keeps what is left; the rows of each block."""
    place = Place(torch.device("cpu"), threads)
    return [keep(store, made) for made, _ in mine.made(mine.unfinished(store), place)]


def slowly(images: ImageSet, networks: tuple[Encoder, AnyPartLearner]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and attention, block by block, as one reads it in the docstrings."""
    encoder, learner = networks
    whole, found, attended = WholeDataset(images, SIZE), [], []
    with torch.inference_mode():
        for at in range(0, len(images), BLOCK):
            rows = range(at, min(at + BLOCK, len(images)))
            pictures = torch.stack([whole[row]["image"] for row in rows])
            pixels = normalise(pictures, encoder.spec.mean, encoder.spec.std)
            if isinstance(learner, PublishedPartLearner):
                labels = upsample_maps(learner.part_maps(encoder.last_block_features(pixels)), GRID).argmax(1)
            else:
                tokens = learner.reduce(encoder.token_views(pixels)[0])
                maps = refine_maps(learner.part_maps(tokens), guides(pictures, GRID))
                labels = (maps[:, 1:].argmax(1) + 1) * (maps[:, 1:].sum(1) > maps[:, 0])
            found.append(labels.numpy())
            attended.append(attention_ranks(encoder.attention(pixels).mean(1)).numpy())
    return np.concatenate(found), np.concatenate(attended)


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (3, 2)])
def test_threads_and_workers_change_no_label(
    threads: int, workers: int, images: ImageSet, networks: Any, tmp_path: Path
) -> None:
    mine, store = job(tmp_path, images, networks, workers)
    before = torch.get_num_threads()
    assert done(mine, store, threads) == [5, 5, 5, 5, 5, 5, 2]
    assert torch.get_num_threads() == before
    labels, attention = slowly(images, networks)
    assert np.array_equal(store.labels, labels)
    assert np.array_equal(store.attention, attention)
    assert {int(rows.max()) for rows in attention} == {254}  # ranks of 16 patches, the highest 254


def test_only_blocks_that_lack_something_are_computed(images: ImageSet, networks: Any, tmp_path: Path) -> None:
    expected, attention = slowly(images, networks)
    _, store = job(tmp_path, images, networks)
    store.write(np.arange(32), expected)
    store.write_attention(np.arange(32), attention)
    store.attention[21, 2:] = 255
    store.labels[7, 3:] = 255  # torn: the writing was killed in the middle of the row
    store.labels[[30, 31]] = 255
    store.labels[8] = 0  # beside the torn one, and whole: stays
    again, store = job(tmp_path, images, networks)
    assert again.unfinished(store) == [1, 4, 6]
    done(again, store)
    expected[8] = 0
    assert np.array_equal(store.labels, expected)
    assert np.array_equal(store.attention, attention)
    assert again.unfinished(store) == []


def test_nothing_more_is_begun_when_the_reader_stops(images: ImageSet, networks: Any) -> None:
    asked: list[int] = []

    def batches() -> Any:
        for at in range(100):
            asked.append(at)
            yield torch.tensor([at]), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)

    labels = compute_labels(batches(), *networks, grid=GRID, precision="float32", threads=2)
    (rows, first, attention, _), waited = next(labels)
    labels.close()  # type: ignore[attr-defined]
    assert rows.tolist() == [0] and first.shape == (1, GRID, GRID) and attention is None and waited >= 0
    assert len(asked) <= 4


def test_bf16_changes_few_labels(images: ImageSet, networks: Any) -> None:
    pixels = torch.stack([WholeDataset(images, SIZE)[row]["image"] for row in range(16)])
    batch = [(torch.arange(16), pixels)]
    full, half = (
        next(compute_labels(batch, *networks, grid=SIZE, precision=precision, threads=1, attention=True))[0]
        for precision in ("float32", "bf16")
    )
    assert (full.labels == half.labels).float().mean() > 0.9
    assert full.attention is not None and not torch.equal(full.attention, half.attention)  # it was computed in bf16


def test_two_processes_give_the_bytes_of_one(images: ImageSet, networks: Any, tmp_path: Path) -> None:
    """Also in bf16, where a sum in another order would differ sooner."""
    mine, alone = job(tmp_path / "alone", images, networks, precision="bf16")
    done(mine, alone, threads=3)
    _, shared = job(tmp_path / "shared", images, networks, precision="bf16")
    found = [keep(shared, made) for made, _ in by_devices(mine, mine.unfinished(shared), 2)]
    assert sorted(found) == [2, 5, 5, 5, 5, 5, 5]
    for store in (alone, shared):
        store.finish()
    for name in ("parts.npy", "attention.npy"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
