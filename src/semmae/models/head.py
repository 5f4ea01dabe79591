"""One vector an image, and the linear head that classifies it: what a linear probe learns."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from semmae.models.vit import Features
from semmae.options.shared import Pooling
from semmae.options.values import check_choice


def pool(features: Features, pooling: Pooling) -> Tensor:
    """One vector an image, (B, C): the class token, or the mean of the patch tokens."""
    check_choice("pooling", pooling, get_args(Pooling))
    return features.cls if pooling == "cls" else features.patches.mean(1)


@dataclass(frozen=True)
class HeadSpec:
    """What must be known to build a head before its weights are loaded."""

    width: int  # C, channels of a token
    classes: tuple[str, ...]  # K names
    pooling: Pooling = "cls"

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, get_args(Pooling))


class LinearHead(nn.Module):
    """An encoder's `Features` → logits of classes (B, K): the MAE release's linear probe, and its first weights."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = nn.BatchNorm1d(spec.width, eps=1e-6, affine=False)
        self.linear = nn.Linear(spec.width, len(spec.classes))
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        return self.logits(pool(features, self.spec.pooling))

    def logits(self, pooled: Tensor) -> Tensor:
        """Vectors (B, C), pooled as `spec.pooling` says → (B, K)."""
        logits: Tensor = self.linear(self.norm(pooled))
        return logits

    @torch.no_grad()
    def standardise_by(self, pooled: Tensor) -> None:
        """Take mean and variance of the norm from these vectors (N, C), instead of from running averages."""
        variance, mean = torch.var_mean(pooled, dim=0)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)
