"""The configuration with which timm builds an encoder of ours: its folder is a timm folder too."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semmae.errors import UserError
from semmae.models.vit import MODELS, Encoder, EncoderSpec
from semmae.models.weights import has_swiglu, vit_arguments
from semmae.names import shown

# What timm's data pipeline asks of a model of ours: what semmae shows it. Mean, std and size come from the
# specification.
_PREPROCESSING = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}


def timm_config(encoder: Encoder, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration with which timm builds this encoder, with a head for `classes`; checked to do so."""
    spec, vit = encoder.spec, encoder.vit
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"an encoder of timm's class {type(vit).__name__} (DINOv3, EVA) cannot be saved: its weights do not show "
            "its rotary positions; give it as timm:NAME wherever it is needed"
        )
    state = vit.state_dict()
    arguments = vit_arguments(state, spec.num_heads) | {"num_classes": len(classes)}
    # Models of timm's own factory carry it; it holds what cannot be seen in the weights (activations …).
    known: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
    # Gated MLPs are no argument that JSON can hold.
    nearest = "vit_giant_patch14_dinov2" if has_swiglu(state) else _nearest_name(spec)
    architecture = known.get("architecture") or nearest
    with torch.device("meta"):
        # Its weights are nobody's: to draw them, though there is no memory behind them, would be most of the time.
        described = timm.create_model(architecture, pretrained=False, weight_init="skip", **arguments)
    if _signature(described) != _signature(vit):
        raise UserError(
            f"the encoder is not what timm builds as {architecture} with {shown(arguments)}, so it could not be "
            "read again; save encoders that come from timm:NAME, EncoderSpec, or a file in timm's, DINO's or MAE's form"
        )
    preprocessing = {key: known.get(key, default) for key, default in _PREPROCESSING.items()}
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": spec.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, spec.image_size, spec.image_size],
            "fixed_input_size": False,
            **preprocessing,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        **({"label_names": list(classes)} if classes else {}),
    }


def _nearest_name(spec: EncoderSpec) -> str:
    """A name of timm's for these sizes; every argument is given beside it, so that near is enough."""
    nearest_first = sorted(MODELS, key=lambda name: abs(MODELS[name][0] - spec.width))
    names = (f"{name}_patch{patch}_224" for name in nearest_first for patch in (spec.patch_size, 16, 14))
    return next(name for name in names if timm.is_model(name))


def _signature(vit: nn.Module) -> list[tuple[str, ...]]:
    """What must agree for equal features: tensors and layers; dropout is no part of a trained model."""
    tensors = [(name, str(tuple(tensor.shape))) for name, tensor in vit.state_dict().items()]
    layers = [
        (name, type(layer).__name__, layer.extra_repr())
        for name, layer in vit.named_modules()
        if not isinstance(layer, nn.Dropout | DropPath | nn.Identity)
    ]
    return [*tensors, *layers]
