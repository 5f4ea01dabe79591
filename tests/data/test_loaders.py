"""Batches are pure functions of (seed, epoch, row), whatever the workers and ranks."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.v2 import functional as F

from semmae.data.colour import GLOBAL_CHANCES, PLAIN_CHANCES, draw_changes
from semmae.data.crop import WHOLE, Crop, crop_image, crop_parts, crop_scores, random_crop
from semmae.data.loaders import CropDataset, LocalCrops, WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.data.samplers import EpochSampler, StepSampler

NAMES = [f"c{i % 2}/{i:02}.jpg" for i in range(11)]


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., Path]) -> ImageSet:
    return open_images(write_images(tmp_path / "photos", *NAMES))


def test_sampler_is_a_permutation_of_its_own_for_each_epoch() -> None:
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert list(sampler) == first and len(first) == len(sampler) == 50
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1} and [row for _, row in first] != [row for _, row in second]
    assert sorted(row for _, row in second) == list(range(50))
    assert list(EpochSampler(50, seed=2)) != first
    assert [row for _, row in EpochSampler(5, shuffle=False)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("length", "ranks"), [(10, 3), (9, 3), (2, 5), (1, 4), (17, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_an_epoch_evenly(length: int, ranks: int, shuffle: bool) -> None:
    shares = [list(EpochSampler(length, 0, shuffle, num_replicas=ranks, rank=rank)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {-(-length // ranks)}
    together = [share[i][1] for i in range(len(shares[0])) for share in shares]
    alone = [row for _, row in EpochSampler(length, 0, shuffle)]
    assert together[:length] == alone and set(together) == set(range(length))


@pytest.mark.parametrize(("length", "step"), [(33, 8), (8, 8), (47, 12), (3, 8)])
def test_the_images_of_a_step_are_the_same_for_any_number_of_ranks(length: int, step: int) -> None:
    found = []
    for ranks in (1, 2, 4):
        each = step // ranks
        shares = [list(EpochSampler(length, 1, multiple=each, num_replicas=ranks, rank=rank)) for rank in range(ranks)]
        steps = [[key for share in shares for key in share[at : at + each]] for at in range(0, len(shares[0]), each)]
        found.append([sorted(keys) for keys in steps])
    assert found[0] == found[1] == found[2] and len(found[0]) == max(1, length // step)


@pytest.mark.parametrize("workers", [0, 2])
def test_begun_in_the_middle_an_epoch_ends_as_the_whole_one(images: ImageSet, workers: int) -> None:
    """And the epochs after it are whole; workers fetch ahead of the batch that is asked for."""
    crops = CropDataset(images, 16)

    def batches(epochs: range, begin: tuple[int, int] | None = None) -> list[list[list[float]]]:
        sampler = EpochSampler(len(images), seed=3)
        loader = make_loader(crops, 2, sampler=sampler, workers=workers, drop_last=True)
        if begin is not None:
            sampler.begin_at(*begin)
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found += [batch["crops"].flatten(1).tolist() for batch in loader]
        return found

    whole = batches(range(1, 4))
    each = len(whole) // 3
    assert each > 1
    for done in range(each):
        assert batches(range(1, 4), (1, 2 * done)) == whole[done:]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_leaves_out_what_it_has_seen(ranks: int) -> None:
    for rank in range(ranks):
        place = {"num_replicas": ranks, "rank": rank}
        epoch, classes = EpochSampler(17, 1, **place), EpochSampler(17, 1, classes=[0] * 12 + [1] * 5, **place)
        steps = StepSampler(7, 1, steps=4, batch_size=6)
        steps._num_replicas, steps._rank = ranks, rank
        for sampler in (epoch, classes, steps):
            sampler.set_epoch(2)
            whole = list(sampler)
            for seen in range(len(whole)):
                sampler.begin_at(2, seen)
                assert list(sampler) == whole[seen:]
                assert len(sampler) == len(whole)  # by which schedules count


def test_crops_depend_on_seed_epoch_and_row_only(images: ImageSet) -> None:
    data = CropDataset(images, 16, seed=5)
    once = data[(2, 7)]["images"]
    data[(0, 1)]
    assert torch.equal(data[(2, 7)]["images"], once) and once.shape == (1, 3, 16, 16) and once.dtype == torch.uint8
    for other in (data[(3, 7)], data[(2, 6)], CropDataset(images, 16, seed=6)[(2, 7)]):
        assert not torch.equal(other["images"], once)


def test_local_crops_come_beside_the_others(images: ImageSet) -> None:
    local = LocalCrops(count=3, size=8, scale=(0.05, 0.25))
    data = CropDataset(images, 16, views=2, scale=(0.25, 1.0), seed=5, local=local)
    item = data[(2, 7)]
    assert item["local"].shape == (3, 3, 8, 8) and item["local"].dtype == torch.uint8
    assert torch.equal(data[(2, 7)]["local"], item["local"])
    assert torch.equal(item["images"], CropDataset(images, 16, views=2, scale=(0.25, 1.0), seed=5)[(2, 7)]["images"])
    # Drawn after the two global crops, from the same random numbers.
    rng = np.random.default_rng((5, 2, 7))
    image = images.read(7)
    scales = [(0.25, 1.0)] * 2 + [local.scale] * 3
    crops = [random_crop(image.shape[1], image.shape[2], rng, scale) for scale in scales]
    assert torch.equal(item["local"], torch.stack([crop_image(image, crop, 8) for crop in crops[2:]]))


def test_a_batch_holds_the_items(images: ImageSet) -> None:
    """What is done for a whole batch at once gives what each item alone does."""
    local = LocalCrops(count=2, size=8, scale=(0.05, 0.25))
    data = CropDataset(images, 16, views=2, scale=(0.25, 1.0), seed=5, colour=True, local=local)
    keys = [(2, 7), (0, 3), (2, 7)]
    for item, key in zip(data.__getitems__(keys), keys, strict=True):
        alone = data[key]
        tensors = {"images", "local", "crops", "changes", "local_changes"}
        assert item.keys() == alone.keys() == tensors | {"row"} and item["row"] == key[1]
        views = {name: torch.stack(item[name]) for name in ("images", "local")}  # lists, for `collate`
        assert all(torch.equal((item | views)[name], alone[name]) for name in tensors)


def test_views_have_chances_of_their_own_and_local_crops_the_plain_ones(images: ImageSet) -> None:
    local = LocalCrops(count=2, size=8, scale=(0.05, 0.25))
    given: dict[str, Any] = {"views": 2, "scale": (0.25, 1.0), "seed": 5, "colour": True, "local": local}
    item = CropDataset(images, 16, chances=GLOBAL_CHANCES, **given)[(2, 7)]
    rng, image = np.random.default_rng((5, 2, 7)), images.read(7)
    for name, changes, size, scale, each in (
        ("images", "changes", 16, (0.25, 1.0), GLOBAL_CHANCES),
        ("local", "local_changes", 8, local.scale, [PLAIN_CHANCES] * 2),
    ):
        crops = [random_crop(image.shape[1], image.shape[2], rng, scale) for _ in each]
        assert torch.equal(item[changes], draw_changes(rng, each))
        assert torch.equal(item[name], torch.stack([crop_image(image, crop, size) for crop in crops]))
    with pytest.raises(ValueError, match="2 views, but 1 chances"):
        CropDataset(images, 16, chances=GLOBAL_CHANCES[:1], **given)


def test_large_photos_are_decoded_no_smaller_than_their_smallest_crop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((960, 720), Image.Resampling.BICUBIC)
    fine = np.asarray(coarse) + rng.normal(0, 8, (720, 960, 1))
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(tmp_path / "large.jpg", quality=95)
    photo = open_images(tmp_path)
    # 720 pixels of height allow 1/4 for crops of 60: the smallest, a fifth of the area, are 69 × 93 pixels or wider.
    data = CropDataset(photo, 60, seed=1)
    for epoch in range(20):
        item = data[(epoch, 0)]
        crop = _crop_of(item)
        assert min(crop.height * 180, crop.width * 240) >= 60
        whole = crop_image(photo.read(0), crop, 60)
        assert (item["images"][0].int() - whole.int()).abs().float().mean() < 2
    stretched = WholeDataset(photo, 60)[0]["image"]
    assert (stretched.int() - crop_image(photo.read(0), WHOLE, 60).int()).abs().float().mean() < 1
    # Small crops count too: a fiftieth of the area at 60 pixels needs the whole photo.
    local = CropDataset(photo, 60, seed=1, local=LocalCrops(count=1, size=60, scale=(0.02, 0.2)))
    assert torch.equal(local[0]["images"][0], crop_image(photo.read(0), _crop_of(local[0]), 60))


def _crop_of(item: dict[str, torch.Tensor]) -> Crop:
    top, left, height, width, flip = item["crops"][0].tolist()
    return Crop(top, left, height, width, bool(flip))


def test_workers_change_nothing(images: ImageSet) -> None:
    def epoch(workers: int) -> list[dict[str, torch.Tensor]]:
        sampler = EpochSampler(len(images), seed=3)
        loader = make_loader(
            CropDataset(images, 12, views=2, colour=True), 4, sampler=sampler, workers=workers, drop_last=True
        )
        batches = []
        for number in range(2):
            sampler.set_epoch(number)
            batches += list(loader)
        return batches

    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone, shared = epoch(0), epoch(2)
    assert len(alone) == len(shared) == 4
    for one, other in zip(alone, shared, strict=True):
        assert one["images"].shape == (4, 2, 3, 12, 12)
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["row"], other["row"])
        assert one["changes"].colours.shape == (4, 2, 3, 4)
        assert all(map(torch.equal, one["changes"], other["changes"]))
    assert torch.equal(torch.get_rng_state(), state)  # loading must not move the global random numbers


def test_parts_are_cut_as_the_image(images: ImageSet, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (len(images), 9, 9)).astype(np.uint8)
    store = PartStore.create(
        tmp_path / "p",
        images=len(images),
        grid=9,
        label_names=list("abcde"),
        teacher_digest="t",
        manifest_digest=images.digest,
    )
    store.write(np.arange(len(images)), labels)
    item = CropDataset(images, 16, seed=1, parts=store, side=4)[(3, 2)]
    crop = random_crop(20, 28, np.random.default_rng((1, 3, 2)))
    assert torch.equal(item["images"][0], crop_image(images.read(2), crop, 16)) and item["row"] == 2
    assert torch.equal(item["parts"], crop_parts(labels[2], crop, 4)) and item["parts"].dtype == torch.int64
    with pytest.raises(ValueError, match="one view"):
        CropDataset(images, 16, views=2, parts=store, side=4)


def test_attention_is_cut_as_the_image(images: ImageSet, tmp_path: Path) -> None:
    count = len(images)
    store = PartStore.create(
        tmp_path / "p", images=count, grid=2, label_names=["a"], teacher_digest="t", manifest_digest=images.digest,
        attention_grid=5,
    )  # fmt: skip
    store.write_attention(np.arange(count), np.random.default_rng(0).integers(0, 255, (count, 5, 5)))
    dataset = CropDataset(images, 16, seed=1, parts=store, side=4, attention=True)
    item = pickle.loads(pickle.dumps(dataset))[(3, 2)]
    crop = random_crop(20, 28, np.random.default_rng((1, 3, 2)))
    assert torch.equal(item["attention"], crop_scores(store.attention[2], crop, 4) / 254)
    assert item["attention"].min() >= 0 and item["attention"].max() <= 1
    assert torch.equal(item["images"], CropDataset(images, 16, seed=1)[(3, 2)]["images"])
    with pytest.raises(ValueError, match="attention"):
        CropDataset(images, 16, attention=True)
    bare = PartStore.create(
        tmp_path / "q", images=count, grid=2, label_names=["a"], teacher_digest="t", manifest_digest=images.digest
    )
    with refused("--labels-only"):
        CropDataset(images, 16, parts=bare, side=4, attention=True)


def test_whole_images_stretched_or_from_the_centre(images: ImageSet) -> None:
    image = images.read(4)
    stretched, centred = WholeDataset(images, 14)[4], WholeDataset(images, 14, fit="centre")[(9, 4)]
    resize = {"interpolation": F.InterpolationMode.BICUBIC, "antialias": True}
    assert stretched["row"] == centred["row"] == 4
    assert torch.equal(stretched["image"], F.resize(image, [14, 14], **resize))
    assert torch.equal(centred["image"], F.center_crop(F.resize(image, [14], **resize), [14, 14]))
    # As MAE measures: 224 of 256, here 14 of 16.
    closer = WholeDataset(images, 14, fit="centre", crop_pct=224 / 256)[4]
    assert torch.equal(closer["image"], F.center_crop(F.resize(image, [16], **resize), [14, 14]))


def test_a_list_of_rows_is_a_sampler(images: ImageSet) -> None:
    batches = list(make_loader(WholeDataset(images, 8), 2, sampler=[9, 3, 4]))
    assert [batch["row"].tolist() for batch in batches] == [[9, 3], [4]]
    assert len(list(make_loader(WholeDataset(images, 8), 4))) == 3


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 3, 5, 5), (2, 4, 3, 5, 5)])
def test_normalise_is_torchvisions(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    expected = F.normalize(images.float() / 255, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
    found = normalise(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(normalise(images, (0, 0, 0), (1, 1, 1)), images.float() / 255)


def test_normalise_refuses_what_may_be_of_another_scale() -> None:
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    for other in (images, images.half(), (255 * images).int()):
        with pytest.raises(ValueError, match="torch.uint8.*0 to 255"):
            normalise(other, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert torch.equal(images, before)


_GLOBAL_LOADER = """
import torch
from semmae.data.loaders import make_loader
loader = make_loader([{"row": row} for row in range(4)], 2, workers=2)
print(sum(int(batch["row"].sum()) for batch in loader))
"""


def test_a_process_ends_whose_loader_is_still_there() -> None:
    """Its workers outlive an epoch, and leave signals to their parent: it has to end them."""
    output = subprocess.run([sys.executable, "-c", _GLOBAL_LOADER], capture_output=True, text=True, timeout=120)
    assert (output.returncode, output.stdout) == (0, "6\n"), output.stderr
