"""The form of DINOv2's training scripts: blocks numbered within chunks, gated MLPs, registers under names of their own.

What its checkpoints hold beside the encoder, as those of DINO, iBOT and MSN do, is left out by `choose`; without that,
the others bear timm's names.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from semmae.formats.form import Form, Reading, renamed

_RENAMES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks; the second number runs over all blocks
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_REGISTERS = "register_tokens"


def is_dinov2(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors bear names that only DINOv2's scripts give."""
    return any(name == _REGISTERS or re.search(pattern, name) for name in state for pattern, _ in _RENAMES)


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the backbone, in timm's names; none are dropped."""
    return with_registers({renamed(name, _RENAMES): tensor for name, tensor in state.items()}), []


def with_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's registers under timm's name; there the class token carries its own position."""
    if _REGISTERS not in state or "pos_embed" not in state:
        return state
    positions, registers = state["pos_embed"], state[_REGISTERS]
    others = {name: tensor for name, tensor in state.items() if name != _REGISTERS}
    return others | {
        "reg_token": registers,
        "cls_token": state["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


FORM = Form(
    name="dino",
    title="DINOv2's ViT",
    projects=("DINOv2",),
    reading=Reading(recognise=is_dinov2, to_encoder=to_encoder),
)
