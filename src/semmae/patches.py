"""Images as sequences of patches: cutting, per-patch normalisation, positions.

Patches are row-major over the grid; the p·p·3 numbers of one patch run over row, column, channel,
as in the MAE release, so that `pred` of a released checkpoint can be compared number by number.
"""

import torch
from torch import Tensor
from torch.nn import functional

from semmae.sizes import Grid, Size, sides, square


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, 3, H, W) into patches (B, L, p·p·3), pixel order row, column, channel."""
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"image {height}×{width} is not divisible by patch size {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: Grid | None = None) -> Tensor:
    """Lay patches (B, L, p·p·3) of a grid, without one a square, back into images (B, 3, H, W)."""
    batch, length, numbers = patches.shape
    rows, columns = grid or square(length)
    channels = numbers // patch_size**2
    cut = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch_size, columns * patch_size)


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch (…, D) less its mean, by √(unbiased variance + 1e-6): `norm_pix_loss` of the MAE release."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def denormalize_patches(normalized: Tensor, reference: Tensor) -> Tensor:
    """Undo `normalize_patches` with the statistics of `reference` (…, D), to look at a prediction."""
    variance, mean = torch.var_mean(reference, dim=-1, keepdim=True)
    return normalized * (variance + 1e-6).sqrt() + mean


def sincos_positions(side: Size, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a grid with a zero row for the class token: (1, 1 + L, width).

    Half of the width encodes the column, half the row, frequencies 10000^(−i/(width/4)): MAE, util/pos_embed.py.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4")
    # float64 as in the release; the result is rounded once.
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = sides(side)
    angles = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = line[None, :columns, :].expand(rows, columns, -1)
    row = line[:rows, None, :].expand(rows, columns, -1)
    grid = torch.cat([column, row], dim=2).reshape(1, rows * columns, width)
    return torch.cat([grid.new_zeros(1, 1, width), grid], dim=1).float()


def resize_positions(positions: Tensor, side: Size, old: Size | None = None) -> Tensor:
    """Interpolate positions (1, 1 + l, C) of the grid `old`, without it a square, to another; the class token's stays.

    (1, 1 + L, C) of the new grid.
    """
    token, grid = positions[:, :1], positions[:, 1:]
    new, known = sides(side), square(grid.shape[1]) if old is None else sides(old)
    if known == new:
        return positions
    plane = grid.reshape(1, *known, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(plane, new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([token, resized.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)], dim=1)
