"""Which vector says most of an image, by what an encoder was trained for.

The loss of a masked autoencoder does not train the class token, that of DINO and iBOT does little else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semmae.files import Fields, read_json, user_path
from semmae.formats import folders as checkpoint, mae
from semmae.formats.files import read_file
from semmae.formats.unfinished import is_unfinished, trains_autoencoder
from semmae.models.head import Pooling

# In a name, a word of its own or behind "sem" or "vit": no part of "mael".
_NAME = re.compile(r"(?<![a-z])(sem|vit[-_]?)?mae(?![a-z])", re.I)
_WRAPPERS = 3  # dictionaries around the tensors, at most
_FILES = (checkpoint.WEIGHTS, "pytorch_model.bin", mae.FILE)


def pooling_of(spec: str | Path) -> Pooling:
    """The mean of the patch tokens, or the class token: what fits an encoder.

    The mean for masked autoencoders, and for what was fine-tuned by it; the class token for DINO, iBOT, DINOv2 and all
    others. A file that holds an encoder alone, as MAE's own release does, is known by its name.

    Args:
        spec: as for `load_encoder`, which is to be called first: here nothing is refused.
    """
    if str(spec).startswith(("timm:", "hf:")):
        return "mean" if _NAME.search(str(spec)) else "cls"
    path = user_path(spec)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == checkpoint.WEIGHTS:
        told = _of_folder(folder)
        if told is not None:
            return told
    file = path if path.is_file() else next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        return "cls"
    return "mean" if _NAME.search(file.stem) or _holds_decoder(read_file(file)) else "cls"


def _of_folder(folder: Path) -> Pooling | None:
    """By what a run, or another folder of ours, tells of itself, or one of transformers or timm; None: it does not."""
    for name in ("", checkpoint.ENCODER, checkpoint.AUTOENCODER, checkpoint.CLASSIFIER, checkpoint.SEGMENTER):
        place = folder / name
        kind = checkpoint.kind(place)
        if kind == checkpoint.ENCODER:
            return "mean" if checkpoint.read_extra(place).get("stage") == "pretrain" else "cls"
        if kind == checkpoint.CLASSIFIER:
            return "mean" if _ours(place).get("pooling") == "mean" else "cls"
        if kind in (checkpoint.AUTOENCODER, checkpoint.SEGMENTER):  # the latter tells every pixel by its patch
            return "mean"
    if is_unfinished(folder):
        return "mean" if trains_autoencoder(folder) else "cls"
    path = folder / checkpoint.CONFIG
    config = Fields(path, read_json(path) if path.is_file() else {})
    timms = config.get("pretrained_cfg", dict, {})
    tag = timms.get("tag") if "architecture" in config.content else config.content.get("model_type")
    return "mean" if isinstance(tag, str) and _NAME.search(tag) else None


def _ours(folder: Path) -> Mapping[str, Any]:
    """What a folder of ours tells beside what timm reads."""
    path = folder / checkpoint.CONFIG
    own: Mapping[str, Any] = Fields(path, read_json(path)).need("semmae", dict)
    return own


def _holds_decoder(content: Mapping[str, Any], depth: int = _WRAPPERS) -> bool:
    """Whether a checkpoint holds MAE's decoder, in whatever it is wrapped."""
    if any("decoder_embed." in str(name) for name in content):
        return True
    inner = (value for value in content.values() if isinstance(value, Mapping))
    return depth > 0 and any(_holds_decoder(value, depth - 1) for value in inner)
