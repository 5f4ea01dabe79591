"""What weights do not show of a model: heads, colours, epsilon of the norms, from the files beside them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from semmae.errors import UserError
from semmae.files import Fields, read_json
from semmae.formats import huggingface, mmpretrain
from semmae.formats.choose import Chosen
from semmae.formats.huggingface import PREPROCESSOR, Colour
from semmae.models.vit import MODELS
from semmae.models.weights import NORM_EPS

_LOG = logging.getLogger("semmae")
_CONFIG = "config.json"
# Beyond our own sizes: DINOv2's ViT-g, and the ViT-g and ViT-G of "Scaling Vision Transformers".
_HEADS = {width: heads for width, _, heads in MODELS.values()} | {1536: 24, 1408: 16, 1664: 16}
# The decoders of the MAE release: width 512, 16 heads.
_DECODER_HEADS = {512: 16}
# MoCo v3's ViT-S has 12 heads, twice those of DeiT's and timm's of that width; in its own names and in mmpretrain's.
_MOCO_SMALL, _MOCO_HEADS = 384, 12
_MOCO = ("base_encoder.", "momentum_encoder.")
# What transformers calls the same.
_SYNONYMS = {"num_heads": "num_attention_heads", "decoder_num_heads": "decoder_num_attention_heads"}
_IMAGENET: tuple[Colour, Colour] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def read_beside(path: Path, name: str = _CONFIG) -> dict[str, Any]:
    """The JSON file of that name beside the weights; empty where there is none."""
    config = path.with_name(name)
    return read_json(config) if config.is_file() else {}


def encoder_heads(path: Path, chosen: Chosen, width: int | None, asked: int | None) -> int:
    """Heads of an encoder: as asked, else by `config.json` beside the file, by its project, or by its width.

    Args:
        path: of the weights.
        chosen: what was read of them.
        width: channels of a token; None where there is no class token.
        asked: by the user.

    Raises:
        UserError: nothing tells; names the option to give.
    """
    return _heads("num_heads", path, width, asked, _by_project(path, chosen, width), _HEADS)


def decoder_heads(path: Path, width: int | None, asked: int | None) -> int:
    """Heads of MAE's decoder, as `encoder_heads`."""
    return _heads("decoder_num_heads", path, width, asked, None, _DECODER_HEADS)


def likely_decoder_heads(path: Path, width: int, otherwise: int) -> int:
    """Heads of MAE's decoder as `decoder_heads`, where nothing tells `otherwise`, and 1 where they do not divide it."""
    told = _told(path, "decoder_num_heads") or _DECODER_HEADS.get(width, otherwise)
    return told if width % told == 0 else 1


def _heads(
    option: str, path: Path, width: int | None, asked: int | None, known: int | None, by_width: Mapping[int, int]
) -> int:
    if asked is not None:
        return asked
    told = _told(path, option) or known
    if told is not None:
        return told
    if width is None:
        return 1  # no ViT at all; building it will say so
    if width not in by_width:
        raise UserError(f"{path}: weights of width {width} do not show the number of heads; give {option}")
    return by_width[width]


def _told(path: Path, option: str) -> int | None:
    """Number of heads that `config.json` beside the file tells, under our name or that of transformers."""
    fields = Fields(path.with_name(_CONFIG), read_beside(path))
    for name in (option, _SYNONYMS[option]):
        told: int | None = fields.get(name, int)
        if told is not None and told < 1:
            raise UserError(f"{fields.path}: {name} is {told}, and a model has 1 at least; restore it")
        if told is not None:
            return told
    return None


def _by_project(path: Path, chosen: Chosen, width: int | None) -> int | None:
    """Heads of models whose projects give them others than are usual at their width; that is logged."""
    known = mmpretrain.num_heads(chosen.tensors) if mmpretrain.is_mmpretrain(chosen.tensors) else None
    sources = [chosen.source, *chosen.others]
    is_moco = chosen.arch == "vit_small" or any(word in source for source in sources for word in _MOCO)
    if is_moco and width == _MOCO_SMALL:
        known = _MOCO_HEADS
    if known is not None:
        _LOG.info("%s: %d heads, as its project trains models of these sizes; others by num_heads", path, known)
    return known


def unseen(path: Path, foreign: Mapping[str, Tensor] | None) -> tuple[Colour, Colour, float]:
    """Mean and std of the images, and epsilon of the norms, of the files beside the weights.

    Args:
        path: of the weights.
        foreign: the tensors, where they bear the names of transformers.

    Raises:
        ValueError: `config.json` describes what timm's blocks do not compute.
    """
    config = read_beside(path)
    check_square(config)
    if foreign is None:
        # As an export of ours tells them; released files have none beside them, and these are ImageNet's.
        mean, std = huggingface.colours(config.get("mean"), config.get("std")) or _IMAGENET
        return mean, std, NORM_EPS
    huggingface.check_config(config)
    told = huggingface.normalisation(read_beside(path, PREPROCESSOR))
    if told is None:
        _LOG.warning("%s: no image_mean and image_std in %s beside it; ImageNet's are taken", path, PREPROCESSOR)
    mean, std = told or _IMAGENET
    return mean, std, huggingface.norm_eps(foreign, config)


def check_square(told: Mapping[str, Any]) -> None:
    """Refuse images or patches that are not square, by a model's configuration or its training script's options.

    A count of positions alone does not show them: 64 × 16 pixels in patches of 8 are as many as 32 × 32.

    Args:
        told: `image_size` of transformers, `img_size` of timm, in the mapping or in its `model_kwargs`.

    Raises:
        ValueError: one is of two sides that differ.
    """
    inner = told.get("model_kwargs")
    for mapping in (told, inner if isinstance(inner, Mapping) else {}):
        for name in ("image_size", "img_size", "patch_size"):
            sides = mapping.get(name)
            if isinstance(sides, list | tuple) and len(set(map(str, sides))) > 1:
                raise ValueError(f"its {name} is {'×'.join(map(str, sides[:3]))}, not square")


def norm_pix_loss(path: Path, options: Mapping[str, Any], *, is_huggingface: bool) -> bool:
    """Whether a masked autoencoder predicts normalised pixels, by its own options or `config.json` beside it."""
    told = options.get("norm_pix_loss", read_beside(path).get("norm_pix_loss"))
    if told is None and is_huggingface:
        return False  # as transformers takes it
    if told is None:
        _LOG.warning("%s: does not say norm_pix_loss; taken as true, as the MAE paper trains", path)
        return True
    return bool(told)
