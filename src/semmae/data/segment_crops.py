"""Images with their labels → batches to train on, and whole images to measure on.

Notable here:
- the usual augmentation of semantic segmentation, that of mmsegmentation's recipes for ADE20K: a random scale, a
  random crop in which no class fills more than a share, a flip, changes of colour; image and labels together;
- kinds and strengths are those of its PhotoMetricDistortion, each on every other image; unlike there, the order is
  fixed, brightness multiplies, contrast is about the image's mean gray, hue turns about the gray axis, nothing is
  rounded between the steps, and images are resized antialiased;
- labels are resized by nearest neighbour: there is no class between two classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semmae.data.coding import IGNORED
from semmae.data.colour import colour_matrices, shift_colours
from semmae.data.crop import at_centres, resized as resized_to
from semmae.data.loaders import enough, picture_bytes
from semmae.data.manifest import sample_rows
from semmae.data.samplers import Key, epoch_and_row
from semmae.data.segmentation import LabelledImages
from semmae.levels import as_pixels
from semmae.sizes import Grid, Size, sides

_LOOKED_AT = 64  # images, for the size of the largest
_TRIES = 10  # crops drawn until one is mixed enough
_LONGEST = 4  # times the short side that is aimed at: a longer image is scaled by its long side (2048 by 512)
_HUE = 18 / 180  # turns: 18 of the 180 hues that OpenCV counts; strengths of SSD (arXiv 1512.02325)
_BRIGHTNESS, _CONTRAST, _SATURATION = 32 / 255, 0.5, 0.5


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image and its labels before they are trained on."""

    size: Size  # pixels of the crop
    scales: tuple[float, float] = (0.5, 2.0)  # of the image that just covers the crop
    most_of_one: float = 0.75  # share of the crop's labelled pixels that one class may fill; 1 = no limit
    colour: bool = True
    fill: tuple[int, ...] = (124, 116, 104)  # colour around images smaller than the crop, in the pixels' own range


class SegmentCrops(Dataset[dict[str, Any]]):
    """Random crops. Item: "images" uint8 (3, *size), "labels" uint8 (*size), "row"."""

    def __init__(self, labelled: LabelledImages, augmentation: Augmentation, seed: int = 0) -> None:
        self.labelled, self.augmentation, self.seed = labelled, augmentation, seed

    def __len__(self) -> int:
        return len(self.labelled)

    @property
    def item_bytes(self) -> int:
        """Of its picture and labels."""
        size = self.augmentation.size
        return picture_bytes(size, self.labelled.images.channels) + math.prod(sides(size))

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, row = epoch_and_row(key)
        rng = np.random.default_rng((self.seed, epoch, row))
        image, labels = self.labelled.read(row, enough(self.augmentation.size))
        image, labels = augmented(image, labels, self.augmentation, rng)
        return {"images": image, "labels": labels, "row": row}


class WholeLabelled(Dataset[dict[str, Any]]):
    """Whole images. Item: "image" uint8 (3, h, w), which just covers `size`; "labels" uint8 (H, W) as stored; "row"."""

    def __init__(self, labelled: LabelledImages, size: Size) -> None:
        self.labelled, self.size = labelled, size

    def __len__(self) -> int:
        return len(self.labelled)

    @property
    def item_bytes(self) -> int:
        """Of a picture and its labels, the largest of some: all would have to be read."""
        images = self.labelled.images
        found = [images.size(row) for row in sample_rows(len(images), _LOOKED_AT, seed=0)]
        return max(picture_bytes(scaled_size(each, self.size), images.channels) + math.prod(each) for each in found)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image, labels = self.labelled.read(row, enough(self.size))
        return {"image": resized(image, *scaled_size(labels.shape, self.size)), "labels": labels, "row": row}


def augmented(image: Tensor, labels: Tensor, how: Augmentation, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """An image, uint8 (3, h, w), and its labels, uint8 (H, W) → both at `how.size`, changed by chance alike."""
    height, width = scaled_size(labels.shape, how.size, rng.uniform(*how.scales))
    image, labels = resized(image, height, width), at_centres(labels, height, width)
    (top, left), (down, across) = _mixed_box(labels, how, rng), sides(how.size)
    image, labels = (plane[..., top : top + down, left : left + across] for plane in (image, labels))
    image, labels = padded(image, labels, how.size, how.fill)
    if rng.random() < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    if how.colour:
        image = distorted(image, rng)
    return image.contiguous(), labels.contiguous()


def scaled_size(shape: Sequence[int], covered: Size, times: float = 1.0) -> Grid:
    """Height and width of an image (height, width) that just covers a size, or none of its sides four times; `times`.

    Of a square that is a short side of its length, or a long one of four times that.
    """
    height, width = shape
    down, across = (side * times / length for side, length in zip(sides(covered), shape, strict=True))
    scale = min(max(down, across), _LONGEST * min(down, across))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, h, w) → uint8 (3, height, width), bilinear and antialiased."""
    if image.shape[1:] == (height, width):
        return image
    return resized_to(image, (height, width), "bilinear")


def padded(image: Tensor, labels: Tensor, size: Size, fill: Sequence[int]) -> tuple[Tensor, Tensor]:
    """At least of that size: below and to the right `fill`, which is to be ignored."""
    (height, width), (down, across) = labels.shape, sides(size)
    if height >= down and width >= across:
        return image, labels
    canvas = torch.tensor(fill, dtype=image.dtype).view(-1, 1, 1).repeat(1, max(down, height), max(across, width))
    canvas[:, :height, :width] = image
    unknown = torch.full(canvas.shape[1:], IGNORED, dtype=torch.uint8)
    unknown[:height, :width] = labels
    return canvas, unknown


def distorted(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Changes of brightness, contrast, saturation and hue, each on every other image."""
    applied = rng.random(4) < 0.5
    brightness, contrast, saturation, hue = (rng.uniform(-1, 1, 4) * applied).tolist()
    if not applied.any():
        return image
    factors = [1 + _BRIGHTNESS * brightness, 1 + _CONTRAST * contrast, 1 + _SATURATION * saturation, _HUE * hue]
    changed = shift_colours(image[None], colour_matrices(torch.tensor([factors]), torch.zeros(1)))[0]
    return as_pixels(changed, image.dtype)


def _mixed_box(labels: Tensor, how: Augmentation, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random crop, drawn again while one class fills more than its share."""
    down, across = sides(how.size)
    room = [max(0, length - side) + 1 for length, side in zip(labels.shape, (down, across), strict=True)]
    draws = (rng.random((_TRIES, 2)) * room).astype(int).tolist()  # a fixed number
    for top, left in draws:
        counts = torch.bincount(labels[top : top + down, left : left + across].flatten(), minlength=256)
        known = counts[:IGNORED]
        if how.most_of_one >= 1 or int((known > 0).sum()) > 1 and known.max() < how.most_of_one * known.sum():
            break
    return top, left
