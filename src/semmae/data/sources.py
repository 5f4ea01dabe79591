"""Where images come from: a folder, a glob, Parquet files, the hub. A source lists and reads, never decodes.

| `data`                       | names               | classes                            | splits           |
|------------------------------|---------------------|------------------------------------|------------------|
| folder of any depth, glob    | path below the root | first folder (second, after split) | `train/`, `val/` |
| Parquet file, folder of them | `file.parquet#row`  | column `label`                     | `train*`, `val*` |
| `hf:NAME`                    | `split#row`         | column `label`                     | those of the hub |
| CUB-200-2011 and its like    | path below the root | told by its files                  | told by its files |

The last are read as their authors pack them: see `data/layouts.py`.
"""

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from semmae.data.compact import Labels, Names, Rows
from semmae.data.decode import SUFFIXES
from semmae.data.layouts import Listing, find_listing
from semmae.data.parquet import TableSource, open_hub, open_parquet, parquet_splits
from semmae.data.splits import are_splits, has_both, pick_split
from semmae.errors import UserError, near

EXTENSIONS = SUFFIXES
_TAR = (".tar", ".tar.gz", ".tgz")

_log = logging.getLogger("semmae")


class Source(Protocol):
    """Encoded images in a fixed order. The four lists are of the same length."""

    root: Path
    key: str  # what the cache of the manifest goes by: the same data, the same key
    names: Names  # stable and unique: path below the root, or "file.parquet#row"
    labels: Labels | None  # class of each image; None when there are no classes
    sizes: npt.NDArray[np.int64]  # bytes of each encoded image
    modified: npt.NDArray[np.int64]  # time of the last change in ns, 0 when unknown

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes: ...


@dataclass
class FolderSource:
    """Image files below a root. `read` raises OSError when a file has gone."""

    root: Path
    names: Names
    labels: Labels | None
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = str(self.root.resolve())

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        with open(os.path.join(self.root, self.names[i]), "rb") as file:
            return file.read()


