"""Files and folders: the one way in which everything is written, and the one reader of each form.

Notable here:
- a file or folder is written beside its place and moved there whole: a reader sees the old one or the new one, and
  when the block fails, the disk is full or the process is stopped by a signal, nothing of the new one stays;
- what lies beside its place bears a suffix that nobody else uses, so that `sweep` can remove what a killed process
  left, and nothing of the user's;
- a reader takes regular files of a bounded size only: a FIFO, a device, a file of gigabytes or one nested a thousand
  deep is refused in one line, as is one in another encoding or of another form;
- names that are no UTF-8 (Python's surrogate escapes) are written as the bytes they are, in JSON as escapes.
"""

import csv
import errno
import glob
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from semmae.errors import DiskError, UserError

# Of everything that lies beside its place while it is written.
PART = ".semmae-part"
# Bytes of a text file that is read at once; no file of ours comes near.
MOST_TEXT = 256 * 2**20
_MOST_YAML = 2**20  # PyYAML is slow, and options are few
_DEEPEST = 32  # levels of what a file holds: whatever goes through it may do so by calling itself
_LARGEST = 2**64  # of whole numbers: seeds; more does not fit a number of numpy or torch

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Libraries that write by themselves (torch, safetensors, Arrow) tell the same in words.
_FULL_WORDS = re.compile(
    r"no space left|os error (28|122|27|5)\b|disk quota|file too large"
    r"|PytorchStreamWriter|inline_container|iostream error",
    re.I,
)


# Writing


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to: moved to `path` when the block ends well, removed when it does not.

    Args:
        path: of the file; its folder is made.
        durable: the file is on the disk before it takes its place, and so is its name before the block returns.

    Raises:
        DiskError: the disk is full, broken or read-only.
    """
    with _explained(path):
        make_folder(path.parent)
        beside = _beside(path)
        try:
            yield beside
            if durable:
                _sync(beside)
            os.replace(beside, path)
            if durable:
                _sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, moved into its place, whatever lies there, when the block ends well.

    Raises:
        UserError: the folder cannot be moved, see `check_replaceable`.
        DiskError: as `whole`.
    """
    check_replaceable(folder)
    with _explained(folder):
        make_folder(folder.parent)
        sweep_beside(folder)
        beside = _beside(folder)
        fresh, old = beside / "fresh", beside / "old"
        try:
            fresh.mkdir(parents=True)
            yield fresh
            if folder.exists():
                os.rename(folder, old)
            try:
                os.rename(fresh, folder)
            except OSError:
                if old.exists():
                    shutil.move(old, folder)
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those around it, where it is not there; UserError where the system refuses that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_fault(error):
            raise
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{shown(str(folder))}: cannot be made ({reason}); choose another place") from error


def check_replaceable(folder: Path) -> None:
    """UserError where `whole_folder` cannot move a folder into this place: the working folder, or one around it."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is the folder one works in, or around it; give a new folder below it, or elsewhere")


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file, whole."""
    with whole(path, durable=durable) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file in UTF-8, whole."""
    write_bytes(path, encoded(text), durable=durable)


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Write a JSON file, whole. ValueError where a number is not finite."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # names that are no UTF-8: escaped, the file stays JSON
        text = json.dumps(content, indent=1, allow_nan=False)
    write_text(path, text + "\n", durable=durable)


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole; the first row is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def reserve(path: Path) -> None:
    """Give a sparse file its room on the disk now: writing to a mapped file on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))


