"""The forms of DINO, iBOT, DINOv2 and MSN: timm's names, beside projection heads.

What stands before the names, in full checkpoints of student and teacher, is taken off by `choose`. DINOv2's training
scripts number blocks within chunks, and its ViT-g has gated MLPs under names of its own. MSN's heads are `fc.` and
`pred.`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# iBOT calls the token of a hidden patch masked_embed, DINOv2 mask_token; features do not need it.
_TRAINING_ONLY = ("head.", "masked_embed", "mask_token", "dino_head.", "ibot_head.", "fc.", "pred.")
_RENAMES = (
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),  # chunks; the second number runs over all blocks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the backbone, in timm's names, and the names of those dropped."""
    kept: dict[str, Tensor] = {}
    dropped = [name for name in state if name.startswith(_TRAINING_ONLY)]
    for name in state:
        if name not in dropped:
            bare = name
            for pattern, replacement in _RENAMES:
                bare = pattern.sub(replacement, bare)
            kept[bare] = state[name]
    return with_registers(kept), dropped


def with_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's registers under timm's name; there the class token carries its own position."""
    if "register_tokens" not in state or "pos_embed" not in state:
        return state
    positions, registers = state["pos_embed"], state["register_tokens"]
    renamed = {name: tensor for name, tensor in state.items() if name != "register_tokens"}
    return renamed | {
        "reg_token": registers,
        "cls_token": state["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }
