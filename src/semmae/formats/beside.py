"""What weights do not show of a model: heads, colours, epsilon of the norms, from the files beside them."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from semmae.errors import UserError
from semmae.files import Fields, read_json
from semmae.formats.choose import Chosen
from semmae.models.vit import MODELS
from semmae.models.weights import NORM_EPS
from semmae.names import shown
from semmae.options.shared import Pooling
from semmae.sizes import Size, read_size

Colour = tuple[float, ...]

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
IMAGENET: tuple[Colour, Colour] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class Unseen(NamedTuple):
    """What an encoder computes by and its tensors do not show."""

    mean: Colour  # of the images
    std: Colour
    norm_eps: float
    image_size: Size | None = None  # as trained, of images that are not square; None: the positions show it


def read_beside(path: Path, name: str = _CONFIG) -> dict[str, Any]:
    """The JSON file of that name beside the weights; empty where there is none."""
    config = path.with_name(name)
    return read_json(config) if config.is_file() else {}


def encoder_heads(path: Path, chosen: Chosen, width: int | None, asked: int | None, of_form: int | None) -> int:
    """Heads: as asked, else by `config.json` beside the file, by the project or `of_form`, or by the width."""
    return _heads("num_heads", path, width, asked, _by_project(path, chosen, width, of_form), _HEADS)


def decoder_heads(path: Path, width: int | None, asked: int | None) -> int:
    """Heads of MAE's decoder, as `encoder_heads`."""
    return _heads("decoder_num_heads", path, width, asked, None, _DECODER_HEADS)


def likely_decoder_heads(path: Path, width: int, otherwise: int) -> int:
    """Heads of MAE's decoder as `decoder_heads`, where nothing shows it `otherwise`; 1 where they do not divide it."""
    heads = _in_config(path, "decoder_num_heads") or _DECODER_HEADS.get(width, otherwise)
    return heads if width % heads == 0 else 1


def _heads(
    option: str, path: Path, width: int | None, asked: int | None, known: int | None, by_width: Mapping[int, int]
) -> int:
    if asked is not None:
        return asked
    heads = _in_config(path, option) or known
    if heads is not None:
        return heads
    if width is None:
        return 1  # no ViT at all; building it will say so
    if width not in by_width:
        raise UserError(f"{path}: weights of width {width} do not show the number of heads; give {option}")
    return by_width[width]


def _in_config(path: Path, option: str) -> int | None:
    """Number of heads in `config.json` beside the file, under our name or that of transformers."""
    fields = Fields(path.with_name(_CONFIG), read_beside(path))
    for name in (option, _SYNONYMS[option]):
        heads: int | None = fields.get(name, int)
        if heads is not None and heads < 1:
            raise UserError(f"{fields.path}: {name} is {heads}, and a model has 1 at least; restore it")
        if heads is not None:
            return heads
    return None


def _by_project(path: Path, chosen: Chosen, width: int | None, of_form: int | None) -> int | None:
    """Heads of models whose projects give them others than are usual at their width; that is logged."""
    sources = [chosen.source, *chosen.others]
    is_moco = chosen.arch == "vit_small" or any(word in source for source in sources for word in _MOCO)
    known = _MOCO_HEADS if is_moco and width == _MOCO_SMALL else of_form
    if known is not None:
        _LOG.info("%s: %d heads, as its project trains models of these sizes; others by num_heads", path, known)
    return known


def pooling_beside(path: Path) -> Pooling | None:
    """Which vector fits the encoder, as `config.json` beside the weights records it in our own section; None: not."""
    config = Fields(path.with_name(_CONFIG), read_beside(path))
    found: Pooling | None = Fields(config.path, config.get("semmae", dict, {})).get("pooling", str)
    if found is not None and found not in get_args(Pooling):
        raise UserError(
            f"{config.path}: pooling is {shown(found)}, must be {' or '.join(get_args(Pooling))}; restore it"
        )
    return found


def colours_beside(path: Path, _: Mapping[str, Tensor]) -> Unseen:
    """As an export of ours records them; released files have none beside them, and these are ImageNet's."""
    config = read_beside(path)
    return Unseen(*(colours(config.get("mean"), config.get("std")) or IMAGENET), NORM_EPS, oblong(config))


def colours(mean: Any, std: Any) -> tuple[Colour, Colour] | None:
    """Mean and standard deviation as found in a file of JSON, or None where there are none; ValueError for others."""
    if mean is None and std is None:
        return None
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list) or not values or not all(map(is_number, values)):
            raise ValueError(f"its {name} of the images is {shown(values)}, not a number for each channel")
    if len(mean) != len(std):
        raise ValueError(f"its mean of the images is of {len(mean)} channels, its std of {len(std)}")
    if min(std) <= 0:
        raise ValueError(f"its std of the images is {shown(std)}, not positive")
    return tuple(mean), tuple(std)


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def oblong(config: Mapping[str, Any]) -> Size | None:
    """The size of images that are not square, by a model's configuration or its script's options; None for others.

    A count of positions alone does not show them: 64 × 16 pixels in patches of 8 are as many as 32 × 32. It is
    `image_size` of transformers, `img_size` of timm, in the mapping or in its `model_kwargs`. ValueError for patches
    that are not square.
    """
    found, inner = None, config.get("model_kwargs")
    for mapping in (config, inner if isinstance(inner, Mapping) else {}):
        for name in ("patch_size", "image_size", "img_size"):
            sides = mapping.get(name)
            if not isinstance(sides, list | tuple) or len(set(map(str, sides))) < 2:
                continue
            if name == "patch_size":
                raise ValueError(f"its {name} is {'×'.join(map(shown, sides[:3]))}, not square")
            try:
                found = read_size(list(sides))
            except ValueError as error:
                raise ValueError(f"its {name} is {'×'.join(map(shown, sides[:3]))}, {error}") from None
    return found


def norm_pix_loss(path: Path, options: Mapping[str, Any], otherwise: bool | None) -> bool:
    """Whether a masked autoencoder predicts normalised pixels, by its own options or `config.json` beside it.

    `otherwise` is what the form takes where neither says it; None: the MAE paper's, with a warning.
    """
    found = options.get("norm_pix_loss", read_beside(path).get("norm_pix_loss"))
    if found is None and otherwise is None:
        _LOG.warning("%s: does not say norm_pix_loss; taken as true, as the MAE paper trains", path)
    return bool((True if otherwise is None else otherwise) if found is None else found)
