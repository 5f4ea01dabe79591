"""Rows → batches. An item is a pure function of (seed, epoch, row).

The sampler yields (epoch, row): persistent workers hold no state, and a resumed run draws the same crops.
Images stay uint8 until `normalise`, which runs on the device.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode, functional as F

from semmae.data.attention import MOST_ATTENDED
from semmae.data.batching import collate
from semmae.data.colour import PLAIN_CHANCES, Chances, draw_changes
from semmae.data.crop import (
    WHOLE,
    Crop,
    centre_crop,
    crop_image,
    crop_parts,
    crop_scores,
    crop_tokens,
    least_side,
    random_crop,
    resized as resized_to,
)
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.samplers import Key, epoch_and_row, row_ahead
from semmae.data.token_store import TokenStore
from semmae.data.workers import LOADERS, plan, start_worker
from semmae.levels import as_pixels, levels, of_channels
from semmae.sizes import Grid, Size, around, sides

# More processes than cores are no fault: training shows how long it waits for images.
warnings.filterwarnings("ignore", message="This DataLoader will create", module=r"torch\.utils\.data")

TOKENS, IMAGE_TOKEN = "tokens", "image_token"  # in an item and in a store: a teacher's
_WAITING = 2**24  # bytes of decoded images that a loader holds before it crops them


@dataclass(frozen=True)
class LocalCrops:
    """Small crops beside the large ones (multi-crop: SwAV, arXiv 2006.09882; DINO)."""

    count: int  # of each image
    size: Size  # pixels
    scale: tuple[float, float]  # share of the image's area


class CropDataset(Dataset[dict[str, Any]]):
    """Random crops for training.

    Item: "images" uint8 (views, 3, *size), each view its own crop; "crops" float (views, 5), these crops as
    `Crop.numbers`; "row"; with `parts` (one view only), "parts" int64 (L,), the part under the centre of each patch of
    the crop, of which there is a grid of `side`, and with `attention` "attention" float32 (L,), from 0 to 1; with
    `tokens`, whose rows are float16 (G, D), a grid of `cells` (None: a square), and (D,) of whole images, "tokens"
    float16 (L, D), interpolated there (of one view, too), and "image_token" float16 (D,); with `local`, "local" uint8
    (count, 3, *local size).
    With `colour` also "changes", and "local_changes", float32 (views, 7): what `draw_changes` drew for these views,
    whose pixels are as they were; in a batch `Changes`, which `recoloured` does on the device. `chances` of the views,
    in their order, where these are not alike.
    """

    def __init__(
        self,
        images: ImageSet,
        size: Size,
        views: int = 1,
        scale: tuple[float, float] = (0.2, 1.0),
        seed: int = 0,
        parts: PartStore | None = None,
        side: Size | None = None,
        colour: bool = False,
        local: LocalCrops | None = None,
        attention: bool = False,
        chances: Sequence[Chances] = (),
        tokens: TokenStore | None = None,
        cells: Grid | None = None,
    ) -> None:
        if chances and len(chances) != views:
            raise ValueError(f"{views} views, but {len(chances)} chances; give one to each view, or none")
        if parts is not None and (views != 1 or side is None or parts.images != len(images)):
            raise ValueError(
                f"parts need one view (not {views}), a side (not {side}), "
                f"and the same images ({parts.images} labelled, {len(images)} given)"
            )
        if tokens is not None and (views != 1 or side is None or tokens.rows != len(images)):
            raise ValueError(
                f"tokens need one view (not {views}), a side (not {side}), "
                f"and the same images ({tokens.rows} with tokens, {len(images)} given)"
            )
        self.images, self.size, self.views, self.scale, self.seed = images, size, views, scale, seed
        self.parts, self.side, self.local, self.attention, self.tokens = parts, side, local, attention, tokens
        if attention:
            if parts is None:
                raise ValueError("attention is stored beside parts, and none are given")
            _ = parts.attention  # a store that holds none is refused before anything is loaded
        self.colour, self.chances, self.cells = colour, tuple(chances), cells

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return {
            name: torch.stack(value) if isinstance(value, list) else value
            for name, value in self.__getitems__([key])[0].items()
        }

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The items of a batch for `collate`: views in lists, so that they are copied once, into the batch.

        Each kind of work is done for all in one go. In turns, they drive each other's code and tables out of the
        processor's cache: generators and labels then take several times as long, decoding a tenth longer.
        """
        for ahead in map(row_ahead, keys):
            if ahead is not None:
                self.images.copy_soon(ahead)
        places = [epoch_and_row(key) for key in keys]
        rngs = [np.random.default_rng((self.seed, *place)) for place in places]
        pictures = self._pictures([row for _, row in places], rngs)
        # Mapped anew for every batch: sent to a process that loads images, a mapped file would be copied into it.
        tokens = None if self.tokens is None else (self.tokens.read(TOKENS), self.tokens.read(IMAGE_TOKEN))
        items = []
        for (_, row), (crops, item) in zip(places, list(pictures), strict=True):
            item |= {"crops": torch.tensor([crop.numbers for crop in crops]), "row": row}
            if self.parts is not None and self.side is not None:
                item["parts"] = crop_parts(self.parts.labels[row], crops[0], self.side)
                if self.attention:
                    item["attention"] = crop_scores(self.parts.attention[row], crops[0], self.side) / MOST_ATTENDED
            if tokens is not None and self.side is not None:
                item[TOKENS] = crop_tokens(tokens[0][row], crops[0], self.side, self.cells)
                item[IMAGE_TOKEN] = torch.from_numpy(tokens[1][row].astype(np.float16))
            items.append(item)
        return items

    @property
    def item_bytes(self) -> int:
        """Of its pictures and tokens, which are nearly all of it."""
        views = [(self.views, self.size)] + ([] if self.local is None else [(self.local.count, self.local.size)])
        pictures = sum(count * picture_bytes(size, self.images.channels) for count, size in views)
        if self.tokens is None or self.side is None:
            return pictures
        return pictures + 2 * math.prod(sides(self.side)) * int(self.tokens.read(TOKENS).shape[-1])

    def _pictures(
        self, rows: Sequence[int], rngs: Sequence[np.random.Generator]
    ) -> Iterator[tuple[list[Crop], dict[str, Any]]]:
        """The crops of rows and what they show; images are decoded one after the other, and then cropped."""
        waiting: list[tuple[Tensor, np.random.Generator]] = []
        for row, rng in zip(rows, rngs, strict=True):
            waiting.append((self.images.read(row, self._least), rng))
            if sum(image.nbytes for image, _ in waiting) >= _WAITING:
                yield from (self._views(*image) for image in waiting)
                waiting.clear()
        yield from (self._views(*image) for image in waiting)

    def _views(self, image: Tensor, rng: np.random.Generator) -> tuple[list[Crop], dict[str, Any]]:
        """The crops of an image and what they show, small ones too."""
        crops, *shown = self._cut(image, rng, self.views, self.size, self.scale, self.chances)
        item = dict(zip(("images", "changes"), shown, strict=True))
        if self.local is not None:
            _, *shown = self._cut(image, rng, self.local.count, self.local.size, self.local.scale)
            item |= zip(("local", "local_changes"), shown, strict=True)
        return crops, {name: value for name, value in item.items() if value is not None}

    @property
    def _least(self) -> int:
        """The short side that an image must have for its smallest and narrowest crop not to be enlarged."""
        kinds = [(self.size, self.scale[0])] + ([] if self.local is None else [(self.local.size, self.local.scale[0])])
        return max(least_side(size, share) for size, share in kinds)

    def _cut(
        self,
        image: Tensor,
        rng: np.random.Generator,
        count: int,
        size: Size,
        scale: tuple[float, float],
        chances: Sequence[Chances] = (),
    ) -> tuple[list[Crop], list[Tensor], Tensor | None]:
        """So many random crops of an image, what they show, uint8 (3, *size) each, and changes as drawn."""
        crops = [random_crop(image.shape[1], image.shape[2], rng, scale, size) for _ in range(count)]
        changes = draw_changes(rng, chances or (PLAIN_CHANCES,) * count) if self.colour else None
        return crops, [crop_image(image, crop, size) for crop in crops], changes


