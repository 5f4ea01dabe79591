"""Images by a list of their paths: a Python list, a text file with a path a line, or a CSV file `path,label`.

Rows keep the order of the list. Names are paths below the folder of the file, where all images lie there, else below
the innermost folder that holds them all: images have the same names whether their folder is given, or a list in it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semmae.data.endings import ending, sort_files
from semmae.data.folders import FolderSource, file_source
from semmae.data.parquet import classes_of
from semmae.errors import UserError
from semmae.files import read_numbered, read_text
from semmae.names import shown

_LISTS = (".txt", ".csv")

_Lines = list[tuple[str, str]]  # place in the list, for messages, and path


def is_list(path: Path) -> bool:
    """Whether a path is that of a list of images."""
    return ending(path.name) in _LISTS and path.is_file()


def open_list(file: Path) -> FolderSource:
    """The images that a file lists, relative paths seen from its folder; classes by the column `label` of a CSV."""
    if ending(file.name) == ".txt":
        lines = read_text(file, errors="surrogateescape").splitlines()
        paths = [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        source = _open(str(file), file.parent, paths, file.parent)
        source.class_remedy = "give a CSV file of path,label"
        return source
    paths, labels = _read_table(file)
    source = _open(str(file), file.parent, paths, file.parent)
    source.class_remedy = "give each image its class in a column `label`"
    if labels is not None:
        source.labels, source.class_note = classes_of(labels, source.names, None)
    return source


def open_paths(paths: Sequence[str], data: str, within: Path | None = None) -> FolderSource:
    """The images of these files, in this order, without classes; names below `within` where all lie there."""
    return _open(data, Path(), [(f"item {place}", path) for place, path in enumerate(paths)], within)


def _read_table(file: Path) -> tuple[_Lines, list[str] | None]:
    """Paths and labels of a CSV file; None where it has no column of labels."""
    rows = read_numbered(file, trim=True)
    if not rows or "path" not in rows[0][1]:
        raise UserError(f'{file}: no column "path"; begin the file with the line "path" or "path,label"')
    (_, header), *rows = rows
    wrong = next((line for line, row in rows if len(row) != len(header)), None)
    if wrong is not None:
        raise UserError(f"{file}: line {wrong} has not {len(header)} values, as its first line has; mend it")
    at = header.index("path")
    labels = [row[header.index("label")] for _, row in rows] if "label" in header else None
    return [(f"line {line}", row[at]) for line, row in rows], labels


def _open(data: str, base: Path, lines: _Lines, within: Path | None) -> FolderSource:
    if not lines:
        raise UserError(f"{data}: empty; list one image at least")
    paths = [os.path.abspath(os.path.join(base, os.path.expanduser(path))) for _, path in lines]
    _check(data, lines, paths)
    root = None if within is None else os.path.join(os.path.abspath(within), "")
    if root is None or not all(path.startswith(root) for path in paths):
        root = os.path.join(os.path.commonpath([os.path.dirname(path) for path in paths]), "")
    source = file_source(Path(root), [path[len(root) :].replace(os.sep, "/") for path in paths], None)
    # A file of no bytes and no time is one whose state could not be asked for.
    unseen = np.flatnonzero((source.sizes == 0) & (source.modified == 0)).tolist()
    missing = [row for row in unseen if not os.path.lexists(paths[row])]
    if missing:
        place, path = lines[missing[0]]
        count = "is missing" if len(missing) == 1 else f"and {len(missing) - 1} more are missing"
        raise UserError(f"{data}: {shown(path)} ({place}) {count}; check the paths, or take them out of the list")
    return source


def _check(data: str, lines: _Lines, paths: Sequence[str]) -> None:
    """UserError for what is listed and is no image file, and for a file that is listed twice."""
    first: dict[str, str] = {}
    for (place, given), path in zip(lines, paths, strict=True):
        if path in first:
            raise UserError(f"{data}: {shown(given)} is listed twice, {first[path]} and {place}; keep one of the two")
        first[path] = place
    found = sort_files(paths)
    if found.tables:
        raise UserError(f"{data}: lists {shown(found.tables[0])}, a table; give Parquet files by folder or pattern")
    if len(found.images) < len(paths):
        for (place, given), path in zip(lines, paths, strict=True):
            if os.path.isdir(path):
                raise UserError(f"{data}: {shown(given)} ({place}) is a folder; list its files, or give a pattern")
