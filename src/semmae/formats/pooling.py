"""Which vector says most of an image, by what an encoder was trained for.

The loss of a masked autoencoder does not train the class token, that of DINO and iBOT does little else. So it is the
mean of the patch tokens for masked autoencoders and for what was fine-tuned by it, the class token for DINO, iBOT,
DINOv2 and all others. What semmae writes, a run or an export in any form, records it in its `config.json`. A file of
others that holds an encoder alone, as MAE's own release does, is known by its name.
"""

import re
from pathlib import Path

from semmae.formats import folders as checkpoint
from semmae.formats.beside import pooling_beside, read_beside
from semmae.formats.table import reading_of_folder
from semmae.formats.unfinished import is_unfinished
from semmae.options import VERBS
from semmae.options.shared import Pooling
from semmae.run.config import saved_options

# In a name, a word of its own or behind "sem" or "vit": no part of "mael".
_NAME = re.compile(r"(?<![a-z])(sem|vit[-_]?)?mae(?![a-z])", re.I)


def pooling_by_name(name: str) -> Pooling:
    """By the name of a model, such as `timm:vit_base_patch16_224.mae`."""
    return "mean" if _NAME.search(name) else "cls"


def pooling_of_file(path: Path, has_decoder: bool) -> Pooling:
    """Of a checkpoint file."""
    return "mean" if has_decoder else pooling_beside(path) or pooling_by_name(path.stem)


def pooling_of_folder(folder: Path) -> Pooling | None:
    """By what a run, or another folder of ours, records of itself, or one of transformers or timm; None: nothing."""
    for name in ("", checkpoint.ENCODER, checkpoint.AUTOENCODER, checkpoint.CLASSIFIER, checkpoint.SEGMENTER):
        place = folder / name
        kind = checkpoint.kind(place)
        if kind == checkpoint.ENCODER:
            return _trained_by(checkpoint.read_extra(place).get("stage")) or pooling_beside(place / checkpoint.CONFIG)
        if kind == checkpoint.CLASSIFIER:
            return pooling_beside(place / checkpoint.CONFIG)
        if kind in (checkpoint.AUTOENCODER, checkpoint.SEGMENTER):  # the latter classifies every pixel by its patch
            return "mean"
    if is_unfinished(folder):
        return _trained_by(saved_options(folder).get("verb"))
    config = read_beside(folder / checkpoint.CONFIG)
    reading = reading_of_folder(config)
    model = None if reading is None or reading.model_name is None else reading.model_name(config)
    return "mean" if isinstance(model, str) and pooling_by_name(model) == "mean" else None


def _trained_by(verb: object) -> Pooling | None:
    """Of an encoder that this verb has trained; None for what is no verb."""
    return VERBS[verb].pooling if isinstance(verb, str) and verb in VERBS else None
