"""AdamW with the field's parameter groups, and its learning rate as a function of the step."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # exported without being declared so
from torch import nn

from semmae.tasks.schedules import warmup_cosine

# Tokens and positions are no weights of a linear map: never decayed (MAE, DINO). timm knows a bias by ".bias" or
# by its one dimension; the part tokens' have two, part and channel, and are named "query_bias" and "key_bias".
_NEVER_DECAYED = ("bias", "cls_token", "mask_token", "pos_embed", "reg_token")
_DECAYS = "decays"


def adamw_warmup_cosine(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    total_steps: int,
    warmup_steps: int,
    end: float = 0.0,
) -> OptimizerLRScheduler:
    """AdamW without decay on biases, norms and tokens; the rate warms up, then follows a cosine to `end` · lr."""
    tokens = [name for name, _ in module.named_parameters() if name.endswith(_NEVER_DECAYED)]
    # Asked for a decay of 1, timm tells which parameters decay also where the run's decay begins at 0.
    groups = [
        {**group, _DECAYS: group["weight_decay"] > 0, "weight_decay": weight_decay * group["weight_decay"]}
        for group in param_groups_weight_decay(module, 1.0, no_weight_decay_list=tokens)
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: warmup_cosine(step, total=total_steps, warmup=warmup_steps, start=1.0, end=end),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give the groups that decay, of an optimiser by `adamw_warmup_cosine`, another weight decay."""
    for group in optimizer.param_groups:
        if group[_DECAYS]:
            group["weight_decay"] = value
