"""The objectives: masked pixels (MAE), tokens of a teacher (MILAN), rebuilt ones (parts), reconstruction and diversity.

Every loss of the project goes through `in_float32`, those of other libraries too: what precedes it may be computed in
half precision, a loss is not. In bf16 close vectors are rounded onto each other, and small differences to nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_SEVERAL = list, tuple  # torch 2.6 compiles no `list | tuple`


def in_float32(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function in float32 whatever autocast says: tensors of half precision, in lists too, are cast before."""

    @functools.wraps(function)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given: list[torch.device] = []
        args, kwargs = _full(args, given), {name: _full(value, given) for name, value in kwargs.items()}  # type: ignore[assignment]
        with torch.autocast(given[0].type if given else "cpu", enabled=False):
            return function(*args, **kwargs)

    return computed


def _full(value: Any, devices: list[torch.device]) -> Any:
    """The same with every tensor of half precision in float32; where tensors lie is added to `devices`."""
    if isinstance(value, Tensor):
        devices.append(value.device)
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, _SEVERAL):
        found = [_full(entry, devices) for entry in value]
        # A named tuple takes its fields one by one.
        return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)
    return value


@in_float32
def masked_pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of prediction and target (B, H, p·p·3): MAE's loss, for every row hides as many patches."""
    return functional.mse_loss(prediction, target)


@in_float32
def masked_token_loss(prediction: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared error of predictions and a teacher's patch tokens (B, H, D), each of these normalised by itself.

    Normalised as a layer norm without weights does it: its numbers then have mean 0 and variance 1, so that predicting
    0 costs 1, and of a teacher no token counts more for being longer. MaskFeat (arXiv 2112.09133) takes squared errors
    too. MILAN (arXiv 2208.06049) and EVA (arXiv 2211.07636) take the cosine, which asks for the same direction: of two
    vectors of one length the squared error is 1 - cosine, up to a factor.
    """
    return functional.mse_loss(prediction, functional.layer_norm(tokens, tokens.shape[-1:]))


@in_float32
def image_token_loss(prediction: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared error of predictions and whitened class tokens (B, D) of a teacher (`whitening`)."""
    return functional.mse_loss(prediction, tokens)


@in_float32
def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """L_r of SemMAE: squared error of a reconstruction (B, 3, s, s) of images (B, 3, S, S), averaged to its size."""
    if images.shape[-1] != reconstruction.shape[-1]:
        images = functional.interpolate(images, reconstruction.shape[-2:], mode="area")
    return functional.mse_loss(reconstruction, images)


@in_float32
def diversity_loss(maps: Tensor) -> Tensor:
    """L_d of SemMAE: mean cosine similarity over all pairs of part maps (B, N, g, g) → scalar in [0, 1]."""
    count = maps.shape[1]
    if count < 2:
        return maps.new_zeros(())
    flat = functional.normalize(maps.flatten(2), dim=2)
    similarity = flat @ flat.transpose(1, 2)
    first, second = torch.triu_indices(count, count, offset=1, device=maps.device)
    return similarity[:, first, second].mean()


@in_float32
def rebuild_loss(maps: Tensor, weights: Tensor, tokens: Tensor) -> Tensor:
    """Error of tokens (B, L, d) rebuilt from one descriptor a part and image, by shares (B, L, K) → scalar.

    The descriptor of a part is the mean of the image's tokens, weighted by `weights` (B, L) and the part's shares; a
    patch is rebuilt as the mean of the descriptors by its own shares. A linear bottleneck: what the maps do not tell
    apart is lost. The squared error is given as a share of the tokens' variance in the batch; patches count in both as
    `weights` says, which have no gradient.
    """
    weights = weights.detach()
    tiny = torch.finfo(weights.dtype).eps
    with torch.no_grad():
        # From their mean, so that the difference of sums below is not one of large numbers.
        tokens = tokens - torch.einsum("bld,bl->d", tokens, weights) / weights.sum().clamp_min(tiny)
        spread = torch.einsum("bld,bld,bl->", tokens, tokens, weights)
    shares = maps * weights[:, :, None]
    sums = shares.transpose(1, 2) @ tokens
    descriptors = sums / (shares.sum(1)[:, :, None] + 1e-3)
    # |t - r|² = |t|² - 2 t·r + |r|², summed over patches before the descriptors are multiplied: no (B, L, d) is made.
    rebuilt = 2 * descriptors * sums - (shares.transpose(1, 2) @ maps) @ descriptors * descriptors
    return (spread - rebuilt.sum()) / spread.clamp_min(tiny)


@in_float32
def total_variation_loss(maps: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring cells, summed over parts: maps (B, N, g, g) → scalar.

    PDiscoFormer (Aniraj et al., ECCV 2024, arXiv 2407.04538), equation 4: parts of any shape, but connected.
    """
    differences = [(maps[:, :, 1:] - maps[:, :, :-1]).abs().sum(1), (maps[..., 1:] - maps[..., :-1]).abs().sum(1)]
    # A single cell has no neighbours, and no mean of their differences.
    return torch.stack([each.sum() / max(each.numel(), 1) for each in differences]).sum()


@in_float32
def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) and classes, int64 (B,) or shares of each (B, K) → scalar."""
    return functional.cross_entropy(logits, targets)
