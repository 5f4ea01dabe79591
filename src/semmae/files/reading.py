"""One reader of each form, for files that may be cut, edited, endless or none."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semmae.errors import UserError, reason
from semmae.names import shown
from semmae.sizes import Size, read_size

# Bytes of a text file that is read at once; no file of ours comes near.
MOST_TEXT = 256 * 2**20
_DEEPEST = 32  # levels of what a file holds: whatever goes through it may do so by calling itself
_LARGEST = 2**64  # of whole numbers: seeds; more does not fit a number of numpy or torch


def read_bytes(path: Path | str, most: int | None = None) -> bytes:
    """A regular file's bytes; OSError where it is none, cannot be read, or holds more than `most`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, limit {most}")
        return file.read()  # asked for `most`, it would set so much memory aside first


def open_regular(path: Path | str) -> io.BufferedReader:
    """A regular file, open to read; OSError where it is none, such as a FIFO, a device or a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def file_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a regular file's bytes."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path, or restore it") from error


def read_text(path: Path, most: int = MOST_TEXT, errors: str = "strict") -> str:
    """A text file in UTF-8; with `errors` "surrogateescape" others are taken as Python takes them in names of files."""
    try:
        return read_bytes(path, most).decode("utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path, or restore it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8, or restore it") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; UserError when there is none."""
    return parse_json(path, read_text(path))


def read_json_value(path: Path, most: int = MOST_TEXT) -> Any:
    """Whatever a JSON file of at most so many bytes holds, of any type; UserError when it is no JSON."""
    return _value(path, read_text(path, most))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a number may be NaN or infinite, as a loss that broke.

    The last line may be half of one, of a process that is writing or was killed as it wrote: it is left out.
    """
    lines = read_text(path).splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(parse_json(path, line, f", line {number}", constant=float))
        except UserError:
            if number < len(lines) or line.endswith("\n"):
                raise
    return records


def read_csv(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV file, header and all, empty lines left out; UserError where it cannot be read."""
    return [row for _, row in read_numbered(path, delimiter)]


def read_numbered(path: Path, delimiter: str = ",", *, trim: bool = False) -> list[tuple[int, list[str]]]:
    """As `read_csv`, each row with the number of its line, or of its last; `trim` drops spaces around values."""
    # Names of files need not be UTF-8, and `write_csv` has written them as they are.
    text = read_text(path, errors="surrogateescape")
    if "\0" in text:
        utf16 = text[:2].count("\0") == 1 or text[:2] in ("\udcff\udcfe", "\udcfe\udcff")  # the marks of byte order
        remedy = "as UTF-16 does); save it as UTF-8" if utf16 else "and is damaged); restore it"
        raise UserError(f"{path}: not CSV (it holds zero bytes, {remedy}")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=trim)
    try:
        return [(rows.line_num, [value.strip() if trim else value for value in row]) for row in rows if row]
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({error}); mend or restore it") from error


def _value(path: Path, text: str, place: str = "", *, constant: Callable[[str], float] | None = None) -> Any:
    try:
        content = json.loads(text, parse_constant=constant or _refuse_constant, parse_float=_finite)
        check_bounds(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path}{place}: not JSON ({reason[:120]}); restore it, or remove it") from error
    return content


def parse_json(
    path: Path, text: str, place: str = "", *, constant: Callable[[str], float] | None = None
) -> dict[str, Any]:
    """The object of a text in JSON, at `place` in a file; `constant` reads NaN and Infinity, refused without it."""
    content = _value(path, text, place, constant=constant)
    if not isinstance(content, dict):
        raise UserError(f"{path}{place}: holds no JSON object; restore it, or remove it")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError(f"{text[:20]} is larger than any number")
    return value


def check_bounds(content: Any) -> None:
    """ValueError for what is nested deep, and for whole numbers that are no file's of ours."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(_DEEPEST):
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        huge = next((value for value in inner if isinstance(value, int) and abs(value) > _LARGEST), None)
        if huge is not None:
            raise ValueError(f"a number of {huge.bit_length()} bits")
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} deep")


class Fields:
    """Values of a mapping that a file held, each checked as it is taken: a file may have been edited."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, content

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value under a name, which must be of this type (or one of these); `default` where there is none."""
        if name not in self.content:
            return default
        value = self.content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # True is an int
            raise UserError(f"{self.path}: {name} is {shown(value)}, of another type than it should be; restore it")
        return value

    def need(self, name: str, kind: Any) -> Any:
        """As `get`, but UserError where there is none."""
        if name not in self.content:
            raise UserError(f"{self.path}: {name} is missing; restore the file, or run its command again")
        return self.get(name, kind)

    def size(self, name: str) -> Size | None:
        """A size of images, a number or two; None where there is none."""
        value = self.get(name, (int, list, type(None)))
        try:
            return None if value is None else read_size(value)
        except ValueError as error:
            raise UserError(f"{self.path}: {name} is {shown(value)}, {error}; restore it") from None
