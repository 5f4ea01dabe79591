"""The guided filter against least squares in every window, and what it keeps."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from semmae.filters import guided_filter, guides, refine_maps, upsample_maps


def windows(values: np.ndarray, radius: int) -> np.ndarray:
    """Every window of (C, H, W), the outermost values going on: (H, W, C, pixels)."""
    padded = np.pad(values, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    found = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2, axis=(1, 2))
    return found.transpose(1, 2, 0, 3, 4).reshape(*values.shape[1:], len(values), -1)


def slow_filter(image: np.ndarray, level: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """One map (H, W) of an image (3, H, W): a ridge regression a window, and at a pixel the mean of its windows'."""
    colours, levels = windows(image, radius), windows(level[None], radius)
    lines = np.zeros((4, *level.shape))
    for row, column in np.ndindex(*level.shape):
        points, values = colours[row, column].T, levels[row, column, 0]
        # Least squares with a penalty on the slopes, eps a pixel: as further pixels, and none on the offset.
        penalty = np.concatenate([np.sqrt(eps * len(points)) * np.eye(3), np.zeros((3, 1))], 1)
        system = np.concatenate([np.concatenate([points, np.ones((len(points), 1))], 1), penalty])
        lines[:, row, column] = np.linalg.lstsq(system, np.concatenate([values, np.zeros(3)]), rcond=None)[0]
    means = windows(lines, radius).mean(3)
    return np.einsum("hwc,chw->hw", means[..., :3], image) + means[..., 3]


def some(batch: int = 2, count: int = 3, height: int = 7, width: int = 9) -> tuple[Tensor, Tensor]:
    """Images and maps, of double precision."""
    return torch.rand(batch, 3, height, width).double(), torch.rand(batch, count, height, width).double()


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-3), (2, 1e-2), (3, 1e-4)])
def test_in_every_window_a_map_is_the_best_line_through_its_colours(radius: int, eps: float) -> None:
    images, maps = some()

    found = guided_filter(images, maps, radius, eps)

    for image, part in np.ndindex(2, 3):
        expected = slow_filter(images[image].numpy(), maps[image, part].numpy(), radius, eps)
        assert np.abs(found[image, part].numpy() - expected).max() < 1e-8


def test_a_constant_map_stays() -> None:
    images, _ = some()

    assert (guided_filter(images, torch.full((2, 1, 7, 9), 0.25).double(), 2, 1e-4) - 0.25).abs().max() < 1e-9


def test_a_map_that_is_linear_in_the_colours_stays() -> None:
    images, _ = some()
    maps = torch.einsum("kc,bchw->bkhw", torch.randn(2, 3).double(), images) + 0.5

    assert (guided_filter(images, maps, 2, 1e-12) - maps).abs().max() < 1e-6
    # Where an edge is nothing beside eps, all that is left is means over windows, of windows.
    blurred = maps
    for _ in range(2):
        blurred = functional.avg_pool2d(functional.pad(blurred, (2,) * 4, mode="replicate"), 5, stride=1)
    assert (guided_filter(images, maps, 2, 1e6) - blurred).abs().max() < 1e-5


def test_maps_at_once_are_those_one_by_one() -> None:
    images, maps = some()

    found = guided_filter(images, maps, 2, 1e-3)

    for image, part in np.ndindex(2, 3):
        alone = guided_filter(images[image : image + 1], maps[image : image + 1, part : part + 1], 2, 1e-3)
        assert torch.allclose(found[image, part], alone[0, 0], atol=1e-12)


def test_lots_of_places_that_are_solved_together_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, images = torch.rand(3, 4, 6, 6), torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    expected = refine_maps(maps, images)
    monkeypatch.setattr("semmae.filters._LOT", 100)  # of 432
    assert torch.equal(refine_maps(maps, images), expected)


def test_refined_maps_share_out_every_place() -> None:
    """The filter is linear in the map, and keeps a constant one: what sums to 1 still does, but for rounding."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    images[1, :, 8:] = 77  # windows of one colour

    found = refine_maps((4 * torch.randn(2, 5, 4, 4)).softmax(1), images)

    assert found.shape == (2, 5, 32, 32) and found.isfinite().all()
    assert (found.sum(1) - 1).abs().max() < 1e-4


def test_a_coarse_border_moves_to_that_of_the_image() -> None:
    """Two halves of an image, and a map whose border lies a quarter of a patch beside theirs."""
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[..., 34:] = 200
    maps = torch.zeros(1, 2, 8, 8)
    maps[:, 0, :, :4], maps[:, 1, :, 4:] = 1, 1

    labels = [found.argmax(1)[0] for found in (upsample_maps(maps, 64), refine_maps(maps, images))]

    right = (torch.arange(64) >= 34).long().expand(64, -1)
    assert (labels[0] != right).sum() == 2 * 64 and torch.equal(labels[1], right)


def test_guides_are_images_at_the_resolution_of_labels() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)

    assert torch.equal(guides(images, 32), images)
    small = guides(images, 8)
    assert small.dtype == torch.uint8 and small.shape == (2, 3, 8, 8)
    assert (guides(torch.full((1, 3, 30, 30), 93, dtype=torch.uint8), 7) == 93).all()
    halves = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    halves[..., 16:] = 255
    assert guides(halves, 4)[0, 0, 1].tolist()[::3] == [0, 255]
