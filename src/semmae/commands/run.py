"""The run folder: refused, continued or begun anew, but never touched before everything else is checked."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semmae.commands.options import OptionsT, check_values, resumed, to_yaml
from semmae.errors import UserError
from semmae.tasks.trainer import is_rank_zero

_log = logging.getLogger("semmae")


def checked(options: OptionsT) -> OptionsT:
    """The options to run with: their values checked, `out` looked at (not touched), --resume filled in.

    Raises:
        UserError: a value out of bounds; a folder in the way; nothing to resume.
    """
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one of them")
    if options.resume:
        options = resumed(options)
    check_values(options)
    out = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    # Ranks started by rank 0 find the folder already begun.
    if not out.is_dir() or options.resume or not is_rank_zero():
        return options
    if any(out.iterdir()):
        if not options.overwrite:
            raise UserError(
                f"--out {out}: not empty; use --resume to go on, --overwrite to replace it, or another folder"
            )
        if not (out / "config.yaml").is_file():
            raise UserError(f"--out {out}: holds no run of semmae: --overwrite will not delete it; use another folder")
    return options


@contextmanager
def run_folder(options: OptionsT) -> Iterator[Path]:
    """Begin the run in `options.out`: clear it when asked to, write config.yaml, log to train.log."""
    out = options.out
    if is_rank_zero():
        if options.overwrite and out.is_dir():
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.yaml", to_yaml(options))
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


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
