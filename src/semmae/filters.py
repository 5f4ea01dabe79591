"""Coarse maps of an image → finer ones whose borders are those of the image."""

import torch
from torch import Tensor
from torch.nn import functional

from semmae.levels import in_rgb

_LOT = 2**15  # systems solved together
_EPS = 1e-4  # of the guided filter, for colours from 0 to 1: 1e-3 and 1e-2 gave coarser borders


def guides(images: Tensor, grid: int) -> Tensor:
    """Images (B, C, H, W) at the resolution of labels: uint8 (B, 3, grid, grid), for `refine_maps`."""
    small = functional.interpolate(in_rgb(images).float(), (grid, grid), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def upsample_maps(maps: Tensor, grid: int) -> Tensor:
    """Maps (B, K, h, w) → (B, K, grid, grid), bilinear: upsampled before an argmax, borders fall between patches."""
    return functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)


def refine_maps(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (B, K, h, w) of images uint8 (B, 3, S, S), as `guides` gives them → (B, K, S, S), borders as the image's.

    The radius of the filter is a sixteenth of the side: about a patch where a side has sixteen.
    """
    side = images.shape[-1]
    return guided_filter(images.float() / 255, upsample_maps(maps.float(), side), max(1, side // 16), _EPS)


def guided_filter(images: Tensor, maps: Tensor, radius: int, eps: float) -> Tensor:
    """Maps (B, K, S, S) smoothed but for the edges of images (B, 3, S, S): in every window linear in its colours.

    Windows have 2 · radius + 1 pixels a side; `eps` is the variance of colours that counts as an edge. The colour
    guided filter of He, Sun and Tang (ECCV 2010, TPAMI 2013), equations 18 to 20.
    """
    batch, count, height, width = maps.shape
    # Colours, their products, the maps, and the products of both: all means over windows in one pass.
    pairs = (images[:, :, None] * images[:, None]).flatten(1, 2)
    products = (images[:, :, None] * maps[:, None]).flatten(1, 2)
    means = _window_means(torch.cat([images, maps, pairs, products], 1), radius)
    colour, level, pairs, products = torch.split(means, [3, count, 9, 3 * count], 1)
    colour, level = (each.permute(0, 2, 3, 1) for each in (colour, level))  # (B, S, S, 3), (B, S, S, K)
    pairs = pairs.permute(0, 2, 3, 1).reshape(batch, height, width, 3, 3)
    products = products.permute(0, 2, 3, 1).reshape(batch, height, width, 3, count)
    variance = pairs - colour[..., :, None] * colour[..., None, :]
    covariance = products - colour[..., :, None] * level[..., None, :]
    slope = _solved(variance + eps * torch.eye(3, device=maps.device), covariance)  # (B, S, S, 3, K)
    offset = level - (slope * colour[..., None]).sum(3)
    lines = torch.cat([slope.flatten(3), offset], 3).permute(0, 3, 1, 2)
    slope, offset = torch.split(_window_means(lines, radius), [3 * count, count], 1)
    lit: Tensor = (slope.reshape(batch, 3, count, height, width) * images[:, :, None]).sum(1)
    return lit + offset


def _solved(left: Tensor, right: Tensor) -> Tensor:
    """X of left · X = right, (..., n, n) and (..., n, K), in lots: some libraries of GPUs number a batch by 16 bits."""
    lots = zip(*(torch.split(each.flatten(0, -3), _LOT) for each in (left, right)), strict=True)
    return torch.cat([torch.linalg.solve(*lot) for lot in lots]).reshape(right.shape)


def _window_means(values: Tensor, radius: int) -> Tensor:
    """Means over windows (B, C, S, S); outside the image its outermost values go on."""
    padded = functional.pad(values, (radius,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * radius + 1, stride=1)
