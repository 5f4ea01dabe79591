"""The forms of DINO, iBOT and DINOv2: timm's names behind prefixes, beside projection heads.

DINO's released backbones are flat; full checkpoints hold student and teacher, each with `module.`
(wrapped for several devices) or `backbone.` before the names, and a head. DINOv2's training scripts number
blocks within chunks, and its ViT-g has gated MLPs under names of its own.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# The last one is of torch.compile.
_PREFIXES = ("module.", "backbone.", "_orig_mod.")
# iBOT calls the token of a hidden patch masked_embed, DINOv2 mask_token; features do not need it.
_TRAINING_ONLY = ("head.", "masked_embed", "mask_token", "dino_head.", "ibot_head.")
_RENAMES = (
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),  # chunks; the second number runs over all blocks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the backbone, in timm's names, and the names, as in the file, of those dropped."""
    kept: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in state.items():
        bare = strip(name)
        if bare.startswith(_TRAINING_ONLY):
            dropped.append(name)
        else:
            for pattern, replacement in _RENAMES:
                bare = pattern.sub(replacement, bare)
            kept[bare] = tensor
    return with_registers(kept), dropped


def strip(name: str) -> str:
    """A tensor's name without the prefixes of wrappers, in whatever order they stand."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


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
