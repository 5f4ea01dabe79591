"""One vector an image: an encoder's features, and the baseline that any encoder must beat, raw pixels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.transform import ImageTransform
from semmae.errors import UserError
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.levels import levels
from semmae.models.head import pool
from semmae.models.vit import Encoder, Features
from semmae.names import shown
from semmae.objects import described
from semmae.options.shared import (
    AnyPooling,
    DeviceOptions,
    Pooling,
    Precision,
    PrecisionOptions,
    ViewOptions,
    WorkerOptions,
)
from semmae.options.values import check_choice, given_options
from semmae.progress import Progress
from semmae.sizes import Size, patch_grid
from semmae.train.frozen import most_rows, through_encoder
from semmae.train.precision import resolve_precision
from semmae.train.shares import Made, Place, by_devices

Batch = Mapping[str, Tensor]  # "image" uint8 (B, 3, H, W), "row" int64 (B,)


@dataclass(frozen=True)
class View(ViewOptions, PrecisionOptions, DeviceOptions, WorkerOptions):
    """How a frozen encoder is shown whole images, and what is made of each."""

    image_size: Size  # pixels
    pooling: Pooling

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "pooling": self.pooling,
            "image_size": self.image_size,
            "crop_pct": self.crop_pct,
            "precision": resolve_precision(self.precision),
        }


class Embedding(Protocol):
    """Features (N, C) of images, float32 in the order of the rows; of mirrored ones with `flip`."""

    def __call__(self, encoder: Encoder, images: ImageSet, view: View, flip: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class Looks:
    """A frozen encoder's looks at whole images, centre crops, as a `Work` of blocks of rows."""

    images: ImageSet
    encoder: Encoder
    values: Callable[[Features, Mapping[str, Tensor]], Made]  # what is kept of a batch, by what the encoder says of it
    size: Size  # pixels
    crop_pct: float
    block: int  # rows computed together
    workers: int  # processes that load images
    precision: Precision
    mirrored: bool = False
    labels: PartStore | None = None  # which stand in the batch

    @property
    def blocks(self) -> range:
        """Numbers of all blocks; the last one may be short."""
        return range(-(-len(self.images) // self.block))

    def made(self, blocks: Sequence[int], place: Place) -> Iterator[tuple[Made, float]]:
        """The values of each block, and its rows."""
        side = patch_grid(self.size, self.encoder.patch_size)
        dataset = WholeDataset(self.images, self.size, "centre", self.crop_pct, self.labels, side)
        rows = [row for at in blocks for row in range(at * self.block, min((at + 1) * self.block, len(self.images)))]
        loader = make_loader(dataset, self.block, sampler=rows, workers=self.workers, sharing=place.sharing)
        batches = ((batch, batch["image"].flip(-1) if self.mirrored else batch["image"]) for batch in loader)

        def worked(pixels: Tensor, batch: Mapping[str, Tensor], images: Tensor) -> Made:
            return {"rows": batch["row"].numpy(), **self.values(self.encoder(pixels), batch)}

        yield from through_encoder(
            batches, self.encoder, worked,
            precision=resolve_precision(self.precision), threads=place.threads, device=place.device,
        )  # fmt: skip


def image_features(encoder: Encoder, images: ImageSet, view: View, flip: bool = False) -> Tensor:
    """An `Embedding`: what the encoder sees in centre crops, by all devices of the view."""
    block = min(view.batch_size, most_rows())
    looks = Looks(
        images, encoder, partial(_pooled, pooling=view.pooling), view.image_size, view.crop_pct, block,
        view.num_workers, view.precision, flip,
    )  # fmt: skip
    features = torch.empty(len(images), encoder.width)
    with evaluating(encoder), Progress(len(images), label="features") as progress:
        for made, waited in by_devices(looks, looks.blocks, view.devices):
            features[made["rows"]] = torch.from_numpy(made["features"])
            progress.waited(waited)
            progress.update(len(made["rows"]))
    return features


def _pooled(said: Features, batch: Mapping[str, Tensor], *, pooling: Pooling) -> Made:
    return {"features": pool(said, pooling).float().cpu().numpy()}


def open_encoder(spec: Any, *, num_heads: int | None = None, image_size: Size | None = None) -> Encoder:
    """As `load_encoder`, on the device to compute on."""
    encoder = load_encoder(spec, num_heads=num_heads, image_size=image_size)
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


def device_of(encoder: Encoder) -> torch.device:
    """Where the encoder lies, and whatever is made of its features is computed."""
    return next(encoder.parameters()).device


def encoder_facts(spec: Any, encoder: Encoder) -> dict[str, str]:
    """Whose the figures are: the name, and the digest of the weights; ask before they are resized or trained on."""
    return {"encoder": described(spec), "encoder_digest": digest(encoder)}


def resolve_pooling(pooling: AnyPooling, encoder: Encoder) -> Pooling:
    """What `auto` means for this encoder; `cls` and `mean` mean themselves."""
    return encoder.pooling if pooling == "auto" else pooling


def extract(
    encoder: nn.Module,
    batches: Iterable[Batch],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pooling: Pooling = "cls",
    device: torch.device | str = "cpu",
    total: int | None = None,
    label: str = "features",
) -> Tensor:
    """The features of every image, in the order of the rows.

    float32 (N, C) on the CPU. The encoder, on `device`, makes `Features` of images (B, 3, H, W) normalised by `mean`
    and `std`, one number a channel, for pixels in 0 to 1; it is run in evaluation mode, and left in the mode it came
    in. Batches have "image" uint8 (B, 3, H, W) and "row" int64 (B,), each row once, in any order. The progress line,
    `label`, counts to `total` images.
    """
    check_choice("pooling", pooling, get_args(Pooling))

    def embed(images: Tensor) -> Tensor:
        return pool(encoder(normalise(images.to(device, non_blocking=True), mean, std)), pooling)

    with evaluating(encoder):
        return _collect(batches, embed, total, label)


class Images(Protocol):
    """A list of images, or a map-style data set that gives an image, (image, label) or {"image": …}."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def embed_images(
    encoder: Encoder | str | Path,
    images: Images | Iterator[Any] | Image.Image,
    *,
    pooling: Pooling | None = None,
    batch_size: int = 64,
) -> npt.NDArray[np.float32]:
    """One vector an image, float32 (N, C), of a single one (1, C): those that `semmae embed` writes.

    The encoder is what `load_encoder` takes, or a loaded one, which computes where it lies; each image anything that
    `ImageTransform` takes, and in place of a list an iterator will do. Pooling None is what fits the encoder.
    """
    items, total = _items(images)
    batch_size = given_options(ViewOptions, {"batch_size": batch_size})["batch_size"]
    if pooling is not None:
        check_choice("pooling", pooling, get_args(Pooling))
    if not isinstance(encoder, Encoder):
        encoder = open_encoder(encoder)
    spec, device = encoder.spec, device_of(encoder)
    transform = ImageTransform(spec.image_size, spec.mean, spec.std)
    vectors = [np.empty((0, spec.width), np.float32)]
    with evaluating(encoder), torch.inference_mode(), Progress(total, label="embedding") as progress:
        while batch := [_image(item) for item in islice(items, batch_size)]:
            squares = transform.squares(batch)
            features = encoder(normalise(squares.to(device, non_blocking=True), spec.mean, spec.std))
            vectors.append(pool(features, encoder.pooling if pooling is None else pooling).float().cpu().numpy())
            progress.update(len(batch))
    return np.concatenate(vectors)


def _items(images: Any) -> tuple[Iterator[Any], int | None]:
    """The images one by one, and their number where that is known; UserError for what gives none."""
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4):
        images = [images]
    if isinstance(images, Iterator):
        return images, None
    foreign = isinstance(images, str | Path | bytes | Mapping | type)
    if foreign or not (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
        raise UserError(
            f"images {shown(images)}: of type {type(images).__name__[:40]}; give a list or an iterator of images, "
            "a map-style data set, or semmae.embed(data=…) for a folder"
        )
    return (images[row] for row in range(len(images))), len(images)


def _image(item: Any) -> Any:
    """The image of what a data set gives."""
    if isinstance(item, Mapping):
        return item["image"]
    return item[0] if isinstance(item, tuple) else item


def raw_pixels(
    batches: Iterable[Batch], *, side: int = 16, total: int | None = None, label: str = "raw pixels"
) -> Tensor:
    """The images themselves as vectors: shrunk to `side` x `side` by area, each standardised over its values.

    float32 (N, 3·side·side) in the order of the rows; an image of a single colour gives zeros. The other arguments
    are as for `extract`.
    """

    def embed(images: Tensor) -> Tensor:
        pixels = F.interpolate(levels(images) / 255, size=(side, side), mode="area").flatten(1)
        pixels = pixels - pixels.mean(1, keepdim=True)
        # Below one grey level in a thousand there is only rounding to be amplified.
        return pixels / pixels.std(1, correction=0, keepdim=True).clamp_min(1e-6)

    return _collect(batches, embed, total, label)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each submodule is back in its own mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@torch.inference_mode()
def _collect(batches: Iterable[Batch], embed: Callable[[Tensor], Tensor], total: int | None, label: str) -> Tensor:
    """`embed` of every batch's images, float32 on the CPU, put into the order of the rows."""
    rows: list[Tensor] = []
    vectors: list[Tensor] = []
    with Progress(total, label=label) as progress:
        for batch in progress.iterate(batches):
            vectors.append(embed(batch["image"]).float().cpu())
            rows.append(batch["row"])
            progress.update(len(batch["row"]))
    assert rows, "there are no images to embed"
    found, order = torch.cat(rows).sort()
    assert (found[1:] > found[:-1]).all(), "a row came twice"
    places = order.argsort()
    # Filled batch by batch, each freed at once: the features are hardly ever held twice.
    ordered = torch.empty(len(places), vectors[0].shape[1])
    end = len(places)
    while vectors:
        chunk = vectors.pop()
        ordered[places[end - len(chunk) : end]] = chunk
        end -= len(chunk)
    return ordered
