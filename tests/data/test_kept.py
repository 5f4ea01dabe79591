"""Images kept in memory: the same pixels, read once, within a bound."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semmae.data import kept
from semmae.data.kept import KeptImages
from semmae.data.loaders import CropDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.data.samplers import EpochSampler


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., Path]) -> ImageSet:
    return open_images(write_images(tmp_path / "photos", *(f"c{i % 2}/{i}.jpg" for i in range(6))))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in the order in which they are decoded."""
    rows: list[int] = []
    real = ImageSet.read

    def read(self: ImageSet, row: int, least: int | None = None) -> torch.Tensor:
        rows.append(row)
        return real(self, row, least)

    monkeypatch.setattr(ImageSet, "read", read)
    return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_the_same_in_every_epoch(images: ImageSet, workers: int) -> None:
    def epochs(source: ImageSet) -> list[torch.Tensor]:
        sampler = EpochSampler(len(source), seed=3)
        loader = make_loader(CropDataset(source, 16, seed=3), 2, sampler=sampler, workers=workers)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found += [batch["images"] for batch in loader]
        return found

    for ours, theirs in zip(epochs(KeptImages(images)), epochs(images), strict=True):
        assert torch.equal(ours, theirs)


def test_an_image_is_decoded_once_for_each_size(images: ImageSet, decoded: list[int]) -> None:
    some = KeptImages(images.select([1, 4]))
    first = some.read(1, 16)
    assert some.read(1, 16) is first and decoded == [1]
    some.read(1)
    assert decoded == [1, 1] and some.digest == images.select([1, 4]).digest
    assert torch.equal(first, images.read(4, 16))


def test_images_for_which_there_is_no_room_are_decoded_again(
    images: ImageSet, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = sum(images.read(row).nbytes for row in (0, 1))
    monkeypatch.setattr(kept, "_ROOM", room)
    some = KeptImages(images)
    decoded.clear()
    for row in (0, 1, 2, 0, 1, 2):
        some.read(row)
    assert decoded == [0, 1, 2, 2]
    monkeypatch.setattr(kept, "_MOST_IMAGES", 5)
    many = KeptImages(images)
    decoded.clear()
    assert many.read(0) is not many.read(0) and decoded == [0, 0]
