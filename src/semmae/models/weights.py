"""From tensors to an encoder, and back to what describes it: sizes and options read off the weights.

Notable here:
- `vit_arguments` reads what a timm model must be built with off the names and shapes of its tensors; only the number
  of heads cannot be seen there, nor the epsilon of the norms;
- loading is strict: nothing is skipped, nothing is left at its initial value, and no value is infinite or no number;
- what a file claims is built without memory first, and compared with its tensors: no size is taken on trust.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.errors import listed
from semmae.models.blocks import AnyBlock, check_readable
from semmae.models.vit import Encoder, EncoderSpec
from semmae.sizes import Grid, as_size

State = Mapping[str, Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
NORM_EPS = 1e-6  # of the layer norms of timm, MAE, DINO and our own models

# What an encoder may have beyond the plain ViT of MAE, recognised by a part of a tensor's name.
MEAN_NORM = "a final norm behind mean pooling"
NO_QKV_BIAS = "queries, keys and values without biases"
_PECULIAR = {
    "reg_token": "registers",
    "norm_pre.": "a norm before the blocks",
    ".ls1.": "layer scale",
    ".attn.q_norm.": "normalised queries and keys",
    ".attn.norm.": "norms inside attention",
    ".mlp.norm.": "norms inside its MLPs",
    "fc_norm.": MEAN_NORM,
}


def vit_arguments(state: State, num_heads: int, grid: Grid | None = None) -> dict[str, Any]:
    """Arguments that build the timm VisionTransformer which these tensors, in timm's names, belong to.

    Options appear only where they differ from timm's defaults; they can be written as JSON. Without the `grid` of the
    positions it is taken to be a square: bare weights do not show that 16 positions were 8 × 2.
    """
    _check_is_vit(state)
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide the width {width}")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    (rows, columns), token_positions = _grid_of(state["pos_embed"].shape[1], 1 + registers, grid)
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    arguments: dict[str, Any] = {
        "img_size": as_size(rows * patch_size, columns * patch_size),
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
        "in_chans": channels if channels != 3 else 0,
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


def has_swiglu(state: State) -> bool:
    """Whether the MLPs are gated (DINOv2's ViT-g): their first layer makes gate and value at once."""
    first, second = state["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc2.weight"]
    return first.shape[0] == 2 * second.shape[1]


def peculiarities(encoder: Encoder) -> list[str]:
    """What sets an encoder apart from the plain ViT that MAE trains, in words; empty for a plain one."""
    vit = encoder.vit
    if isinstance(vit, Eva):
        return ["the blocks of timm's Eva, rotary positions among them"]
    state = vit.state_dict()
    found = [words for part, words in _PECULIAR.items() if any(part in name for name in state)]
    if vit.no_embed_class and "reg_token" not in state:
        found.append("a class token without position")
    if "blocks.0.attn.qkv.bias" not in state:
        found.append(NO_QKV_BIAS)
    if has_swiglu(state):
        return [*found, "gated MLPs"]
    first: AnyBlock = vit.blocks[0]
    activation = first.mlp.act
    if not isinstance(activation, nn.GELU) or activation.approximate != "none":
        found.append(f"the activation {activation}")
    return found


def norm_epsilons(module: nn.Module) -> set[float]:
    """Epsilons of its layer norms; more than one where they differ."""
    return {layer.eps for layer in module.modules() if isinstance(layer, nn.LayerNorm)}


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Give all its layer norms this epsilon, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = eps


def _check_is_vit(state: State) -> None:
    kernel = "patch_embed.proj.weight"
    blocks = [f"blocks.0.{name}.weight" for name in ("norm1", "mlp.fc1", "mlp.fc2")]
    for name in (kernel, "cls_token", "pos_embed", *blocks):
        if name == "pos_embed" and name not in state and blocks[0] in state:
            raise ValueError("no pos_embed: its positions are rotary (DINOv3), relative (BEiT) or none")
        if name not in state:
            raise ValueError(
                f"no Vision Transformer with a class token: {name} is missing among {listed(state) or 'nothing'}"
            )
    dimensions = {"cls_token": 3, "pos_embed": 3, "reg_token": 3, blocks[1]: 2, blocks[2]: 2}
    for name, wanted in dimensions.items():
        if name in state and state[name].ndim != wanted:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {wanted} dimensions")
    shape = tuple(state[kernel].shape)
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise ValueError(f"{kernel} is {shape}, expected (width, channels, p, p): square patches of images")


def _grid_of(length: int, prefix: int, grid: Grid | None) -> tuple[Grid, bool]:
    """The grid of `length` positions, and whether the prefix tokens have positions too."""
    for patches, token_positions in ((length, False), (length - prefix, True)):
        side = math.isqrt(max(patches, 0))
        rows, columns = grid or (side, side)
        if patches > 0 and rows * columns == patches:
            return (rows, columns), token_positions
    which = f"no grid of {grid[0]} × {grid[1]}, as its image_size has it," if grid else "no square grid"
    raise ValueError(f"pos_embed has {length} positions, which is {which} with {prefix} prefix tokens")


def _ratio(hidden: int, width: int) -> float:
    """The ratio from which timm's int(width · ratio) gives `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def encoder_from_weights(
    state: State,
    num_heads: int,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    norm_eps: float = NORM_EPS,
    grid: Grid | None = None,
) -> Encoder:
    """The encoder, in eval mode, of tensors in timm's names; sizes are those of the tensors, `grid` of the positions.

    Without a grid it is a square.
    """
    arguments = vit_arguments(state, num_heads, grid)
    if has_swiglu(state):
        arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    vit = fitted(
        lambda: VisionTransformer(**arguments, norm_layer=partial(LayerNorm, eps=norm_eps), weight_init="skip"), state
    )
    return wrap_vit(vit, mean, std).eval()


def wrap_vit(vit: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Encoder:
    """An encoder around a timm model, specified by the model itself; refused as by `check_readable`."""
    readable = check_readable(vit)
    sizes = _eva_sizes(readable) if isinstance(readable, Eva) else _vit_sizes(readable)
    if isinstance(readable.patch_embed, HybridEmbed):
        raise ValueError("its patches are of a convolutional network's features (HybridEmbed), not of images")
    channels = readable.patch_embed.proj.weight.shape[1]
    if not len(mean) == len(std) == channels:
        raise ValueError(f"its images have {channels} channels, and their mean and std {len(mean)} and {len(std)}")
    return Encoder(EncoderSpec(**sizes, mean=mean, std=std), readable)


def _vit_sizes(vit: VisionTransformer) -> dict[str, Any]:
    """Sizes read off the weights, but for the grid, which only the model itself knows."""
    last: AnyBlock = vit.blocks[-1]
    heads = last.attn.num_heads
    arguments = vit_arguments(vit.state_dict(), heads, vit.patch_embed.grid_size)
    return {
        "image_size": arguments["img_size"],
        "patch_size": arguments["patch_size"],
        "width": arguments["embed_dim"],
        "depth": arguments["depth"],
        "num_heads": heads,
        "mlp_ratio": arguments["mlp_ratio"],
    }


def _eva_sizes(vit: Eva) -> dict[str, Any]:
    """Sizes of a model that may have no positions among its tensors: its own options give the grid."""
    embed = vit.patch_embed
    last: AnyBlock = vit.blocks[-1]
    if embed.patch_size[0] != embed.patch_size[1]:
        raise ValueError(f"its patches are {embed.patch_size[0]}×{embed.patch_size[1]}, not square")
    return {
        "image_size": as_size(*embed.img_size),
        "patch_size": embed.patch_size[0],
        "width": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": last.attn.num_heads,
        "mlp_ratio": last.mlp.fc2.in_features / vit.embed_dim,
    }


def fitted(make: Callable[[], ModuleT], state: State) -> ModuleT:
    """The module that `make` builds, with these tensors; built without memory first: false sizes cost nothing."""
    with torch.device("meta"):
        _check_fits(make(), state)
    module = make()
    load_strictly(module, state)
    return module


def load_strictly(module: nn.Module, state: State) -> None:
    """Copy `state` into the module: the same names, shapes and kinds of numbers, or ValueError naming the faults."""
    _check_fits(module, state)
    module.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
    if broken := not_finite(module.state_dict()):  # in the module's own precision: float32 has no 1e300
        raise ValueError(f"tensors with values that are infinite or no numbers: {listed(broken)}")


def not_finite(state: State) -> list[str]:
    """Names of tensors that hold infinite values or none at all (NaN), as training that diverged leaves them."""
    floats = {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}
    floats |= {name: tensor.float() for name, tensor in floats.items() if tensor.element_size() == 1}  # float8
    return [name for name, tensor in floats.items() if not all(map(math.isfinite, map(float, tensor.aminmax())))]


def _check_fits(module: nn.Module, state: State) -> None:
    own = module.state_dict()
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
        # Whole numbers for floats are those of a quantised model, whose scales lie elsewhere.
        "of another kind": [
            f"{name} {_dtype(state[name])} for {_dtype(tensor)}"
            for name, tensor in own.items()
            if name in state and state[name].is_floating_point() != tensor.is_floating_point()
        ],
    }
    found = [f"{kind}: {listed(names)}" for kind, names in faults.items() if names]
    if found:
        raise ValueError("tensors " + "; ".join(found))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
