"""The run folder: refused, gone on with or begun anew, but never touched before everything else is checked.

From its beginning to its good end a run keeps the file `.unfinished` in its folder, locked while it works.
Where it is left, the run was killed: the same command goes on with it. The lock is the system's, which frees
it with the process however that ends.
"""

import dataclasses
import errno
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from semmae.commands.options import (
    GOING_ON,
    OptionsT,
    TrainOptions,
    begun_alike,
    check_values,
    flag,
    goes_on,
    resumed,
    to_yaml,
)
from semmae.commands.places import check_place
from semmae.errors import UserError
from semmae.interop import unfinished
from semmae.tasks.nodes import take_rank
from semmae.tasks.trainer import is_rank_zero

UNFINISHED = unfinished.MARKER
_CONFIG = "config.yaml"
# What a run that was killed before its first file was whole leaves behind: as good as nothing.
_NOTHING = {UNFINISHED, f".{_CONFIG}.tmp"}
# Beginnings of files and folders that were written beside their places when a run was killed.
_LEFTOVERS = ("*.tmp", ".encoder-*", ".autoencoder-*", ".learner-*", ".classifier-*", ".head-*", ".segmenter-*")

_log = logging.getLogger("semmae")


def checked(options: OptionsT) -> OptionsT:
    """The options to run with: their values checked, `out` looked at (not touched), --resume filled in.

    --resume is filled in too where `out` holds a run that was begun with just these options and did not
    come to its end: the same command again goes on.

    Raises:
        UserError: a value out of bounds; a folder in the way, or a run at work there; nothing to resume.
    """
    if options.overwrite and goes_on(options):
        named = next(flag(name) for name in GOING_ON if getattr(options, name, False))
        raise UserError(f"{named} and --overwrite exclude each other; give one of them")
    if goes_on(options):
        options = resumed(options)
    check_values(options)
    if isinstance(options, TrainOptions):
        take_rank(options.nodes, options.devices)
    out = options.out
    check_place("--out", out)
    if is_rank_zero():
        _refuse_at_work(out)
    if goes_on(options):
        return dataclasses.replace(options, resume=True)
    if not options.overwrite and _interrupted(options):
        if is_rank_zero():
            _log.info("--out %s: this very run was begun there and not finished; going on with it", out)
        return dataclasses.replace(options, resume=True)
    # Ranks started by rank 0 find the folder already begun.
    if is_rank_zero():
        _refuse_occupied(options)
    return options


def _interrupted(options: OptionsT) -> bool:
    config = options.out / _CONFIG
    begun = config.is_file() and (options.out / UNFINISHED).is_file()
    return begun and begun_alike(options)


def _refuse_occupied(options: OptionsT) -> None:
    out = options.out
    if not out.is_dir() or {path.name for path in out.iterdir()} <= _NOTHING:
        return
    if not options.overwrite:
        raise UserError(f"--out {out}: not empty; use --resume to go on, --overwrite to replace it, or another folder")
    if not (out / _CONFIG).is_file():
        raise UserError(f"--out {out}: holds no run of semmae: --overwrite will not delete it; use another folder")


def _refuse_at_work(out: Path) -> None:
    marker = out / UNFINISHED
    if not marker.is_file():
        return
    with open(marker, "r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks: nobody can tell
            raise UserError(
                f"--out {out}: another process is at work there; wait for it, or use another folder"
            ) from None


@contextmanager
def run_folder(options: OptionsT) -> Iterator[Path]:
    """Begin the run in `options.out`: clear it when asked to, write config.yaml, log to train.log."""
    out = options.out
    with ExitStack() as stack:
        if is_rank_zero():
            if options.overwrite and out.is_dir():
                _clear(out)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_marked(out))
            if options.resume:
                _sweep(out)
            write_text(out / _CONFIG, to_yaml(options))
        # A run within a run begins in all processes at once: its folder may not be there yet.
        out.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(out / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _log.addHandler(handler)
        _log.debug("semmae started: %s", " ".join(sys.argv))
        try:
            yield out
        except Exception as error:
            _log.debug("stopped: %s: %s", type(error).__name__, error)
            raise
        finally:
            _log.removeHandler(handler)
            handler.close()


@contextmanager
def _marked(out: Path) -> Iterator[None]:
    """The folder is marked as unfinished, and locked, until the block ends well."""
    with open(out / UNFINISHED, "a") as file:
        try:
            # Of the kind that processes which load images do not inherit: they outlive a killed run a little.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            _log.debug("%s: not locked (%s)", out, error)
        yield
        (out / UNFINISHED).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _sweep(folder: Path) -> None:
    """Remove what a killed run was writing beside its place."""
    for pattern in _LEFTOVERS:
        for entry in list(folder.rglob(pattern)):  # in folders of runs within the run too
            _remove(entry)


def _clear(folder: Path) -> None:
    """Remove the run in a folder, so that one killed meanwhile is neither gone on with nor taken for no run."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name != _CONFIG:
            _remove(entry)
    (folder / _CONFIG).unlink(missing_ok=True)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)
