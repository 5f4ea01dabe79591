"""Several features an image: class token, mean of the patches, the patches themselves, their means per part."""

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from semmae.models.vit import Features

Tokens = Literal["cls", "mean", "patch", "parts"]
TOKENS: tuple[Tokens, ...] = get_args(Tokens)
COUNTS = "parts_count"  # beside "parts"


def image_tokens(
    features: Features, tokens: Collection[str], labels: Tensor | None = None, num_labels: int = 0
) -> dict[str, Tensor]:
    """Those of `TOKENS` that are asked for of a batch; for "parts" it needs the labels that `pool_parts` takes.

    "cls" and "mean" (B, C), "patch" (B, L, C), "parts" (B, K, C) with "parts_count" int32 (B, K).
    """
    found: dict[str, Tensor] = {}
    if "cls" in tokens:
        found["cls"] = features.cls
    if "mean" in tokens:
        found["mean"] = features.patches.mean(1)
    if "patch" in tokens:
        found["patch"] = features.patches
    if "parts" in tokens:
        assert labels is not None, "part tokens need the part of each patch"
        found["parts"], found[COUNTS] = pool_parts(features.patches, labels, num_labels)
    return found


def pool_parts(patches: Tensor, labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """The mean (B, K, C) of the patch tokens (B, L, C) of each part, and how many they are, int32 (B, K).

    `labels` (B, L) are the parts of the patches, 0 to `num_labels` - 1; a part that does not occur gives zeros.
    """
    members = F.one_hot(labels.long(), num_labels).transpose(1, 2)  # (B, K, L)
    counts = members.sum(2)
    means = members.to(patches) @ patches / counts.clamp_min(1)[:, :, None]
    return means, counts.to(torch.int32)
