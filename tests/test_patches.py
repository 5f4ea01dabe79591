"""Patches against explicit loops, positions against their formula and a released checkpoint."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semmae.patches import (
    denormalize_patches,
    normalize_patches,
    patchify,
    resize_positions,
    sincos_positions,
    unpatchify,
)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 2), (6, 6, 3), (4, 4, 4), (4, 6, 2)])
def test_patches_run_over_rows_and_pixels_over_row_column_channel(height: int, width: int, size: int) -> None:
    images = torch.rand(2, 3, height, width)

    patches = patchify(images, size)

    expected = [
        [
            [
                image[channel, top + row, left + column]
                for row in range(size)
                for column in range(size)
                for channel in range(3)
            ]
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
        for image in images.numpy()
    ]
    assert np.array_equal(patches.numpy(), np.array(expected))


@pytest.mark.parametrize(("side", "size"), [(8, 2), (15, 3), (4, 4), (96, 8)])
def test_unpatchify_undoes_patchify(side: int, size: int) -> None:
    images, wide = torch.rand(2, 3, side, side), torch.rand(2, 5, side, 2 * side)

    assert torch.equal(unpatchify(patchify(images, size), size), images)
    assert torch.equal(unpatchify(patchify(wide, size), size, (side // size, 2 * side // size)), wide)


@pytest.mark.parametrize(("height", "width"), [(10, 8), (8, 10)])
def test_an_image_that_does_not_divide_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height}×{width} .*patch size 4"):
        patchify(torch.zeros(1, 3, height, width), 4)


def test_normalised_patches_have_the_statistics_of_the_release() -> None:
    patches = torch.randn(2, 5, 12, dtype=torch.float64) * 3 + 7

    normalized = normalize_patches(patches)

    for patch, found in zip(patches.flatten(0, 1).numpy(), normalized.flatten(0, 1).numpy(), strict=True):
        variance = ((patch - patch.mean()) ** 2).sum() / (len(patch) - 1)
        assert np.allclose(found, (patch - patch.mean()) / math.sqrt(variance + 1e-6), atol=1e-12)


def test_a_nearly_flat_patch_is_not_blown_up() -> None:
    """The 1e-6 is added to the variance, not to the deviation: a flat patch of noise 1e-4 stays below 0.1."""
    patches = 0.5 + 1e-4 * torch.randn(4, 192, dtype=torch.float64)

    deviation = normalize_patches(patches).std(dim=-1)

    assert torch.allclose(deviation, torch.full((4,), 1e-4 / math.sqrt(1.01e-6)).double(), rtol=0.2)
    assert torch.equal(normalize_patches(torch.full((1, 12), 0.25)), torch.zeros(1, 12))


def test_denormalising_undoes_normalising() -> None:
    patches = torch.randn(2, 5, 48, dtype=torch.float64) * torch.rand(2, 5, 1) + 3

    assert torch.allclose(denormalize_patches(normalize_patches(patches), patches), patches, atol=1e-12)


def positions_by_formula(side: int, width: int) -> np.ndarray:
    """Number by number: quarters of the width are sin and cos of the column, sin and cos of the row."""
    quarter = width // 4
    table = np.zeros((1, 1 + side * side, width))
    for row in range(side):
        for column in range(side):
            for index in range(quarter):
                wavelength = 10000 ** (index / quarter)
                table[0, 1 + row * side + column, index::quarter] = (
                    math.sin(column / wavelength),
                    math.cos(column / wavelength),
                    math.sin(row / wavelength),
                    math.cos(row / wavelength),
                )
    return table


@pytest.mark.parametrize(("side", "width"), [(1, 4), (3, 8), (14, 48), (28, 32)])
def test_positions_are_those_of_the_formula(side: int, width: int) -> None:
    assert np.abs(sincos_positions(side, width).numpy() - positions_by_formula(side, width)).max() < 1e-7


def test_positions_are_those_of_the_released_checkpoint(shared: Path) -> None:
    folder = shared / "vectors/mae-p8"
    config = json.loads((folder / "config.json").read_text())
    with torch.serialization.safe_globals([argparse.Namespace]):
        released = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]

    for name in ("pos_embed", "decoder_pos_embed"):
        side = config["image_size"] // config["patch_size"]
        assert torch.allclose(sincos_positions(side, released[name].shape[2]), released[name], rtol=0, atol=1e-7)


def test_a_width_without_quarters_is_refused() -> None:
    with pytest.raises(ValueError, match="width 6 .*4"):
        sincos_positions(4, 6)


@pytest.fixture
def positions() -> Tensor:
    return torch.randn(1, 1 + 8 * 8, 12)


def test_resizing_to_the_same_grid_changes_nothing(positions: Tensor) -> None:
    assert torch.equal(resize_positions(positions, 8), positions)


@pytest.mark.parametrize("side", [1, 4, 7, 12, 28])
def test_resizing_keeps_the_class_token_and_constants(positions: Tensor, side: int) -> None:
    positions[:, 1:] = torch.randn(12)

    resized = resize_positions(positions, side)

    assert resized.shape == (1, 1 + side * side, 12)
    assert torch.equal(resized[:, :1], positions[:, :1])
    assert torch.allclose(resized[:, 1:], positions[:, 1:2].expand(-1, side * side, -1), atol=1e-5)


@pytest.mark.parametrize("side", [4, 12, 16])
def test_resizing_keeps_rows_rows_and_columns_columns(side: int) -> None:
    """A ramp over the columns stays one, in the middle of the grid at the exact place of each patch's centre."""
    ramp = (torch.arange(8.0) + 0.5) / 8
    grid = torch.stack([ramp.expand(8, 8), 2 * ramp[:, None].expand(8, 8)], dim=2)
    positions = torch.cat([torch.zeros(1, 1, 2), grid.reshape(1, 64, 2)], dim=1)

    resized = resize_positions(positions, side)[0, 1:].reshape(side, side, 2)

    centres = (torch.arange(side) + 0.5) / side
    middle = slice(side // 4, side - side // 4)
    assert torch.allclose(resized[:, middle, 0], centres[middle].expand(side, -1), atol=0.02)
    assert torch.allclose(resized[middle, :, 1], 2 * centres[middle, None].expand(-1, side), atol=0.04)
    assert torch.allclose(resized[:, :, 0].std(dim=0), torch.zeros(side), atol=1e-5)
