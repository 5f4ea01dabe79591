"""Where a verb may write: looked at before anything is computed, so that nothing is lost and no work is in vain."""

import fnmatch
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from semmae.errors import UserError
from semmae.names import braced, has_braces, on_disk, readable, user_path

# What an option that names something to read may begin with, where that is no path: `timm:NAME`, `hf:NAME`, a URL.
_NO_PATH = re.compile(r"^(timm|hf):|^[a-z][a-z0-9+.-]*://", re.I)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # with which an address begins: of a drive there is one letter


def check_place(option: str, folder: Path, given: Path | None = None) -> None:
    """Refuse a folder that cannot be made or written in, or opened by safetensors and TensorBoard; nothing is touched.

    `given`: what the option was given, where that is no folder but something in it.
    """
    scheme = (given or folder).parts[:1]
    if scheme and _SCHEME.fullmatch(scheme[0]) and not os.path.lexists(scheme[0]):
        address = str(given or folder).replace("/", "//", 1)  # of which a path has one
        raise UserError(
            f"{option} {address}: an address, and only disks are written to; give a folder, and copy it there"
        )
    if option == "--out" and not _is_utf8(place := str(given or folder)):
        raise UserError(f"--out {readable(place)}: is no UTF-8, and weights cannot be read from there; choose another")
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    where = f"{option} {given or folder}: " + ("" if existing == (given or folder) else f"{existing} ")
    if not existing.is_dir():
        raise UserError(f"{where}is a file; give {'another place' if given else 'a folder'}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{where}cannot be written in; change its permissions, or choose another place")


def check_apart(
    outputs: Iterable[tuple[str, Path | None]],
    inputs: Mapping[str, str | Path | None],
    searched: Collection[str] = (),
) -> None:
    """Refuse an output that is an input, or holds one, or would be taken for one of the images.

    What is written may replace what lies there, and an input is never replaced; pictures that are written among the
    images become images, so that a run which goes on would find others than it began with. Links inside the inputs are
    followed, as reading them does; however many outputs there are, each input is walked through once.

    Each stands beside its option. `searched`: those of the inputs in which images are looked for at any depth;
    annotations are found by name.
    """
    places = [(option, out, user_path(out).resolve()) for option, out in outputs if out is not None]
    for name, value in inputs.items():
        reached = [path for root in existing(value) for path in _reached(root)]
        for option, out, place in places:
            for path in reached:
                if path == place or place in path.parents:
                    how = "is this very place" if path == place else "lies in it"
                    raise UserError(
                        f"{option} {out}: {name} {value} {how}, and no input is ever overwritten; write elsewhere"
                    )
            if name in searched and (_lies_in(place, reached) or _will_match(value, place)):
                raise UserError(
                    f"{option} {out}: lies in {name} {value}, where the pictures written there would become images; "
                    "write to a place outside it"
                )


def _lies_in(place: Path, reached: Iterable[Path]) -> bool:
    """Whether a place is below one of these folders: by what they are, for a folder may be mounted in two places."""
    around = [path.stat() for path in (place, *place.parents) if path.exists()]
    return any(path.is_dir() and any(os.path.samestat(path.stat(), each) for each in around) for path in reached)


def newest(roots: Iterable[Path], apart: Path) -> tuple[float, Path] | None:
    """When, and what, was changed last of these files and all that lies below these folders, but for a place."""
    place, found = apart.resolve(), None
    for root in roots:
        for path in (root, *(root.rglob("*") if root.is_dir() else ())):
            if path.exists() and place not in (path, *path.parents):
                found = max(found or (0.0, path), (path.stat().st_mtime, path))
    return found


def _is_utf8(name: str) -> bool:
    """Whether the bytes of a name are text, whatever the locale makes of them."""
    try:
        on_disk(name).decode()
    except UnicodeDecodeError:
        return False
    return True


def existing(value: str | Path | None) -> list[Path]:
    """The files and folders that an option means: of a glob all that it matches now, of braces all that they name.

    None where it is no path.
    """
    if value is None or not is_path(value):
        return []
    path = user_path(value)
    if has_braces(str(value)) and not os.path.lexists(path):
        return [Path(name) for name in braced(str(path))]
    if not glob.has_magic(str(value)) or os.path.lexists(path):
        return [path]
    if "**" in path.parts:
        return [Path(*path.parts[: path.parts.index("**")])]
    return [Path(found) for found in glob.glob(str(path))]


def _reached(root: Path) -> Iterator[Path]:
    """Where reading a file or a folder leads, without links: itself, and what the links below it point to."""
    visited, left = set(), [root]
    while left:
        real = Path(os.path.realpath(left.pop()))
        if real in visited:
            continue
        visited.add(real)
        yield real
        for folder, folders, files in os.walk(real) if real.is_dir() else ():
            folders[:] = [name for name in folders if not name.startswith(".")]  # as images are looked for
            left += [link for name in (*folders, *files) if os.path.islink(link := Path(folder, name))]


def _will_match(images: str | Path | None, place: Path) -> bool:
    """Whether a glob may match what is going to be written at a place."""
    if images is None or not (glob.has_magic(str(images)) and is_path(images)) or (path := user_path(images)).exists():
        return False
    for name, part in zip(place.parts, path.absolute().parts, strict=False):
        if part == "**":
            return True
        if not fnmatch.fnmatchcase(name, part):
            return False
    return True  # the place, or one around it, or in a folder that matches


def is_path(value: str | Path) -> bool:
    """Whether an input is a path, and no name such as `timm:NAME` or an address."""
    return str(value) != "" and _NO_PATH.match(str(value)) is None
