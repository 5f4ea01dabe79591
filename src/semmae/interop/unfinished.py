"""A run of semmae that has not come to its end: its checkpoint → tensors of its encoder, in timm's names.

Lightning keeps all networks of a run in one file. Which of them the run would leave behind as `encoder/` is told by its
verb, and their sizes by its options, both in `config.yaml`. Nothing in the file is executed.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from semmae.errors import UserError
from semmae.interop.files import read_file
from semmae.models.vit import EncoderSpec

MARKER = ".unfinished"  # lies in a run's folder from its beginning to its good end
CHECKPOINT = Path("checkpoints") / "last.ckpt"
# Verbs that leave an encoder behind, by an option that none but they have.
VERB_OF = {"norm_pix_loss": "pretrain", "prototypes": "teacher", "mixup": "finetune", "aux_weight": "segment"}
# Where the checkpoint has it; of the two networks of a teacher the averaged one is kept.
_PREFIX = {"pretrain": "mae.encoder.vit.", "teacher": "teacher.vit."}


@dataclass(frozen=True)
class UnfinishedRun:
    """The encoder of a run that is under way, or was stopped."""

    state: Mapping[str, Tensor]  # in timm's names
    spec: EncoderSpec  # its sizes; of a run with `init`, colours are those of what it began with
    init: str | None  # what it began with, as for `load_encoder`
    num_heads: int | None  # of `init`
    told: str  # how far it has come, in words


def is_unfinished(folder: Path) -> bool:
    """Whether the folder is that of an unfinished run which is to leave an encoder behind."""
    return (folder / MARKER).is_file() and _verb(_options(folder)) is not None


def trains_autoencoder(folder: Path) -> bool:
    """Whether the folder is that of a run of pretrain."""
    return _verb(_options(folder)) == "pretrain"


def read_unfinished(folder: Path) -> UnfinishedRun:
    """What such a run has learned up to its last checkpoint.

    Raises:
        UserError: it has kept no encoder yet; the message tells how to go on.
    """
    options = _options(folder)
    verb = _verb(options)
    assert verb is not None
    going_on = f"go on with: semmae {verb} --out {shlex.quote(str(folder))} --resume"
    if verb not in _PREFIX or not (folder / CHECKPOINT).is_file():
        raise UserError(f"{folder}: not finished, and holds no encoder yet; {going_on}")
    content = read_file(folder / CHECKPOINT)
    prefix = _PREFIX[verb]
    try:
        state = {name.removeprefix(prefix): t for name, t in content["state_dict"].items() if name.startswith(prefix)}
        spec = EncoderSpec.named(options["model"], options["image_size"], options["patch_size"])
        step, epoch = content["global_step"], content["epoch"] + 1  # the epoch it is in, or has just ended
        told = f"not finished: step {step}, in epoch {epoch} of {options['epochs']}"
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: its {CHECKPOINT} or config.yaml was changed ({error}); {going_on}") from error
    heads = options.get("num_heads") if options.get("teacher") is None else None  # else they are of the teacher
    return UnfinishedRun(state, spec, options.get("init"), heads, told)


def _verb(options: Mapping[str, Any]) -> str | None:
    return next((verb for option, verb in VERB_OF.items() if option in options), None)


def _options(folder: Path) -> Mapping[str, Any]:
    """Those of config.yaml; none where there is no such file, or not yet."""
    path = folder / "config.yaml"
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML; restore it") from error
    return options if isinstance(options, dict) else {}