def encoded(text: str) -> bytes:
    """Text as UTF-8; names of files that are none as the bytes that they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a half of a surrogate pair, such as JSON can hold
        return text.encode("utf-8", "backslashreplace")


def readable(name: str) -> str:
    """A name for what takes Unicode alone, as pictures and tables do: a byte that is no UTF-8 in hexadecimal."""
    return encoded(name).decode("utf-8", "backslashreplace")


def sweep(folder: Path) -> None:
    """Remove what killed processes were writing in a folder, at any depth: what bears our suffix, and nothing else."""
    for entry in list(folder.rglob(f".*{PART}")):
        remove(entry)


def sweep_beside(path: Path) -> None:
    """Remove what a killed process was writing for this very place."""
    for entry in path.parent.glob(f".{glob.escape(path.name[:100])}.*{PART}"):
        remove(entry)


def is_part(path: Path) -> bool:
    """Whether the name is one of ours for what is being written."""
    return path.name.startswith(".") and path.name.endswith(PART)


def remove(entry: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def bytes_shown(count: float) -> str:
    """`812 B`, `3.4 kB`, `1.2 GB`: a number of bytes as people read it."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def is_disk_fault(error: BaseException) -> bool:
    """Whether this error of Python, or of a library that writes, is one of the disk: full, broken, read-only."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return not isinstance(error, UserError) and _FULL_WORDS.search(str(error)) is not None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the disk, from whichever library, as `DiskError`; in a folder that is written whole, it is named.

    What else the system refuses there, such as a folder that one may not write in, is the user's to mend.
    """
    try:
        yield
    except PermissionError as error:
        if error.filename is None or Path(error.filename).parent != path.parent:
            raise
        raise UserError(f"{path}: cannot be written (permission denied); choose another place") from error
    except Exception as error:
        if not (isinstance(error, DiskError) or is_disk_fault(error)):
            raise
        cause = error.__cause__ if isinstance(error, DiskError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else "No space left on device"
        raise DiskError(
            f"{path}: cannot be written ({reason.lower()}); free space there, or use another disk"
        ) from cause


def _beside(path: Path) -> Path:
    """Where to write: the same disk, a name of this process alone, short enough for every file system."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}{PART}")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Names and places


def on_disk(name: str) -> bytes:
    """The bytes by which the file system knows a name, in any locale.

    The same file may be named "ä" by a text that holds its name, and by two surrogate escapes where the locale is C.
    """
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return encoded(name)


def user_path(text: str | os.PathLike[str], option: str = "") -> Path:
    """The path that a user gave, `~` expanded; whether anything lies there is for the caller to ask.

    Args:
        text: as given.
        option: that it was given to, for the messages.

    Raises:
        UserError: it can be no path, or nobody but the system knows what lies there: it is empty, too long, names an
            unknown user or leads through a folder that may not be entered.
    """
    given = os.fspath(text)
    told = f"{option} {given if len(given) <= 255 else given[:77] + '…'}".strip()
    if not given:
        raise UserError(f"{option or 'path'} is empty; give a file or a folder")
    if "\0" in given:
        raise UserError(f"{option} {shown(given)}: holds a NUL byte, which no path can; check the path".strip())
    try:
        path = Path(os.fsdecode(on_disk(given))).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:  # expanduser
        raise UserError(f"{told}: no such user ({given.split('/', 1)[0]}); write the path without ~") from error
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{told}: cannot be looked at ({reason}); check the path and its permissions") from error
    return path


# Reading


def read_bytes(path: Path | str, most: int | None = None) -> bytes:
    """A regular file's bytes.

    Args:
        path: of the file.
        most: bytes; a longer file is refused before it is read.

    Raises:
        OSError: it cannot be read, or is no regular file: opening a FIFO would wait for ever.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, limit {most}")
        return file.read(-1 if most is None else most)


def open_regular(path: Path | str) -> BinaryIO:
    """A regular file, open to read; OSError where it is none, such as a FIFO, a device or a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def read_text(path: Path, most: int = MOST_TEXT, errors: str = "strict") -> str:
    """A text file in UTF-8; UserError when it cannot be read or is in another encoding.

    With `errors` "surrogateescape" bytes that are no UTF-8 are taken as Python takes them in names of files.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path, or restore it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8, or restore it") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; UserError when there is none."""
    return _object(path, read_text(path))


def read_json_value(path: Path, most: int = MOST_TEXT) -> Any:
    """Whatever a JSON file of at most so many bytes holds, of any type; UserError when it is no JSON."""
    return _value(path, read_text(path, most))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a number may be NaN or infinite, as a loss that broke.

    The last line may be half of one, of a process that is writing or was killed as it wrote: it is left out.

    Raises:
        UserError: another line is no object, which is named.
    """
    lines = read_text(path).splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_object(path, line, f", line {number}", constant=float))
        except UserError:
            if number < len(lines) or line.endswith("\n"):
                raise
    return records


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; UserError when there is none."""
    text = read_text(path, _MOST_YAML)
    try:
        content = yaml.load(text, _PlainLoader)
        _check_bounds(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not YAML ({reason[:120]}); mend or restore it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no options; write one `name: value` a line")
    return {str(name): value for name, value in content.items()}


def read_csv(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV file, header and all, empty lines left out; UserError where it cannot be read."""
    return [row for _, row in read_numbered(path, delimiter)]


def read_numbered(path: Path, delimiter: str = ",", *, trim: bool = False) -> list[tuple[int, list[str]]]:
    """As `read_csv`, each row with the number of its line, or of its last; `trim` drops spaces around values."""
    # Names of files need not be UTF-8, and `write_csv` has written them as they are.
    text = read_text(path, errors="surrogateescape")
    if "\0" in text:
        raise UserError(f"{path}: not CSV (it holds zero bytes, as UTF-16 does); save it as UTF-8, or restore it")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=trim)
    try:
        return [(rows.line_num, [value.strip() if trim else value for value in row]) for row in rows if row]
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({error}); mend or restore it") from error


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, by which a small file can stand for gigabytes; no file of ours has any."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def _value(path: Path, text: str, place: str = "", *, constant: Callable[[str], float] | None = None) -> Any:
    try:
        content = json.loads(text, parse_constant=constant or _refuse_constant, parse_float=_finite)
        _check_bounds(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path}{place}: not JSON ({reason[:120]}); restore it, or remove it") from error
    return content


def _object(
    path: Path, text: str, place: str = "", *, constant: Callable[[str], float] | None = None
) -> dict[str, Any]:
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


def _check_bounds(content: Any) -> None:
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
    """Values of a mapping that a file held, each checked as it is taken: a file may have been edited.

    Args:
        path: of the file, for the messages.
        content: what it held.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, content

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value under a name, which must be of this type (or one of these); `default` where there is none.

        Raises:
            UserError: it is of another type.
        """
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


def shown(value: Any) -> str:
    """A value as a message shows it: at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        text = f"an integer of {int(value).bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}…"


def short(digest: str) -> str:
    """The beginning of a digest, which is enough to tell two apart."""
    return digest[:12]
