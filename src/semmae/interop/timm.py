"""timm's models: by name with the weights of its hub, or as a flat state dict."""

import difflib
import logging
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from semmae.errors import UserError, near
from semmae.models.vit import Encoder
from semmae.models.weights import wrap_vit

_LOG = logging.getLogger("semmae")
# What classifiers have beyond the encoder.
_CLASSIFIER = ("head.", "head_dist.", "pre_logits.")


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the encoder, and the names of those dropped: the classifier's."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    return kept, [name for name in state if name not in kept]


def load_named(name: str) -> Encoder:
    """The encoder of a timm name with its hub weights, in eval mode.

    Args:
        name: as `timm.create_model` takes it; also `local-dir:FOLDER` and `hf-hub:OWNER/NAME`.

    Raises:
        UserError: no such name, no ViT with a class token, or its weights are out of reach.
    """
    if ":" not in name:
        _check_name(name)
        # Refused before anything is downloaded, and without memory for what may be refused.
        with torch.device("meta"):
            _wrap(name, _create(name, pretrained=False))
    return _wrap(name, _create(name, pretrained=True)).eval()


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*") if tag else timm.list_models()
    if timm.is_model(architecture) and (not tag or name in known):
        return
    matches = difflib.get_close_matches(name, known or timm.list_models(), n=3)
    hint = near(name, matches) if matches else '; timm.list_pretrained("vit*") lists them'
    raise UserError(f'timm has no model "{name}"{hint}')


def _create(name: str, pretrained: bool) -> Any:
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
        # Dropped afterwards: asked for a model without classifier, timm would not load strictly.
        before = list(model.state_dict())
        model.reset_classifier(0)
    except TypeError as error:
        # Models of other families do not take dynamic_img_size.
        raise UserError(_refusal(name, "it is no Vision Transformer")) from error
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        reason = " ".join(str(error).split())
        if name.startswith("local-dir:"):
            raise UserError(f"timm:{name} cannot be loaded ({reason}); restore the folder") from error
        raise UserError(
            f"the weights of timm:{name} are not at hand ({reason}); download them once where the hub can be "
            "reached (its cache, HF_HOME, may be copied), or give a checkpoint file"
        ) from error
    left = model.state_dict()
    dropped = [tensor for tensor in before if tensor not in left]
    if pretrained and dropped:
        _LOG.info("timm:%s: dropped, not part of an encoder: %s", name, ", ".join(dropped))
    return model


def _wrap(name: str, model: Any) -> Encoder:
    config = model.pretrained_cfg
    try:
        return wrap_vit(model, tuple(config["mean"]), tuple(config["std"]))
    except ValueError as error:
        raise UserError(_refusal(name, str(error))) from error


def _refusal(name: str, reason: str) -> str:
    remedy = "choose a ViT with a class token, e.g. vit_small_patch16_224.dino"
    return f"timm:{name} cannot be the encoder ({reason}); {remedy}"
