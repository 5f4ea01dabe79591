"""Image files below a folder or a glob: which there are, and their classes by folder. Lists, never decodes."""

import errno
import fnmatch
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semmae.data.compact import Labels, Names
from semmae.data.decode import MOST_BYTES, SUFFIXES
from semmae.data.endings import UNDECODED, counted, ending, is_archive
from semmae.data.splits import ANNOTATION_FOLDERS, are_splits, pick_split
from semmae.errors import UserError, near_only, reason
from semmae.files import read_bytes
from semmae.names import shown, user_path

_URL = re.compile(r"[A-Za-z][\w+.-]+:/")  # of a drive, C:/, there is one letter

_log = logging.getLogger("semmae")


@dataclass
class FolderSource:
    """Image files below a root. `read` raises OSError when a file has gone, or is none that is read."""

    root: Path
    names: Names
    labels: Labels | None
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    class_note: str = ""
    class_remedy: str = "put images into one folder a class"
    shards: None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = str(self.root.resolve())

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        name = self.names[i]
        undecoded = UNDECODED.get(ending(name))
        if undecoded:
            raise OSError(errno.ENOTSUP, undecoded)
        return read_bytes(os.path.join(self.root, name), MOST_BYTES)


def open_folder(root: Path, names: list[str], split: str | None, data: str) -> FolderSource:
    """The image files of these names below `root`, all or those of one split, classes by folder."""
    folders = first_folders(names)
    annotations = folders.intersection(ANNOTATION_FOLDERS)
    if annotations and folders == {"images", *annotations}:
        raise UserError(f"{data}: holds images and their annotations; give {data}/images, to learn from these alone")
    if {"train", "train_mini"} <= folders:  # iNaturalist 2021: the second holds images of the first
        _log.info("%s: train is taken, train_mini left out", data)
        names = [name for name in names if not name.startswith("train_mini/")]
    if split is not None:
        prefix = pick_split(split, folders, data) + "/"
        names = [name for name in names if name.startswith(prefix)]
    labels, note = folder_classes(names, depth=1 if are_splits(folders) else 0)
    return file_source(root, names, labels, note)


def file_source(root: Path, names: Sequence[str], labels: Labels | None, note: str = "") -> FolderSource:
    """The image files of these names below `root`, with their sizes and times."""
    kept = Names(names)
    sizes, modified = np.empty(len(kept), dtype=np.int64), np.empty(len(kept), dtype=np.int64)
    for i, name in enumerate(kept):
        sizes[i], modified[i] = size_and_time(os.path.join(root, name))
    return FolderSource(root, kept, labels, sizes, modified, note)


def first_folders(names: Sequence[str]) -> set[str]:
    """Folders directly below the root, that are not empty."""
    return {name.split("/", 1)[0] for name in names if "/" in name}


def folder_classes(names: Sequence[str], depth: int) -> tuple[Labels | None, str]:
    """The folder at `depth` of every image, None when one that is decoded lies in none; and what is odd about them."""
    outside = [name for name in names if name.count("/") <= depth and ending(name) in SUFFIXES]
    if outside:
        return None, _unclassed(outside, len(names), depth)
    labels = Labels(name.split("/")[depth] if name.count("/") > depth else "" for name in names)
    return labels, _nested(names, depth) if len(labels.classes) == 1 else ""


def _unclassed(outside: Sequence[str], count: int, depth: int) -> str:
    """Why images have no classes, and the remedy; nothing where all lie in one folder, as images without classes do."""
    first = outside[0]
    if len(outside) < count:
        return f"{len(outside)} of {count} images lie in no class folder, such as {first}; move them into one"
    folder = first.rpartition("/")[0]
    if depth and folder:
        return f"the images of {folder} lie in it directly; put them into one folder a class, {folder}/CLASS"
    return ""


def _nested(names: Sequence[str], depth: int) -> str:
    """Why there is a single class, and the remedy, where the classes are the folders in that one."""
    deeper = {parts[depth + 1] for name in names if len(parts := name.split("/")) > depth + 2}
    if len(deeper) < 2:
        return ""
    around, folder = "/".join(names[0].split("/")[:depth]), "/".join(names[0].split("/")[: depth + 1])
    remedy = f"move them up into {around}" if around else f"give the folder {folder} in --data"
    return f"all images lie in {folder}, in {len(deeper)} folders below it; {remedy}"


def user_place(text: str) -> Path:
    """The path that `--data` means; UserError for what can be none, such as a URL."""
    if _URL.match(text) and not os.path.lexists(text):
        hub = ", or a data set of the hub as hf:NAME" if text.startswith("hf:") else ""
        places = "a folder, a file, an address with :// of a Parquet file or of tar shards"
        raise UserError(f"{shown(text)}: no path; give {places}{hub}")
    return user_path(text)


def find_files(data: str) -> tuple[Path, list[str]]:
    """The root and the sorted paths of all files below it (posix, hidden ones left out) that `data` means."""
    path = user_place(data)
    if path.is_dir():
        return path, sorted(_walk(path))
    if path.is_file():
        return path.parent, [path.name]
    if path.exists():
        raise UserError(f"{data}: a device, a socket or a pipe; give a folder or a file")
    if glob.has_magic(data):
        return _find_glob(path)
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    raise UserError(f"{data}: no such file or folder{near_only(path.name, siblings) or '; check the path'}")


def _find_glob(pattern: Path) -> tuple[Path, list[str]]:
    parts = pattern.parts
    fixed = next(i for i, part in enumerate((*parts[:-1], "*")) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    # Folders of any depth are ours to walk: where links form loops, `glob` would follow them for ever.
    flat = next((i for i, part in enumerate(parts) if part == "**"), len(parts))
    found: set[str] = set()
    for match in glob.glob(str(Path(*parts[:flat]))):
        path = Path(match)
        below = path.relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        if path.is_dir():
            found.update(prefix + name for name in _walk(path) if _fits(name.split("/"), parts[flat:]))
        elif flat == len(parts):
            found.add(below)
    if not found:
        raise UserError(f"{pattern}: nothing matches; check the pattern, and quote it in the shell")
    return root, sorted(found)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, or a folder around it, is what a pattern means; `**` stands for any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _walk(root: Path) -> Iterator[str]:
    """Paths of the files below `root`. Links are followed, each real folder once, so that loops end."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse_unlisted, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _refuse_unlisted(error: OSError) -> None:
    fault = f"cannot be listed ({reason(error).lower()})"
    raise UserError(f"{error.filename}: {fault}; change its permissions, or move it away")


def size_and_time(path: str) -> tuple[int, int]:
    """(bytes, ns); zeros for a dangling link, which then counts as unreadable when it is decoded."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # a list of images may hold any text
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def refuse_imageless(data: str, files: list[str]) -> None:
    """Raise the UserError that says why there is nothing to read."""
    archives = [name for name in files if is_archive(name)]
    if archives:
        which = "an archive" if len(files) == 1 else f"{len(archives)} archives, such as {archives[0]}"
        raise UserError(f"{data}: {which}, which is not read; unpack it and give the folder, or an uncompressed .tar")
    found = f"{len(files)} files ({counted(Counter(map(ending, files)))})" if files else "nothing"
    raise UserError(f"{data}: no images, found {found}; give a folder with {' '.join(sorted(SUFFIXES))} or .parquet")
