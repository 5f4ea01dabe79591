"""Rows → batches. An item is a pure function of (seed, epoch, row).

The sampler yields (epoch, row): persistent workers hold no state, and a resumed run draws the same crops.
Images stay uint8 until `normalise`, which runs on the device.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semmae.data.colour import HUE, jitter
from semmae.data.crop import WHOLE, Crop, crop_image, crop_parts, random_crop
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore

Key = int | tuple[int, int]  # a row, or (epoch, row)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, row) for the rows of one epoch, dealt out to ranks; short ones get the first rows again."""

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch = 0
        self._num_replicas, self._rank = num_replicas, rank

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        replicas, rank = self._place()
        rows = np.arange(self.length)
        if self.shuffle:
            rows = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        mine = np.resize(rows, len(self) * replicas)[rank::replicas]  # np.resize repeats from the beginning
        return zip([self.epoch] * len(mine), mine.tolist(), strict=True)

    def __len__(self) -> int:
        return -(-self.length // self._place()[0])

    def _place(self) -> tuple[int, int]:
        """(ranks, own rank). Asked for late: the sampler may be made before the process group is."""
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas, rank = self._num_replicas, self._rank
        if replicas is None:
            replicas = torch.distributed.get_world_size() if running else 1
        if rank is None:
            rank = torch.distributed.get_rank() if running else 0
        return replicas, rank


@dataclass(frozen=True)
class LocalCrops:
    """Small crops beside the large ones (multi-crop: SwAV, arXiv 2006.09882; DINO)."""

    count: int  # of each image
    size: int  # pixels a side
    scale: tuple[float, float]  # share of the image's area


class CropDataset(Dataset[dict[str, Any]]):
    """Random crops for training.

    Item: "images" uint8 (views, 3, size, size), each view its own crop; "crops" float (views, 5), these
    crops as `Crop.numbers`; "row"; with `parts` (one view only), "parts" int64 (side·side,), the part under the
    centre of each patch of the crop; with `local`, "local" uint8 (count, 3, local size, local size).
    `colour` also changes the colours of each view, its hue by at most `hue` turns.
    """

    def __init__(
        self,
        images: ImageSet,
        size: int,
        views: int = 1,
        scale: tuple[float, float] = (0.2, 1.0),
        seed: int = 0,
        parts: PartStore | None = None,
        side: int | None = None,
        colour: bool = False,
        local: LocalCrops | None = None,
        hue: float = HUE,
    ) -> None:
        if parts is not None and (views != 1 or side is None or parts.images != len(images)):
            raise ValueError(
                f"parts need one view (not {views}), a side (not {side}), "
                f"and the same images ({parts.images} labelled, {len(images)} given)"
            )
        self.images, self.size, self.views, self.scale, self.seed = images, size, views, scale, seed
        self.parts, self.side, self.local = parts, side, local
        self.colour, self.hue = colour, hue

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, row = _epoch_and_row(key)
        rng = np.random.default_rng((self.seed, epoch, row))
        image = self.images.read(row)
        crops, views = self._cut(image, rng, self.views, self.size, self.scale)
        boxes = torch.tensor([crop.numbers for crop in crops])
        item: dict[str, Any] = {"images": views, "crops": boxes, "row": row}
        if self.parts is not None and self.side is not None:
            item["parts"] = crop_parts(self.parts.labels[row], crops[0], self.side)
        if self.local is not None:
            item["local"] = self._cut(image, rng, self.local.count, self.local.size, self.local.scale)[1]
        return item

    def _cut(
        self, image: Tensor, rng: np.random.Generator, count: int, size: int, scale: tuple[float, float]
    ) -> tuple[list[Crop], Tensor]:
        """So many random crops of an image, and what they show: uint8 (count, 3, size, size)."""
        crops = [random_crop(image.shape[1], image.shape[2], rng, scale) for _ in range(count)]
        views = [crop_image(image, crop, size) for crop in crops]
        if self.colour:
            views = [jitter(view, rng, self.hue) for view in views]
        return crops, torch.stack(views)


class WholeDataset(Dataset[dict[str, Any]]):
    """Whole images. Item: "image" uint8 (3, size, size), "row".

    fit="stretch": the whole image stretched to the square, as part labels are defined;
    fit="centre": the short side resized to `size`, the centre cut out, for features.
    """

    def __init__(self, images: ImageSet, size: int, fit: Literal["stretch", "centre"] = "stretch") -> None:
        if fit not in ("stretch", "centre"):
            raise ValueError(f'fit must be "stretch" or "centre", not {fit!r}')
        self.images, self.size, self.fit = images, size, fit

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, row = _epoch_and_row(key)
        image = self.images.read(row)
        return {"image": _FITS[self.fit](image, self.size), "row": row}


def make_loader(
    dataset: Dataset[dict[str, Any]],
    batch_size: int,
    *,
    sampler: Sampler[Any] | Sequence[Key] | None = None,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader[dict[str, Any]]:
    """Batches of a dataset, in order without a sampler; a list of rows is a sampler too."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own: reading data must not move the global random numbers
        worker_init_fn=_start_worker,
    )


def normalise(images: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """uint8 (..., 3, S, S) → float32 of zero mean and unit deviation per channel, on the same device."""
    shift, scale = (
        # non_blocking: otherwise the step would wait for the device here
        torch.tensor([255 * value for value in values]).to(images.device, non_blocking=True).view(3, 1, 1)
        for values in (mean, std)
    )
    return images.float().sub_(shift).div_(scale)


def denormalise(images: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """The way back of `normalise`: float (..., 3, S, S) → uint8, clipped to 0..255."""
    shift, scale = (torch.tensor([255 * value for value in values]).view(3, 1, 1) for values in (mean, std))
    return (images * scale.to(images) + shift.to(images)).round().clamp(0, 255).to(torch.uint8)


def _epoch_and_row(key: Key) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (0, key)


def _stretch(image: Tensor, size: int) -> Tensor:
    return crop_image(image, WHOLE, size)


def _centre(image: Tensor, size: int) -> Tensor:
    resized = F.resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cut: Tensor = F.center_crop(resized, [size, size])
    return cut.contiguous()


_FITS = {"stretch": _stretch, "centre": _centre}


def _start_worker(_: int) -> None:
    """One thread per worker, for they are the parallelism; Ctrl-C is left to the main process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
