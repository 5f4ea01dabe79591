"""AdamW with the field's parameter groups, and its learning rate as a function of the step.

`adamw` and `warmup_cosine_rate` are plain PyTorch, for a loop of one's own; `adamw_warmup_cosine` is both, as
Lightning takes them.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import (  # type: ignore[attr-defined]  # exported without being declared so
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from semmae.train.schedules import warmup_cosine

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

# timm knows a bias by ".bias" or by its one dimension; the part tokens' have two, part and channel, and are named
# "query_bias" and "key_bias".
_BIASES = ("bias",)
# BEiT, and MAE's fine-tuning. In pre-training MAE, DINO and iBOT decay tokens and learned positions like weights.
_TOKENS = ("cls_token", "mask_token", "pos_embed", "reg_token")
_DECAYS = "decays"


def adamw(
    module: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW without decay on biases and norms, as MAE, DINO and iBOT pre-train: tokens and learned positions decay."""
    # Asked for a decay of 1, timm says which parameters decay also where the run's decay begins at 0.
    groups = [
        {**group, _DECAYS: group["weight_decay"] > 0, "weight_decay": weight_decay * group["weight_decay"]}
        for group in param_groups_weight_decay(module, 1.0, no_weight_decay_list=_named(module, _BIASES))
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def layer_decay_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameters in groups whose rate falls towards the input, as BEiT and MAE fine-tune.

    Tokens, positions and patch projection are layer 0, block i is layer i + 1, the head and the norm behind the
    pooling are the last, depth + 1: the rate is lr · layer_decay^(depth + 1 - layer). A norm before the pooling goes
    with the last block. Biases, norms, tokens and positions do not decay. The module is a timm ViT, or one that says as
    it does (`group_matcher`) to which layer a parameter belongs.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        module, weight_decay, no_weight_decay_list=_named(module, _BIASES + _TOKENS), layer_decay=layer_decay
    )
    # The highest rate first: that of the first group is the one in the metrics.
    groups.sort(key=lambda group: -float(group["lr_scale"]))
    return [{**group, "lr": lr * group["lr_scale"]} for group in groups]


def _named(module: nn.Module, endings: tuple[str, ...]) -> list[str]:
    return [name for name, _ in module.named_parameters() if name.endswith(endings)]


def warmup_cosine_rate(
    optimizer: torch.optim.Optimizer, *, total_steps: int, warmup_steps: int, end: float = 0.0
) -> LambdaLR:
    """The rate warms up to the optimiser's own, then follows a cosine to `end` times that; stepped once a step."""
    return LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total=total_steps, warmup=warmup_steps, start=1.0, end=end)
    )


def adamw_warmup_cosine(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    total_steps: int,
    warmup_steps: int,
    end: float = 0.0,
    fused: bool = True,
) -> "OptimizerLRScheduler":
    """`adamw` and `warmup_cosine_rate`, as Lightning takes them."""
    optimizer = adamw(module, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    rate = warmup_cosine_rate(optimizer, total_steps=total_steps, warmup_steps=warmup_steps, end=end)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, each: bool = False) -> Tensor:
    """Scale gradients down in place to a norm of `limit`; returns that of all together as it was, on their device.

    DINO and iBOT limit each (`clip_gradients` of their utils.py), so that one large gradient leaves the others alone.
    """
    if not each:
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of shards, all of them
    norms = [torch.nn.utils.clip_grad_norm_(own, limit) for own in parameters if own.grad is not None]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def can_fuse(trainer: "pl.Trainer") -> bool:
    """Whether the optimiser's step may be one kernel."""
    # Such a step undoes the scaling of the loss (fp16) by itself: too late for the gradient's norm to be limited.
    return trainer.precision != "16-mixed"


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give the groups that decay, of an optimiser by `adamw_warmup_cosine`, another weight decay."""
    for group in optimizer.param_groups:
        if group[_DECAYS]:
            group["weight_decay"] = value
