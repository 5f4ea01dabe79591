"""The objectives: masked pixels (MAE), reconstruction and diversity (SemMAE, stage 1)."""

import torch
from torch import Tensor
from torch.nn import functional


def masked_pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over hidden patches: prediction and target (B, H, p·p·3) → scalar.

    Every row hides the same number of patches, so the plain mean is MAE's loss.
    """
    return functional.mse_loss(prediction, target)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """L_r of SemMAE: pixel error of a reconstruction (B, 3, s, s) of images (B, 3, S, S), S ≥ s.

    The images are area-averaged to the reconstruction's size.
    """
    if images.shape[-1] != reconstruction.shape[-1]:
        images = functional.interpolate(images, reconstruction.shape[-2:], mode="area")
    return functional.mse_loss(reconstruction, images)


def diversity_loss(maps: Tensor) -> Tensor:
    """L_d of SemMAE: mean cosine similarity over all pairs of part maps (B, N, g, g) → scalar in [0, 1]."""
    count = maps.shape[1]
    if count < 2:
        return maps.new_zeros(())
    flat = functional.normalize(maps.flatten(2), dim=2)
    similarity = flat @ flat.transpose(1, 2)
    first, second = torch.triu_indices(count, count, offset=1, device=maps.device)
    return similarity[:, first, second].mean()
