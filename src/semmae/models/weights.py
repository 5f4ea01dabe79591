"""From tensors to an encoder, and back to what describes it: sizes and options read off the weights.

Notable here:
- one function, `vit_arguments`, reads what a timm model must be built with off the names and shapes
  of its tensors; loading a foreign file and writing our own configuration both use it;
- only the number of heads cannot be seen in the weights;
- loading is strict: nothing is skipped, nothing is left at its initial value.
"""

import math
from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from semmae.models.vit import Encoder, EncoderSpec

State = Mapping[str, Tensor]


def vit_arguments(state: State, num_heads: int) -> dict[str, Any]:
    """Arguments that build the timm VisionTransformer which these tensors, in timm's names, belong to.

    Options appear only where they differ from timm's defaults; they can be written as JSON.

    Raises:
        ValueError: the tensors are not those of a ViT with a class token and square patches.
    """
    _check_is_vit(state)
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide the width {width}")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    side, token_positions = _grid_side(state["pos_embed"].shape[1], 1 + registers)
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    arguments: dict[str, Any] = {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in state),
        "num_heads": num_heads,
        "mlp_ratio": _ratio(hidden, width),
        "num_classes": 0,
        # With mean pooling timm moves the final norm behind the pooling, under another name.
        "global_pool": "avg" if "fc_norm.weight" in state else "token",
        "dynamic_img_size": True,
    }
    options = {
        "reg_tokens": registers,
        "no_embed_class": not token_positions,
        "pre_norm": "norm_pre.weight" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
    }
    arguments |= {name: value for name, value in options.items() if value}
    if "blocks.0.attn.qkv.bias" not in state:
        arguments["qkv_bias"] = False
    if "blocks.0.ls1.gamma" in state:
        arguments["init_values"] = 1e-5  # any number asks for layer scale; the weights replace it
    return arguments


def _check_is_vit(state: State) -> None:
    kernel = "patch_embed.proj.weight"
    for name in (kernel, "cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            found = ", ".join(list(state)[:3]) or "nothing"
            raise ValueError(f"no Vision Transformer with a class token: {name} is missing among {found}, …")
    shape = tuple(state[kernel].shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"{kernel} is {shape}, expected (width, 3, p, p): square patches of RGB images")


def _grid_side(length: int, prefix: int) -> tuple[int, bool]:
    """Side of the grid of `length` positions, and whether the prefix tokens have positions too."""
    for patches, token_positions in ((length, False), (length - prefix, True)):
        side = math.isqrt(max(patches, 0))
        if side and side**2 == patches:
            return side, token_positions
    raise ValueError(f"pos_embed has {length} positions, which is no square grid with {prefix} prefix tokens")


def _ratio(hidden: int, width: int) -> float:
    """The ratio from which timm's int(width · ratio) gives `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def encoder_from_weights(
    state: State,
    num_heads: int,
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
) -> Encoder:
    """The encoder, in eval mode, of tensors in timm's names; sizes are those of the tensors.

    Raises:
        ValueError: no such ViT, or tensors missing, unexpected or of another shape.
    """
    vit = VisionTransformer(**vit_arguments(state, num_heads), weight_init="skip")
    load_strictly(vit, state)
    return wrap_vit(vit, mean, std).eval()


def wrap_vit(vit: nn.Module, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Encoder:
    """An encoder around a timm model, specified by the model itself.

    Raises:
        ValueError: not a Vision Transformer of the kind whose tokens and attention `Encoder` can read.
    """
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"its class in timm is {type(vit).__name__}, not VisionTransformer")
    if vit.cls_token is None:
        raise ValueError("the model has no class token")
    last = vit.blocks[-1]
    if type(last) is not Block or not isinstance(last.attn, Attention):
        raise ValueError(f"its last block, a {type(last).__name__}, has no plain attention")
    heads = last.attn.num_heads
    arguments = vit_arguments(vit.state_dict(), heads)
    spec = EncoderSpec(
        image_size=arguments["img_size"],
        patch_size=arguments["patch_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        num_heads=heads,
        mlp_ratio=arguments["mlp_ratio"],
        mean=mean,
        std=std,
    )
    return Encoder(spec, vit)


def load_strictly(module: nn.Module, state: State) -> None:
    """Copy `state` into the module: the same names, the same shapes, or ValueError naming those at fault."""
    own = module.state_dict()
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    told = [f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names]
    if told:
        raise ValueError("tensors " + "; ".join(told))
    module.load_state_dict(dict(state))
