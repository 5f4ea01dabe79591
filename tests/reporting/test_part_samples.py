"""What the page of parts shows is where the parts are: crops, maps and shares against images whose parts are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from refusals import refused
from torch import Tensor
from torch.nn.functional import interpolate

from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.reporting.part_samples import PartSamples, _largest_region, collect, read_samples, spread

GRID, HEIGHT, WIDTH = 14, 56, 84  # a cell is 4 × 6 pixels: fractions of height and width must not be mixed up
RED, NAMES = (220, 30, 30), ["background", "square", "nowhere"]


def draw(folder: Path, boxes: Sequence[tuple[int, int, int, int]]) -> ImageSet:
    """Grey images with one red box each, in cells: top, left, height, width."""
    folder.mkdir()
    for number, (top, left, height, width) in enumerate(boxes):
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + number, np.uint8)
        pixels[4 * top : 4 * (top + height), 6 * left : 6 * (left + width)] = RED
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return open_images(folder, workers=0)


def label(images: ImageSet, boxes: Sequence[tuple[int, int, int, int]], folder: Path) -> PartStore:
    store = PartStore.create(
        folder, images=len(images), grid=GRID, label_names=NAMES, teacher_digest="t", manifest_digest=images.digest
    )
    labels = np.zeros((len(images), GRID, GRID), np.uint8)
    for grid, (top, left, height, width) in zip(labels, boxes, strict=True):
        grid[top : top + height, left : left + width] = 1
    store.write(np.arange(len(images)), labels)
    store.finish()
    return store


def soft_maps(rows: Sequence[int], images: Tensor) -> Tensor:
    """As sure of the square as it is red; image 003 is the surest: its grey is 93."""
    red = (images[:, 0].float() - images[:, 1].float()) / 190
    grey = images[:, :, 0, 0].float().mean(1)
    square = (red * (0.9 - 0.01 * (grey - 93).abs()).view(-1, 1, 1)).clamp(0, 1)
    square = interpolate(square[:, None], GRID, mode="area")[:, 0]
    return torch.stack([1 - square, square, torch.zeros_like(square)], 1)


def sampled(tmp_path: Path, boxes: Sequence[tuple[int, int, int, int]]) -> PartSamples:
    images = draw(tmp_path / "images", boxes)
    path = tmp_path / "run" / "pictures" / "parts.npz"
    collect(images, label(images, boxes, tmp_path / "run"), soft_maps, 56, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["parts.npz"]
    return read_samples(path)


def boxes(count: int) -> list[tuple[int, int, int, int]]:
    """Boxes of 3 × 3 cells everywhere, corners included; the first is huge and the second one cell."""
    generator = np.random.default_rng(0)
    corners = [(0, 0), (11, 11), (0, 11), (11, 0), *generator.integers(0, 12, (count, 2)).tolist()]
    return [(1, 1, 12, 12), (5, 5, 1, 1), *((top, left, 3, 3) for top, left in corners)][:count]


def red(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where (n, 3, S, S) is red."""
    close: NDArray[np.bool_] = (images[:, 0] > 155) & (images[:, 1] < 60)
    return close


def test_crops_show_the_part_whole_and_outlined_where_it_is(tmp_path: Path) -> None:
    samples = sampled(tmp_path, boxes(20))
    own = samples.crop_labels == 1
    assert own.sum() == 8 and len(set(samples.crop_names[own])) == 8
    truth, found = red(samples.crops[own]), samples.regions[own]
    assert ((truth & found).sum((1, 2)) / (truth | found).sum((1, 2))).min() > 0.75
    # 3 × 3 cells are 12 × 18 pixels in a square of 1.3 · 18, of which nothing is cut off: not even in a corner.
    assert truth.mean((1, 2)) == pytest.approx(12 * 18 / (1.3 * 18) ** 2, abs=0.05)


def test_crops_are_of_the_usual_size_and_the_strongest_come_first(tmp_path: Path) -> None:
    samples = sampled(tmp_path, boxes(40))
    own = samples.crop_labels == 1
    assert not {"000.png", "001.png"} & set(samples.crop_names[own].tolist())  # the huge one and the stray cell
    assert (np.diff(samples.strengths[own]) <= 0).all()
    assert samples.crop_names[own][0] == "003.png"
    assert samples.strengths[own][0] == pytest.approx(0.9, abs=0.02)
    assert (np.diff(samples.crop_labels) >= 0).all()


def test_a_part_that_is_nowhere_has_no_crops(tmp_path: Path) -> None:
    samples = sampled(tmp_path, boxes(5))
    assert set(samples.crop_labels.tolist()) == {0, 1}
    assert (samples.shares[:, 2] == 0).all()


def test_images_maps_and_shares_are_those_of_their_rows(tmp_path: Path) -> None:
    places = boxes(40)
    samples = sampled(tmp_path, places)
    rows = [int(name[:3]) for name in samples.names.tolist()]
    assert rows == spread(40, 16) and rows[0] == 0 and rows[-1] == 39
    assert samples.aspects == pytest.approx(WIDTH / HEIGHT)
    for at, row in enumerate(rows):
        fine = samples.labels[at].repeat(16, 0).repeat(16, 1)
        assert (red(samples.images[at][None])[0] == (fine == 1)).mean() > 0.98
        assert ((samples.maps[at, 1] > 0.3) == (samples.labels[at] == 1)).all()
        assert samples.images[at, 0, 111, 223] in (90 + row, RED[0])
    assert samples.shares[:, 1] == pytest.approx([height * width / GRID**2 for _, _, height, width in places])
    assert samples.shares.sum(1) == pytest.approx(1)


def test_one_image_is_enough(tmp_path: Path) -> None:
    samples = sampled(tmp_path, [(2, 3, 4, 5)])
    assert samples.crop_labels.tolist() == [0, 1] and samples.images.shape == (1, 3, 224, 224)


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", boxes(9))
    store = label(images, boxes(9), tmp_path / "run")
    for name in ("a", "b"):
        collect(images, store, soft_maps, 56, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_missing_or_damaged_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    with refused(path, "--resume"):
        read_samples(path)
    np.savez(path.with_suffix(""), label_names=np.array(["a"]))
    whole = path.read_bytes()
    for content in (whole, whole[:-30], b"", b"not an archive"):
        path.write_bytes(content)
        with refused(path, "remove"):
            read_samples(path)


def test_the_largest_region_is_that_of_a_slow_search() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        where = generator.random((9, 9)) < 0.45
        left, regions = {(int(y), int(x)) for y, x in np.argwhere(where)}, []
        while left:
            reached, edge = set(), [left.pop()]
            while edge:
                y, x = edge.pop()
                reached.add((y, x))
                near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
                left -= near
                edge += near
            regions.append(reached)
        found = {(int(y), int(x)) for y, x in np.argwhere(_largest_region(where))}
        assert found in regions and len(found) == max(map(len, regions))
    assert not _largest_region(np.zeros((4, 4), bool)).any()


@pytest.mark.parametrize(("count", "most"), [(1, 16), (7, 16), (16, 16), (1000, 16)])
def test_rows_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    rows = spread(count, most)
    assert len(rows) == min(count, most) == len(set(rows))
    assert rows[0] == 0 and rows[-1] == count - 1
    assert np.diff(rows).max(initial=0) - np.diff(rows).min(initial=10**6) <= 1
