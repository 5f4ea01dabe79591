"""Augmentation of images with their labels: both alike, a pure function of its seeds; and the stream of steps."""

import colorsys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from semmae.data.coding import IGNORED, Coding
from semmae.data.crop import at_centres
from semmae.data.samplers import StepSampler
from semmae.data.segment_crops import (
    Augmentation,
    SegmentCrops,
    WholeLabelled,
    augmented,
    distorted,
    scaled_size,
)
from semmae.data.segmentation import open_segmentation

FILL = (1, 2, 3)


def painted(height: int, width: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Labels of coarse random fields, and an image whose colour says the label: 40, 80, 120 … in every channel."""
    fields = torch.from_numpy(rng.integers(0, 5, (3, 4)).astype(np.uint8))
    labels = at_centres(fields, height, width)
    return (40 * (labels + 1)).expand(3, -1, -1), labels


def test_hues_turn_by_up_to_18_of_180() -> None:
    """As mmsegmentation's do: 36 degrees, either way."""
    red = torch.tensor([140, 100, 100], dtype=torch.uint8).view(3, 1, 1).expand(-1, 2, 2)
    turns = []
    for seed in range(400):
        pixel = distorted(red, np.random.default_rng(seed))[:, 0, 0] / 255
        turns.append((colorsys.rgb_to_hsv(*pixel.tolist())[0] + 0.5) % 1 - 0.5)
    assert -0.11 < min(turns) < -0.09 and 0.09 < max(turns) < 0.11


def test_image_and_labels_change_alike() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = rng.integers(20, 90, 2).tolist()
        image, labels = augmented(*painted(*size, rng), Augmentation(32, colour=False, fill=FILL), rng)
        assert image.shape == (3, 32, 32) and labels.shape == (32, 32)
        outside = labels == IGNORED
        assert torch.equal(image[:, outside], torch.tensor(FILL, dtype=torch.uint8)[:, None].expand(-1, outside.sum()))
        wanted = 40 * (labels.float() + 1)
        near = ((image[0].float() - wanted).abs() < 20)[~outside].float()
        assert near.mean() > 0.8  # but for the borders of the fields, which are smoothed in the image


def test_a_flip_and_the_scales_are_drawn() -> None:
    """Over many draws: half are flipped, and scales reach over their range, uniformly."""
    rng = np.random.default_rng(0)
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)
    how = Augmentation(16, scales=(1.0, 2.0), most_of_one=1.0, colour=False)
    steps = []
    for _ in range(400):
        _, labels = augmented(ramp.expand(3, -1, -1), ramp, how, rng)
        steps.append(float(labels[0].float().diff().mean()))  # 64 labels over 16 to 32 pixels: 4 to 2 a pixel
    flipped = np.mean([step < 0 for step in steps])
    assert 0.42 < flipped < 0.58
    scales = 4 / np.abs(steps)
    assert 1.0 <= scales.min() < 1.1 and 1.9 < scales.max() <= 2.2
    assert np.mean(scales) == pytest.approx(1.5, abs=0.06)


def test_a_crop_of_one_class_is_drawn_again() -> None:
    """One class fills nine tenths of the image: without the limit, of most crops more than 3/4."""
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[:, 90:] = 1
    filled = {}
    for limit in (0.75, 1.0):
        rng = np.random.default_rng(0)
        how = Augmentation(20, scales=(5.0, 5.0), most_of_one=limit, colour=False)
        crops = [augmented(labels.expand(3, -1, -1), labels, how, rng)[1] for _ in range(100)]
        filled[limit] = np.mean([max((crop == 0).float().mean(), (crop == 1).float().mean()) <= 0.75 for crop in crops])
    assert filled[0.75] > 0.4 > 0.2 > filled[1.0]


def test_an_item_is_a_function_of_seed_pass_and_row(creatures: Path) -> None:
    data = open_segmentation(creatures, Coding())
    crops = {seed: SegmentCrops(data.train, Augmentation(32), seed) for seed in (0, 1)}
    first = crops[0][(3, 5)]
    again = SegmentCrops(data.train, Augmentation(32), 0)[(3, 5)]
    assert torch.equal(first["images"], again["images"]) and torch.equal(first["labels"], again["labels"])
    for other in (crops[0][(4, 5)], crops[1][(3, 5)], crops[0][(3, 6)]):
        assert not torch.equal(first["images"], other["images"])


def test_colours_change_and_labels_do_not(creatures: Path) -> None:
    data = open_segmentation(creatures, Coding())
    plain, coloured = (SegmentCrops(data.train, Augmentation(32, colour=colour)) for colour in (False, True))
    pairs = [(plain[row], coloured[row]) for row in range(len(plain))]
    assert all(torch.equal(one["labels"], other["labels"]) for one, other in pairs)
    changed = [not torch.equal(one["images"], other["images"]) for one, other in pairs]
    assert np.mean(changed) > 0.8  # each of four changes spares every other image


@pytest.mark.parametrize("size", [(7, 30), (30, 7), (13, 13)])
def test_labels_are_resized_by_nearest_neighbour(size: tuple[int, int]) -> None:
    labels = torch.randint(0, 9, (19, 11), dtype=torch.uint8)
    expected = functional.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0]
    assert torch.equal(at_centres(labels, *size), expected.byte())


def test_scale_is_by_the_short_side_but_for_very_long_images() -> None:
    assert scaled_size((200, 300), 100) == (100, 150)
    assert scaled_size((900, 100), 100) == (400, 44)  # 2048 by 512 in mmsegmentation


def test_whole_images_keep_their_labels(creatures: Path) -> None:
    data = open_segmentation(creatures, Coding())
    item = WholeLabelled(data.val, 20)[1]
    assert item["image"].shape == (3, 20, 20)
    assert torch.equal(item["labels"], data.val.labels(1)) and item["row"] == 1


def test_the_bytes_of_an_item_are_known_before_it_is_loaded(creatures: Path) -> None:
    data = open_segmentation(creatures, Coding())
    for found in (WholeLabelled(data.val, 20), SegmentCrops(data.train, Augmentation(20))):
        sizes = [sum(each.nbytes for each in found[row].values() if isinstance(each, Tensor)) for row in range(4)]
        assert found.item_bytes == max(sizes)


def test_rounds_are_one_stream_of_shuffled_passes() -> None:
    sampler = StepSampler(7, seed=3, steps=2, batch_size=5)
    each = []
    for epoch in range(7):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == 10
        each += list(sampler)
    assert len(each) == 70
    for number in range(10):  # ten passes of seven rows, each whole, in its own order
        assert [epoch for epoch, _ in each[7 * number : 7 * number + 7]] == [number] * 7
        assert sorted(row for _, row in each[7 * number : 7 * number + 7]) == list(range(7))
    assert len({tuple(row for _, row in each[7 * number : 7 * number + 7]) for number in range(10)}) > 5


def test_ranks_share_the_stream() -> None:
    whole = StepSampler(7, seed=3, steps=2, batch_size=6)
    dealt = []
    for rank in range(3):
        sampler = StepSampler(7, seed=3, steps=2, batch_size=6)
        sampler._num_replicas, sampler._rank = 3, rank
        sampler.set_epoch(4)
        dealt.append(list(sampler))
        assert len(sampler) == len(dealt[-1]) == 4
    whole.set_epoch(4)
    assert list(chain.from_iterable(zip(*dealt, strict=True))) == list(whole)
