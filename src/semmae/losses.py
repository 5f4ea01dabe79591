"""The objectives: masked pixels (MAE), masked tokens (MILAN), reconstruction and diversity (SemMAE, stage 1).

Every loss of the project goes through `in_float32`, those of other libraries too: what precedes it may be computed in
half precision, a loss is not. In bf16 close vectors are rounded onto each other, and small differences to nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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
    if isinstance(value, list | tuple):
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

    Normalised as a layer norm without weights does it, as in MILAN (arXiv 2208.06049). Its numbers then have mean 0 and
    variance 1, so that predicting 0 costs 1, and of a teacher no token counts more for being longer. MaskFeat (arXiv
    2112.09133) takes squared errors too, EVA (arXiv 2211.07636) the cosine; a squared error of tokens of one length
    asks for the same direction.
    """
    return functional.mse_loss(prediction, functional.layer_norm(tokens, tokens.shape[-1:]))


@in_float32
def reconstruction_loss(reconstruction: Tensor, images: Tensor, kind: Literal["mse", "l1"] = "mse") -> Tensor:
    """L_r of SemMAE: error of a reconstruction (B, 3, s, s) of images (B, 3, S, S), averaged by area to its size."""
    if images.shape[-1] != reconstruction.shape[-1]:
        images = functional.interpolate(images, reconstruction.shape[-2:], mode="area")
    if kind not in ("mse", "l1"):
        raise ValueError(f'kind must be "mse" or "l1", not {kind!r}')
    loss = functional.mse_loss if kind == "mse" else functional.l1_loss
    return loss(reconstruction, images)


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
def feature_loss(reconstruction: Tensor, patches: Tensor) -> Tensor:
    """L_r on frozen features: squared error of a reconstruction (B, C, g, g) of patch tokens (B, L, C), g² = L."""
    return functional.mse_loss(reconstruction.flatten(2).transpose(1, 2), patches)


@in_float32
def mutual_information_loss(first: Tensor, second: Tensor) -> Tensor:
    """Minus the mutual information of the labels that two views give to the same places, in nats.

    Lowest (−log N) when a place has the same label in both views, surely, and all labels are equally common:
    maps follow the image's geometry, ignore its colours, are decided, and none is left empty. Of soft labels
    (B, N, h, w) each, sum 1 over N. Invariant information clustering (arXiv 1807.06653), section 3.1.
    """
    count = first.shape[1]
    a, b = (maps.transpose(0, 1).reshape(count, -1) for maps in (first, second))
    joint = a @ b.T / a.shape[1]
    joint = ((joint + joint.T) / 2).clamp_min(torch.finfo(joint.dtype).eps)
    apart = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return -(joint * (joint / apart).log()).sum()


@in_float32
def concentration_loss(maps: Tensor) -> Tensor:
    """Mean variance of place within a part, in squared image sides: maps (B, N, g, g) → scalar in [0, 1/2].

    SCOPS (Hung et al., CVPR 2019, arXiv 1905.01298), section 3.2, "geometric concentration".
    """
    places = (torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype) + 0.5) / maps.shape[-1]
    mass = maps.sum((2, 3)).clamp_min(torch.finfo(maps.dtype).eps)
    spread = maps.new_zeros(maps.shape[:2])
    for shares in (maps.sum(3), maps.sum(2)):  # over the rows, over the columns: (B, N, g)
        centre = (shares * places).sum(2) / mass
        spread = spread + (shares * (places - centre[:, :, None]) ** 2).sum(2) / mass
    return spread.mean()


@in_float32
def total_variation_loss(maps: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring cells, summed over parts: maps (B, N, g, g) → scalar.

    PDiscoFormer (Aniraj et al., ECCV 2024, arXiv 2407.04538), equation 4: parts of any shape, but connected.
    """
    down = (maps[:, :, 1:] - maps[:, :, :-1]).abs().sum(1).mean()
    across = (maps[..., 1:] - maps[..., :-1]).abs().sum(1).mean()
    return down + across


@in_float32
def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) and classes, int64 (B,) or shares of each (B, K) → scalar."""
    return functional.cross_entropy(logits, targets)
