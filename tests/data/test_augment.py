"""Crops with classes: pure functions of (seed, epoch, row), changed as timm changes them."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN

from semmae.data.augment import LabelledCrops, augmentation, changed
from semmae.data.loaders import CropDataset, make_loader
from semmae.data.manifest import ImageSet, open_images

POLICY = "rand-m9-mstd0.5-inc1"
NAMES = [f"c{i % 2}/{i:02}.jpg" for i in range(6)]


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., Path]) -> ImageSet:
    return open_images(write_images(tmp_path / "photos", *NAMES))


def crops(images: ImageSet, policy: str = POLICY, seed: int = 0) -> LabelledCrops:
    changes = augmentation(policy, 16, IMAGENET_DEFAULT_MEAN)
    return LabelledCrops(images, range(6), 16, scale=(0.3, 1.0), seed=seed, policy=changes)


def test_an_item_depends_on_seed_epoch_and_row_alone(images: ImageSet) -> None:
    first = crops(images)[(3, 4)]
    random.seed(99)
    np.random.seed(99)
    states = random.getstate(), np.random.get_state()[1].tolist()

    again = crops(images)[(3, 4)]

    assert torch.equal(first["images"], again["images"]) and again["targets"] == again["row"] == 4
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # other draws go on as if nothing was
    for other in (crops(images)[(2, 4)], crops(images)[(3, 5)], crops(images, seed=1)[(3, 4)]):
        assert not torch.equal(first["images"], other["images"])


def test_workers_load_the_same_as_the_process_itself(images: ImageSet) -> None:
    keys = [(1, row) for row in range(6)]
    alone, shared = (next(iter(make_loader(crops(images), 6, sampler=keys, workers=count))) for count in (0, 2))
    assert torch.equal(alone["images"], shared["images"]) and alone["images"].dtype == torch.uint8
    assert alone["targets"].tolist() == shared["targets"].tolist() == list(range(6))


def test_without_a_policy_they_are_the_crops_of_pre_training(images: ImageSet) -> None:
    reference = CropDataset(images, 16, scale=(0.3, 1.0), seed=0)
    for key in [(0, 0), (5, 3)]:
        assert torch.equal(crops(images, "none")[key]["images"], reference[key]["images"][0])


def test_a_policy_does_what_it_does_in_timm() -> None:
    view = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    # As timm's create_transform(16, auto_augment=…, interpolation="bicubic") sets it up.
    settings = {"translate_const": 7, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    policy = rand_augment_transform(POLICY, settings)
    differ = 0
    for seed in range(12):
        random.seed(seed)
        np.random.seed(seed)
        expected = np.array(policy(Image.fromarray(view.permute(1, 2, 0).numpy())))
        found = changed(view, augmentation(POLICY, 16, IMAGENET_DEFAULT_MEAN), seed)
        assert np.array_equal(found.permute(1, 2, 0), expected)
        differ += not torch.equal(found, view)
    assert differ > 6


@pytest.mark.parametrize(
    "name", ["rand-m5-n1", "rand-m9-mstd0.5-inc1-tweights", "original", "v0", "3a", "augmix-m3-w2"]
)
def test_policies_of_timm_are_known_by_its_names(name: str) -> None:
    view = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    policy = augmentation(name, 16, IMAGENET_DEFAULT_MEAN)
    assert policy is not None
    assert any(not torch.equal(changed(view, policy, seed), view) for seed in range(8))


@pytest.mark.parametrize("name", ["rand-m10-n8-inc1-p1.0", "rand-m10-n8-p1.0", "original", "augmix-m10-w8"])
def test_full_strength_is_not_too_much(name: str) -> None:
    """timm posterises to 0 bits then, which Pillow refuses."""
    view = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    policy = augmentation(name, 16, IMAGENET_DEFAULT_MEAN)
    assert policy is not None
    for seed in range(60):
        changed(view, policy, seed)


@pytest.mark.parametrize("name", ["rand-q9", "rand9", "random", "v9", "augmix-x3", ""])
def test_a_policy_that_timm_does_not_know_is_refused(name: str) -> None:
    with refused("--augment", "rand-m9-mstd0.5-inc1"):
        augmentation(name, 16, IMAGENET_DEFAULT_MEAN)


def test_every_image_needs_its_class(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="6 images, but 5 targets"):
        LabelledCrops(images, range(5), 16)
