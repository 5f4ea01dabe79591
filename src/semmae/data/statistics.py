"""Mean and standard deviation of images, channel by channel: what pixels are normalised by."""

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from semmae.data.manifest import ImageSet
from semmae.errors import UserError
from semmae.levels import levels
from semmae.options.shared import Statistics
from semmae.progress import Progress

Colours = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, of pixels from 0 to 1

_IMAGES = 1024  # at most: of a thousand photos the mean is within a hundredth
_LEAST = 256  # pixels of a photo's short side that are enough
_FLATTEST = 1 / 255  # deviation of a channel that is all alike


def colours_of(images: ImageSet, statistics: Statistics) -> Colours:
    """What pixels of these images are normalised by: ImageNet's, or their own.

    UserError where ImageNet's, which are of three channels, are asked for and the images have another number.
    """
    if statistics == "imagenet" and images.channels != 3:
        raise UserError(
            f"statistics 'imagenet': mean and deviation of 3 channels, and the images have {images.channels}; use "
            "'data', their own"
        )
    if statistics == "imagenet" or (statistics == "auto" and images.channels == 3):
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return measured_colours(images)


def measured_colours(images: ImageSet) -> Colours:
    """Mean and deviation of all pixels, each image counting alike; of 1024 images at most, equally far apart."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).astype(int)).tolist()
    sums = np.zeros((2, images.channels))
    with Progress(len(rows), label="mean and deviation of the images") as progress:
        for row in rows:
            pixels = levels(images.read(row, _LEAST)).double().flatten(1) / 255
            sums += np.stack([pixels.mean(1).numpy(), pixels.square().mean(1).numpy()])
            progress.update()
    mean, square = sums / len(rows)
    deviation = np.sqrt(np.maximum(square - mean**2, _FLATTEST**2))
    return tuple(mean.round(6).tolist()), tuple(deviation.round(6).tolist())
