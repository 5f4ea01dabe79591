"""What is checked of a command before anything that computes is imported: mistakes are answered at once."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from semmae.errors import UserError, near_only
from semmae.names import has_braces, shown, user_path
from semmae.options.fields import Option, Reads, options_of
from semmae.options.shared import RunOptions
from semmae.options.values import check_given, check_values
from semmae.run.config import began_alike, verb_of_run
from semmae.run.finished import check_known_again
from semmae.run.folder import check_claim, settled
from semmae.run.places import is_path

_REMEDIES: dict[Reads, str] = {
    "images": "give a folder of images, a list of them, Parquet files or hf:NAME",
    "annotations": "give a folder of PNG annotations",
    "network": "give a run of semmae, timm:NAME, hf:NAME, or a checkpoint file",
    "labels": "give a run of semmae parts or pretrain",
    "learner": "give a run of semmae parts",
    "run": "give the folder that a command wrote with --out",
    "file": "check the path",
    "rows": "give a YAML file of rows",
}


def writes_run(options: Any) -> TypeGuard[RunOptions]:
    """Whether the verb writes the folder of a run: some write a file, or a folder for other programs."""
    return isinstance(options, RunOptions) and not options_of(type(options))["out"].facts.suffixes


def check_start(options: Any, given: Iterable[str]) -> None:
    """Refuse options that are wrong by themselves or beside each other, inputs that are not there, and a place that
    cannot be written to, or is occupied by another run; nothing is written. Those `given` by the user are refused where
    they have no effect.
    """
    check_values(options)
    check_given(options, given)
    if writes_run(options):
        check_claim(options)
        check_known_again(options)
        # Of a run that is finished its verb says so; what may be deleted is looked at beside the inputs.
        if not (options.overwrite or began_alike(options, leaves_the_same=True)):
            settled(options)
    for name, option in options_of(type(options)).items():
        value = getattr(options, name)
        if option.facts.reads and isinstance(value, str | Path) and not option.is_word(value):
            _check_there(option, value, option.facts.reads)
        if option.facts.suffixes:
            _check_suffix(option, value)


def _check_suffix(option: Option, path: Path) -> None:
    known = option.facts.suffixes
    if path.is_dir():
        raise UserError(f"{option.flag} {path}: is a folder; give a file, such as {path / f'out{known[0]}'}")
    if path.suffix not in known:
        kinds = " or ".join(filter(None, [", ".join(known[:-1]), known[-1]]))
        raise UserError(f"{option.flag} {path}: unknown kind of file {shown(path.suffix)}; use {kinds}")


def _check_there(option: Option, value: str | Path, reads: Reads) -> None:
    if not is_path(value):
        return
    path = user_path(value, option.flag)
    if reads == "images" and (verb := verb_of_run(path)):
        remedy = "its pictures are no data; give the folder of the images"
        raise UserError(f"{option.flag} {value}: is a run of semmae {verb}; {remedy}")
    # Which files a pattern means, and which of them are missing, is for the source to say.
    if os.path.lexists(path) or (reads == "images" and (glob.has_magic(str(value)) or has_braces(str(value)))):
        return
    words = [word for word in option.words if is_path(word)]
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    is_timm = reads == "network" and str(value).startswith(("vit_", "deit", "eva"))
    # A word in capitals or with a blank is near; a path that only ends like one is not.
    hint = near_only(str(value).strip().lower(), words) if "/" not in str(value) else ""
    hint = hint or near_only(path.name, siblings) or (f'; did you mean "timm:{value}"?' if is_timm else "")
    remedy = _REMEDIES[reads].replace("give ", f"give {', '.join(words)}, ") if words else _REMEDIES[reads]
    raise UserError(f"{option.flag} {str(value)[:200]}: no such file or folder{hint or f'; {remedy}'}")