class WholeDataset(Dataset[dict[str, Any]]):
    """Whole images. Item: "image" uint8 (3, *size), "row"; with `parts` "parts" int64 (L,), the part under the centre
    of each patch, of which there is a grid of `side`.

    fit="stretch": the whole image stretched to the size, as part labels are defined;
    fit="centre": resized to cover `size` / `crop_pct`, of a square the short side, the centre cut out, for features.
    MAE measures with crop_pct 0.875: 224 of 256.
    """

    def __init__(
        self,
        images: ImageSet,
        size: Size,
        fit: Literal["stretch", "centre"] = "stretch",
        crop_pct: float = 1.0,
        parts: PartStore | None = None,
        side: Size | None = None,
    ) -> None:
        if fit not in ("stretch", "centre"):
            raise ValueError(f'fit must be "stretch" or "centre", not {fit!r}')
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is {crop_pct}; it must be above 0, and 1 at most")
        if parts is not None and (side is None or parts.images != len(images)):
            raise ValueError(f"parts need a side (not {side}), and labels of {len(images)} images (not {parts.images})")
        self.images, self.size, self.fit, self.parts, self.side = images, size, fit, parts, side
        self._resized = around(size, crop_pct) if fit == "centre" else size

    def __len__(self) -> int:
        return len(self.images)

    @property
    def item_bytes(self) -> int:
        """Of its picture, which is nearly all of it."""
        return picture_bytes(self.size, self.images.channels)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, row = epoch_and_row(key)
        image = self.images.read(row, enough(self._resized))
        if self.fit == "stretch":
            crop, fitted = WHOLE, crop_image(image, WHOLE, self.size)
        else:
            share = max(sides(self.size)) / max(sides(self._resized))
            crop = centre_crop(image.shape[1], image.shape[2], share, self.size)
            fitted = centre_cut(image, self._resized, self.size)
        item = {"image": fitted, "row": row}
        if self.parts is not None and self.side is not None:
            item["parts"] = crop_parts(self.parts.labels[row], crop, self.side)
        return item


