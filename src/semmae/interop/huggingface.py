"""The form of Hugging Face's transformers: ViT, ViTMAE, DINOv2, with registers or without.

Two sets of names are in use: files (and transformers 4) say `encoder.layer.0.attention.attention.query`,
`intermediate.dense`; models of transformers 5 in memory say `layers.0.attention.q_proj`, `mlp.fc1`. Queries, keys and
values are apart there and one tensor in timm. `config.json` beside the weights tells what they do not show.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from semmae.interop.dino import with_registers

Colour = tuple[float, float, float]

_KERNEL = "embeddings.patch_embeddings.projection.weight"
_DINOV3_KERNEL = "embeddings.patch_embeddings.weight"
# Heads, MAE's decoder, the token of a hidden patch: no part of an encoder.
_OTHER = ("classifier.", "decoder.", "pooler.", "mask_token")

_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(?:vit|dinov2|dinov2_with_registers)\.", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^layernorm\.", "norm."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
        (r"\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    )
]
# Tensors of timm that are several there, in the order of their rows.
_JOINED = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj.")}


def is_huggingface(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors bear the names of transformers."""
    return any(name.endswith((_KERNEL, _DINOV3_KERNEL)) for name in state)


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the encoder, in timm's names, and the names of those dropped.

    Raises:
        ValueError: it is DINOv3, whose positions are rotary.
    """
    if any(name.endswith(_DINOV3_KERNEL) for name in state):
        raise ValueError("DINOv3, whose positions are rotary, is read from timm only")
    kept: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in state.items():
        renamed = _rename(name)
        if renamed.startswith(_OTHER):
            dropped.append(name)
        else:
            kept[renamed] = tensor
    return with_registers(_join(kept)), dropped


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name, count=1)
    return name


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(state)
    for whole, parts in _JOINED.items():
        for first in (name for name in state if parts[0] in name):
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in joined for name in names):  # else loading tells what is missing
                joined[first.replace(parts[0], whole)] = torch.cat([joined.pop(name) for name in names])
    return joined


def check_config(config: Mapping[str, Any]) -> None:
    """ValueError where `config.json` describes what timm's blocks do not compute."""
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu" and not config.get("use_swiglu_ffn"):
        raise ValueError(f"its activation is {activation}, not gelu")


def norm_eps(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """Epsilon of the layer norms: as configured, else the default of ViT or of DINOv2."""
    is_vit = any(".layernorm_before." in name for name in state)
    return float(config.get("layer_norm_eps", 1e-12 if is_vit else 1e-6))


def normalisation(preprocessor: Mapping[str, Any]) -> tuple[Colour, Colour] | None:
    """Mean and standard deviation of the images, of `preprocessor_config.json`, or None where it tells none."""
    if preprocessor.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
        return None
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