class Selection:
    """Some rows of a source, in the order given."""

    def __init__(self, source: Source, rows: Rows) -> None:
        self._source, self._rows = source, np.asarray(rows, dtype=np.int64)
        self.root, self.key = source.root, source.key
        self.names = source.names.take(self._rows)
        self.labels = None if source.labels is None else source.labels.take(self._rows)
        self.sizes, self.modified = source.sizes[self._rows], source.modified[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes:
        return self._source.read(int(self._rows[i]))


def open_source(data: str | Path, split: str | None = None) -> Source:
    """The images of `data`, all or those of one split ("train" or "val"). UserError when there are none."""
    text = str(data)
    if text.startswith("hf:"):
        return open_hub(text, split)
    listing = find_listing(Path(text).expanduser())
    if listing is not None:
        return _open_listing(listing, split)
    root, files = _find_files(text)
    tables = [name for name in files if name.lower().endswith(".parquet")]
    images = [name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS]
    if tables and images:
        raise UserError(
            f"{text}: holds {len(images)} image files and {len(tables)} Parquet files; give one kind only, "
            f'such as "{text}/**/*{os.path.splitext(images[0])[1]}" or "{text}/**/*.parquet"'
        )
    if tables:
        return open_parquet(root, tables, split, text)
    if not images:
        _refuse(text, files)
    return _open_folder(root, images, split, text)


def has_split(data: str | Path) -> bool:
    """Whether `data` holds both a training and a validation split."""
    return has_both(split_names(data))


def split_names(data: str | Path) -> set[str]:
    """What may be names of splits in `data`: its first folders, or the splits of its tables or of its own files."""
    text = str(data)
    if text.startswith("hf:"):
        source: TableSource = open_hub(text, None)
        return {name.split("#", 1)[0] for name in source.names}
    listing = find_listing(Path(text).expanduser())
    if listing is not None:
        return set(listing.splits)
    root, files = _find_files(text)
    tables = [name for name in files if name.lower().endswith(".parquet")]
    images = [name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS]
    return set(parquet_splits(tables).values()) if tables else _first_folders(images)


def _open_listing(listing: Listing, split: str | None) -> Source:
    names, labels = listing.rows(split)
    if labels is None:
        _log.info("%s: no classes, %s is missing", listing.root, listing.lacking)
    return _folder_source(listing.root, names, None if labels is None else Labels(labels))


def _open_folder(root: Path, names: list[str], split: str | None, data: str) -> Source:
    folders = _first_folders(names)
    if {"train", "train_mini"} <= folders:  # iNaturalist 2021: the second holds images of the first
        _log.info("%s: train is taken, train_mini left out", data)
        names = [name for name in names if not name.startswith("train_mini/")]
    if split is not None:
        prefix = pick_split(split, folders, data) + "/"
        names = [name for name in names if name.startswith(prefix)]
    return _folder_source(root, names, _classes(names, depth=1 if are_splits(folders) else 0))


def _folder_source(root: Path, names: Sequence[str], labels: Labels | None) -> Source:
    sizes, modified = np.empty(len(names), dtype=np.int64), np.empty(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        sizes[i], modified[i] = _size_and_time(os.path.join(root, name))
    return FolderSource(root, Names(names), labels, sizes, modified)


def _first_folders(names: Sequence[str]) -> set[str]:
    return {name.split("/", 1)[0] for name in names if "/" in name}


def _classes(names: Sequence[str], depth: int) -> Labels | None:
    """The folder at `depth` below the root for every image; None when some image does not lie in one."""
    outside = [name for name in names if name.count("/") <= depth]
    if not outside:
        return Labels(name.split("/", depth + 1)[depth] for name in names)
    if len(outside) < len(names):
        _log.info(
            "no classes: %d of %d images lie in no class folder, such as %s",
            len(outside),
            len(names),
            outside[0],
        )
    return None


def _find_files(data: str) -> tuple[Path, list[str]]:
    """The root and the sorted paths of all files below it (posix, hidden ones left out) that `data` means."""
    path = Path(data).expanduser()
    if path.is_dir():
        return path, sorted(_walk(path))
    if path.is_file():
        return path.parent, [path.name]
    if "{" in data and data.endswith(_TAR):
        _refuse(data, [data])
    if glob.has_magic(data):
        return _find_glob(path)
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    hint = near(path.name, siblings)
    hint = hint if hint.startswith(";") else ""  # a whole folder listed would hide the fault
    raise UserError(f"{data}: no such file or folder{hint or '; check the path'}")


def _find_glob(pattern: Path) -> tuple[Path, list[str]]:
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    found: set[str] = set()
    for match in glob.glob(str(pattern), recursive=True):
        path = Path(match)
        below = path.relative_to(root).as_posix()
        if path.is_dir():
            found.update(name if below == "." else f"{below}/{name}" for name in _walk(path))
        else:
            found.add(below)
    if not found:
        raise UserError(f"{pattern}: nothing matches; check the pattern, and quote it in the shell")
    return root, sorted(found)


def _walk(root: Path) -> Iterator[str]:
    """Paths of the files below `root`. Links are followed, each real folder once, so that loops end."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _size_and_time(path: str) -> tuple[int, int]:
    """(bytes, ns); zeros for a dangling link, which then counts as unreadable when it is decoded."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _refuse(data: str, files: list[str]) -> None:
    """Raise the UserError that tells why there is nothing to read."""
    if any(name.lower().endswith(_TAR) for name in files):
        raise UserError(f"{data}: tar shards are not supported yet; unpack them into a folder")
    kinds = sorted({os.path.splitext(name)[1] or "no extension" for name in files})
    found = f"{len(files)} files ({', '.join(kinds[:5])})" if files else "nothing"
    raise UserError(f"{data}: no images, found {found}; give a folder with {' '.join(sorted(EXTENSIONS))} or .parquet")
