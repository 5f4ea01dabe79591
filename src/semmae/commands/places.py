"""Where a verb may write: looked at before anything is computed, so that nothing is lost and no work is in vain."""

import fnmatch
import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path

from semmae.errors import UserError
from semmae.files import on_disk, readable, user_path

# What an option that names something to read may begin with, where that is no path: `timm:NAME`, `hf:NAME`, a URL.
_NO_PATH = re.compile(r"^(timm|hf):|^[a-z][a-z0-9+.-]*://", re.I)


def check_place(option: str, folder: Path, given: Path | None = None) -> None:
    """Refuse a folder that cannot be made or written in, or opened by safetensors and TensorBoard; nothing is touched.

    Args:
        option: that names the place, as written on the command line.
        folder: to write in; it, and folders around it, may be still to be made.
        given: what the option was given, where that is no folder but something in it.
    """
    if option == "--out" and not _is_utf8(place := str(given or folder)):
        raise UserError(f"--out {readable(place)}: is no UTF-8, and weights cannot be read from there; choose another")
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    where = f"{option} {given or folder}: " + ("" if existing == (given or folder) else f"{existing} ")
    if not existing.is_dir():
        raise UserError(f"{where}is a file; give {'another place' if given else 'a folder'}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{where}cannot be written in; change its permissions, or choose another place")


def check_apart(option: str, out: Path, inputs: Mapping[str, str | Path | None], images: str | Path | None) -> None:
    """Refuse an output that is an input, or holds one, or would be taken for one of the images.

    What is written may replace what lies there, and an input is never replaced; pictures that are written among the
    images become images, so that a run which goes on would find others than it began with.

    Args:
        option: that names the output, as written on the command line.
        out: file or folder to write.
        inputs: by option, what is read: a path, a glob, or a name that is no path.
        images: of these, what images or annotations are looked for in at any depth.
    """
    place = _resolved(out)
    for name, value in inputs.items():
        for path in _paths(value):
            if path == place or place in path.parents:
                raise UserError(
                    f"{option} {out}: {name} {value} {'is this very place' if path == place else 'lies in it'}, and no "
                    "input is ever overwritten; write to another place"
                )
    if _is_path(images) and _searched(str(images), place):
        raise UserError(
            f"{option} {out}: lies in --data {images}, where the pictures written there would become images; write to "
            "a place outside it"
        )


def _is_utf8(name: str) -> bool:
    """Whether the bytes of a name are text, whatever the locale makes of them."""
    try:
        on_disk(name).decode()
    except UnicodeDecodeError:
        return False
    return True


def _paths(value: str | Path | None) -> list[Path]:
    """Where an input lies, links followed; of a glob all that it matches. None where it is no path."""
    if not _is_path(value):
        return []
    text = str(value)
    if glob.has_magic(text) and not os.path.lexists(user_path(text)):
        return [Path(found).resolve() for found in glob.glob(str(user_path(text)), recursive=True)]
    return [_resolved(text)]


def _searched(images: str, place: Path) -> bool:
    """Whether what is written at a place is found among `images`: a folder, searched at any depth, or a glob."""
    root = _resolved(images)
    if not glob.has_magic(images) or root.exists():
        return root.is_dir() and root in place.parents
    parts = root.parts
    for name, part in zip(place.parts, parts, strict=False):
        if part == "**":
            return True
        if not fnmatch.fnmatchcase(name, part):
            return False
    return len(place.parts) <= len(parts)  # else the pattern ends above the place


def _is_path(value: str | Path | None) -> bool:
    return value is not None and str(value) != "" and _NO_PATH.match(str(value)) is None


def _resolved(path: str | Path) -> Path:
    return user_path(path).resolve()