def make_loader(
    dataset: Dataset[dict[str, Any]],
    batch_size: int,
    *,
    sampler: Sampler[Any] | Sequence[Key] | None = None,
    workers: int = 0,
    drop_last: bool = False,
    sharing: int = 1,
) -> DataLoader[dict[str, Any]]:
    """Batches of a dataset, in order without a sampler; a list of rows is a sampler too.

    Of processes that load images there are fewer than `workers` where shared memory has no room for what they load;
    `sharing`: how many processes of this machine load at once, each with its own.
    """
    workers, ahead = plan(workers, sharing * batch_size * getattr(dataset, "item_bytes", 0))
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own: reading data must not move the global random numbers
        worker_init_fn=start_worker,
        collate_fn=collate,
    )
    LOADERS.add(loader)
    return loader


def normalise(images: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """uint8 (..., 3, H, W) → float32 of zero mean and unit deviation per channel, on the same device.

    ValueError where they are of another type: nothing would show whether they are 0..255, 0..1 or normalised already.
    """
    # non_blocking: otherwise the step would wait for the device here
    shift, scale = (of_channels(values).to(images.device, non_blocking=True) for values in (mean, std))
    return levels(images).sub_(shift).div_(scale)


def denormalise(images: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """The way back of `normalise`: float (..., C, H, W) → uint8, clipped to 0..255; uint16 where C is not three."""
    shift, scale = map(of_channels, (mean, std))
    found = images * scale.to(images) + shift.to(images)
    return as_pixels(found, torch.uint8 if images.shape[-3] == 3 else torch.uint16)


def picture_bytes(size: Size, channels: int = 3) -> int:
    """Of a picture of that size in a batch."""
    return math.prod(sides(size)) * (3 if channels == 3 else 2 * channels)


def enough(size: Size) -> int:
    """Pixels of a photo's short side from which on it hardly differs from the whole photo, resized to that size."""
    return 2 * max(sides(size))


def centre_cut(image: Tensor, covered: Size, size: Size) -> Tensor:
    """uint8 (3, H, W) → uint8 (3, *size): resized (bicubic, antialiased) to cover a size, the centre cut out.

    Of a square that is a resized short side, its length rounded as torchvision does.
    """
    (height, width), (down, across) = image.shape[-2:], sides(covered)
    tall = down * width >= across * height  # then its height is what just covers
    resized = [down, down * width // height] if tall else [across * height // width, across]
    if image.dtype == torch.uint8:
        whole = F.resize(image, resized, interpolation=InterpolationMode.BICUBIC, antialias=True)
    else:
        whole = resized_to(image, (resized[0], resized[1]), "bicubic")
    cut: Tensor = F.center_crop(whole, [*sides(size)])
    return cut.contiguous()
