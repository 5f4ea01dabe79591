"""A run of semmae that has not come to its end: its checkpoint → tensors of its encoder, in timm's names.

Lightning keeps all networks of a run in one file. Which of them the run would leave behind as `encoder/`
follows from its verb, and their sizes from its options, both in `config.yaml`. Nothing in the file is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from semmae.errors import UserError
from semmae.files import Fields, read_json
from semmae.formats.beside import colours
from semmae.formats.files import read_file
from semmae.models.vit import IMAGENET, MODELS, EncoderSpec
from semmae.names import shown
from semmae.options import VERBS
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.run.config import UNFINISHED, saved_options
from semmae.shell import command
from semmae.sizes import sides

CHECKPOINT = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True)
class UnfinishedRun:
    """The encoder of a run that is under way, or was stopped."""

    state: Mapping[str, Tensor]  # in timm's names
    spec: EncoderSpec  # its sizes; of a run with `init`, colours are those of what it began with
    init: str | None  # what it began with, as for `load_encoder`
    num_heads: int | None  # of `init`
    progress: str  # how far it has come, in words


def is_unfinished(folder: Path) -> bool:
    """Whether the folder is that of an unfinished run which is to leave an encoder behind."""
    verb = saved_options(folder).get("verb") if (folder / UNFINISHED).is_file() else None
    return verb in VERBS and bool(VERBS[verb].network)


def read_unfinished(folder: Path) -> UnfinishedRun:
    """What such a run has learned up to its last checkpoint; UserError where it has kept no encoder yet."""
    options = saved_options(folder)
    verb = str(options["verb"])
    remedy = f"resume with: {command(verb, out=folder, resume=True)}"
    path, prefix = folder / CHECKPOINT, VERBS[verb].checkpoint
    if not prefix or not path.is_file():
        raise UserError(f"{folder}: not finished, and holds no encoder yet; {remedy}")
    held, begun = Fields(path, read_file(path)), Fields(folder / "config.yaml", options)
    tensors = held.need("state_dict", dict)
    state = {
        str(name).removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if str(name).startswith(prefix) and isinstance(tensor, Tensor)
    }
    model, epochs = begun.need("model", str), begun.need("epochs", int)
    size, patch = begun.size("image_size"), begun.need("patch_size", int)
    if model not in MODELS or size is None or min(*sides(size), patch) < 1:
        sizes = [size, patch]
        raise UserError(f"{begun.path}: {shown(model)} with {sizes} pixels is no model; restore it, or {remedy}")
    step, epoch = held.need("global_step", int), held.need("epoch", int) + 1  # the epoch it is in, or has just ended
    progress = f"not finished: step {step}, in epoch {epoch} of {epochs}"
    # Given together with a teacher, the number of heads is the teacher's.
    named = begun.get("teacher", str | None) not in (None, AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER)
    heads = None if named else begun.get("num_heads", int | None)
    spec = EncoderSpec.named(model, size, patch, _colours(folder))
    return UnfinishedRun(state, spec, begun.get("init", str | None), heads, progress)


def _colours(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the run normalises by, as its summary has them; without any ImageNet's."""
    path = folder / "summary.json"
    found = Fields(path, read_json(path)) if path.is_file() else Fields(path, {})
    try:
        return colours(found.get("mean", list), found.get("std", list)) or IMAGENET
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore it") from error
