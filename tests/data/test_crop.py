"""Crops are compared with torchvision's, part crops with the same crop of a painted grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from semmae.data.crop import (
    WHOLE,
    Crop,
    centre_crop,
    crop_image,
    crop_parts,
    crop_scores,
    crop_tokens,
    pixel_box,
    random_crop,
)

crops = st.builds(
    lambda top, left, bottom, right, flip: Crop(top, left, bottom * (1 - top), right * (1 - left), flip),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.booleans(),
)


grids = st.tuples(st.integers(1, 15), st.integers(1, 15))


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_random_crop_is_whole_pixels_inside_the_image(height: int, width: int, seed: int) -> None:
    crop = random_crop(height, width, np.random.default_rng(seed))
    top, left, h, w = pixel_box(crop, height, width)
    assert top >= 0 and top + h <= height and left >= 0 and left + w <= width and h > 0 and w > 0
    assert (top, left, h, w) == pytest.approx(
        (crop.top * height, crop.left * width, crop.height * height, crop.width * width)
    )


@pytest.mark.parametrize(("height", "width"), [(100, 100), (90, 200), (300, 60), (20, 500)])
def test_random_crop_has_the_distribution_of_torchvision(height: int, width: int) -> None:
    count, rng = 4000, np.random.default_rng(0)
    image = torch.empty(1, height, width)
    torch.manual_seed(0)
    draw = RandomResizedCrop.get_params
    theirs = np.array([draw(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = np.array([pixel_box(random_crop(height, width, rng), height, width) for _ in range(count)])
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        difference = np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)
        assert (np.abs(difference) <= 0.04 * np.array([height, width, height, width]) + 1).all()


def test_central_crop_where_no_draw_fits() -> None:
    crop = random_crop(10, 1000, np.random.default_rng(0), scale=(0.9, 1.0))
    assert pixel_box(crop, 10, 1000) == (0, 493, 10, 13)
    crop = random_crop(1000, 10, np.random.default_rng(0), scale=(0.9, 1.0))
    assert pixel_box(crop, 1000, 10) == (493, 0, 13, 10)


@given(st.integers(8, 300), st.integers(8, 300), grids, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_crops_of_any_shape_are_stretched_by_a_third_at_most(
    height: int, width: int, shape: tuple[int, int], seed: int
) -> None:
    """And the centre of that shape is not stretched at all."""
    crop = random_crop(height, width, np.random.default_rng(seed), shape=shape)
    _, _, h, w = pixel_box(crop, height, width)
    low, high = (w - 0.5) / (h + 0.5), (w + 0.5) / (h - 0.5)  # whole pixels
    own = shape[1] / shape[0]
    assert low <= 4 / 3 * own + 1e-9 and high >= 3 / 4 * own - 1e-9
    centre = centre_crop(height, width, 0.5, shape)
    assert centre.width * width / (centre.height * height) == pytest.approx(own)
    assert max(centre.width, centre.height) == pytest.approx(0.5) and centre.left + centre.width / 2 == 0.5


def test_flip_probability() -> None:
    rng = np.random.default_rng(0)
    flips = [random_crop(9, 9, rng).flip for _ in range(2000)]
    assert 0.45 < np.mean(flips) < 0.55


@given(crops, st.integers(1, 90), st.integers(1, 90), st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_crop_image_is_torchvisions_resized_crop(crop: Crop, height: int, width: int, size: int) -> None:
    image = noise(height, width).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # strides as decoded
    box = pixel_box(crop, height, width)
    expected = F.resized_crop(image, *box, [size, size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    expected = F.horizontal_flip(expected) if crop.flip else expected
    assert torch.equal(crop_image(image, crop, size), expected)


@pytest.mark.parametrize(
    "crop", [WHOLE, Crop(0.2, 0.4, 0.8, 0.6, True), Crop(0, 0.3, 0.4, 0.5, False), Crop(0.4, 0.1, 0.3, 0.9, True)]
)
def test_crop_image_is_hardly_to_be_told_from_pillows(crop: Crop) -> None:
    coarse = Image.fromarray(noise(12, 16).permute(1, 2, 0).numpy()).resize((500, 375), Image.Resampling.BICUBIC)
    fine = np.asarray(coarse) + np.random.default_rng(0).normal(0, 8, (375, 500, 1))
    whole = Image.fromarray(fine.clip(0, 255).astype(np.uint8))
    top, left, height, width = pixel_box(crop, 375, 500)
    cut = whole.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BICUBIC)
    expected = np.asarray(cut)[:, ::-1] if crop.flip else np.asarray(cut)
    image = torch.from_numpy(np.array(whole)).permute(2, 0, 1)
    difference = np.abs(expected.astype(int) - crop_image(image, crop, 224).permute(1, 2, 0).numpy())
    assert difference.mean() < 0.1 and difference.max() <= 4  # of 255: torch rounds the weights to 16 bits


def test_crop_image_of_gray_read_with_stride_zero() -> None:
    gray = noise(30, 20)[:1]
    assert torch.equal(crop_image(gray.expand(3, -1, -1), WHOLE, 16), crop_image(gray.repeat(3, 1, 1), WHOLE, 16))


@given(crops, st.integers(1, 16), grids, st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_crop_parts_agrees_with_a_loop(crop: Crop, grid: int, side: tuple[int, int], seed: int) -> None:
    rows, columns = side
    labels = np.random.default_rng(seed).integers(0, 255, (grid, grid)).astype(np.uint8)
    found = crop_parts(labels, crop, side)
    assert found.dtype == torch.int64 and found.shape == (rows * columns,)
    for place, label in enumerate(found.tolist()):
        row, column = divmod(place, columns)
        y = (crop.top + crop.height * (row + 0.5) / rows) * grid
        across = (column + 0.5) / columns
        x = (crop.left + crop.width * (1 - across if crop.flip else across)) * grid
        if min(abs(y - round(y)), abs(x - round(x))) > 1e-9:  # on a border rounding decides, and either cell is right
            assert label == labels[min(int(y), grid - 1), min(int(x), grid - 1)]
    assert torch.equal(crop_parts(torch.from_numpy(labels), crop, side), found)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_parts_follow_the_image(seed: int) -> None:
    """Paint the part grid as an image, crop both: the patch centres of the picture show the labels."""
    rng = np.random.default_rng(seed)
    grid, cell, side = 7, 16, (8, 8) if seed % 2 else (6, 10)
    labels = rng.integers(0, 2, (grid, grid)).astype(np.uint8)
    picture = torch.from_numpy(labels * 255).repeat_interleave(cell, 0).repeat_interleave(cell, 1).expand(3, -1, -1)
    size = (8 * side[0], 8 * side[1])
    crop = random_crop(grid * cell, grid * cell, rng, shape=size)
    cut = crop_image(picture, crop, size)[0].view(side[0], 8, side[1], 8)
    shown = cut[:, 3:5, :, 3:5].float().mean((1, 3)) / 255
    parts = crop_parts(labels, crop, side).view(side)
    clear = (shown < 0.05) | (shown > 0.95)  # where a cell's border passes the centre, either label is right
    assert clear.float().mean() > 0.4
    assert torch.equal(parts[clear], (shown[clear] > 0.5).long())


@given(crops, st.integers(1, 14))
@settings(max_examples=50, deadline=None)
def test_flip_mirrors_image_and_parts_alike(crop: Crop, side: int) -> None:
    other = Crop(crop.top, crop.left, crop.height, crop.width, not crop.flip)
    image, labels = noise(31, 47), np.arange(81, dtype=np.uint8).reshape(9, 9)
    assert torch.equal(crop_image(image, crop, 20), crop_image(image, other, 20).flip(-1))
    mirrored = crop_parts(labels, other, side).view(side, side).flip(-1).flatten()
    # A centre on the very border of two cells may fall either way.
    assert (mirrored != crop_parts(labels, crop, side)).float().mean() < 0.3


def test_whole_keeps_the_grid() -> None:
    labels = np.arange(49, dtype=np.uint8).reshape(7, 7)
    assert crop_parts(labels, WHOLE, 7).tolist() == list(range(49))
    image = noise(12, 12)
    assert torch.equal(crop_image(image, WHOLE, 12), image)


@given(crops, st.integers(1, 15), grids, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_scores_are_those_of_grid_sample(crop: Crop, cells: int, side: tuple[int, int], seed: int) -> None:
    grid = np.random.default_rng(seed).integers(0, 255, (cells, cells), np.uint8)
    expected = sampled(torch.from_numpy(grid).double()[None], crop, side)
    found = crop_scores(grid, crop, side)
    assert found.dtype == torch.float32 and found.shape == (math.prod(side),)
    assert torch.allclose(found, expected.flatten().float(), atol=1e-3)


def sampled(channels: torch.Tensor, crop: Crop, side: tuple[int, int]) -> torch.Tensor:
    """Channels (C, h, w) of a whole image at the centres of a crop's patches, (C, *side), by torch."""
    down, across = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells for cells in side)
    y, x = crop.top + crop.height * down, crop.left + crop.width * (1 - across if crop.flip else across)
    places = torch.stack([x[None, :].expand(side[0], -1), y[:, None].expand(-1, side[1])], dim=2) * 2 - 1
    return functional.grid_sample(channels[None], places[None], padding_mode="border", align_corners=False)[0]


@given(crops, grids, grids, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_tokens_are_those_of_grid_sample(crop: Crop, cells: tuple[int, int], side: tuple[int, int], seed: int) -> None:
    tokens = np.random.default_rng(seed).standard_normal((math.prod(cells), 5)).astype(np.float16)
    channels = torch.from_numpy(tokens).double().T.reshape(5, *cells)
    found = crop_tokens(tokens, crop, side, cells)
    assert found.dtype == torch.float16 and found.shape == (math.prod(side), 5)
    assert torch.allclose(found.double(), sampled(channels, crop, side).flatten(1).T, atol=3e-3)


def test_tokens_of_the_whole_image_on_their_own_grid_are_themselves() -> None:
    tokens = np.random.default_rng(0).standard_normal((14 * 14, 8)).astype(np.float16)
    assert crop_tokens(tokens, WHOLE, 14).tolist() == tokens.tolist()


def test_scores_of_the_whole_image_on_their_own_grid_are_themselves() -> None:
    grid = np.random.default_rng(0).integers(0, 255, (14, 14), np.uint8)
    assert crop_scores(grid, WHOLE, 14).tolist() == grid.ravel().tolist()
