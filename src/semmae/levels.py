"""Pixels of any depth and number of channels → one scale to compute in, and three channels to look at.

Images are whole numbers over the full range of their type: uint8, 0 to 255, of three channels (RGB); uint16, 0 to
65535, of any other number. Whoever computes takes `levels`, in which white is 255 either way.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

PIXEL_TYPES = (torch.uint8, torch.uint16)
_DEEP = 65535 / 255


def levels(images: Tensor) -> Tensor:
    """Images uint8 or uint16 → float32 from 0 to 255, in memory of their own.

    ValueError where they are of another type: nothing would show whether they are 0..255, 0..1 or normalised already.
    """
    if images.dtype not in PIXEL_TYPES:
        raise ValueError(f"images of {images.dtype}, not torch.uint8, 0 to 255, or torch.uint16; give them as decoded")
    found = images.to(torch.float32, memory_format=torch.contiguous_format)
    return found if images.dtype == torch.uint8 else found.div_(_DEEP)


def of_channels(values: Iterable[float]) -> Tensor:
    """A number a channel for pixels from 0 to 1 → (C, 1, 1) for `levels`."""
    return torch.tensor([255 * value for value in values]).view(-1, 1, 1)


def as_pixels(values: Tensor, kind: torch.dtype) -> Tensor:
    """Floats from 0 to 255 → uint8, or uint16 over its full range, rounded and cut to it."""
    whole = values if kind == torch.uint8 else values * _DEEP
    return whole.round().clamp(0, 255 if kind == torch.uint8 else 65535).to(kind)


def in_rgb(images: Tensor, like: Tensor | None = None) -> Tensor:
    """Images (…, C, H, W) to look at: uint8 (…, 3, H, W). Three channels are as they are.

    One is shown as grey, of more the first three, or two and their mean; in each image the values seen are stretched to
    all that can be shown, for sensors rarely fill 16 bits. `like`: images whose stretch is taken.
    """
    if images.shape[-3] == 3:
        return images
    first, around = (_three(levels(each)) for each in (images, images if like is None else like))
    low, high = around.amin((-3, -2, -1), keepdim=True), around.amax((-3, -2, -1), keepdim=True)
    return (255 * (first - low) / (high - low).clamp_min(1e-6)).round().clamp(0, 255).to(torch.uint8)


def _three(images: Tensor) -> Tensor:
    channels = images.shape[-3]
    if channels == 1:
        return torch.cat([images] * 3, -3)
    return torch.cat([images, images.mean(-3, keepdim=True)], -3) if channels == 2 else images[..., :3, :, :]
