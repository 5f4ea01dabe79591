"""Where a verb may write: looked at before anything is computed, so that no hour of work ends in a traceback."""

import os
from pathlib import Path

from semmae.errors import UserError


def check_place(option: str, folder: Path, given: Path | None = None) -> None:
    """Refuse a folder that cannot be made or written in; nothing is touched.

    Args:
        option: that tells the place, as written on the command line.
        folder: to write in; it, and folders around it, may be still to be made.
        given: what the option was given, where that is no folder but something in it.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    told = f"{option} {given or folder}: " + ("" if existing == (given or folder) else f"{existing} ")
    if not existing.is_dir():
        raise UserError(f"{told}is a file; give {'another place' if given else 'a folder'}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{told}cannot be written in; change its permissions, or choose another place")
