"""AdamW with the field's parameter groups, and its learning rate as a function of the step."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # exported without being declared so
from torch import nn

from semmae.tasks.schedules import warmup_cosine

# Tokens and positions are no weights of a linear map: never decayed (MAE, DINO). timm knows a bias by ".bias" or
# by its one dimension; the part tokens' have two, part and channel, and are named "query_bias" and "key_bias".
_NEVER_DECAYED = ("bias", "cls_token", "mask_token", "pos_embed", "reg_token")


def adamw_warmup_cosine(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    total_steps: int,
    warmup_steps: int,
) -> OptimizerLRScheduler:
    """AdamW without decay on biases, norms and tokens; the rate warms up, then follows a cosine to 0."""
    tokens = [name for name, _ in module.named_parameters() if name.endswith(_NEVER_DECAYED)]
    groups = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=tokens)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: warmup_cosine(step, total=total_steps, warmup=warmup_steps, start=1.0, end=0.0),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
