"""Whole-or-nothing writes: beside the place, then moved there; none into a folder that was taken away meanwhile."""

import csv
import errno
import glob
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semmae.errors import DiskError, UserError, reason
from semmae.names import encoded, on_disk, shown

# Of everything that lies beside its place while it is written.
PART = ".semmae-part"
_OLD = "old"  # in place of a process, of a folder that gives its place to another
_LONG = 50  # letters of a name: of four bytes each they leave room for what comes around it
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # by what is not to be replaced
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Libraries that write by themselves (torch, safetensors, Arrow) say the same in words.
_FULL_WORDS = re.compile(
    r"no space left|os error (28|122|27|5)\b|disk quota|file too large"
    r"|PytorchStreamWriter|inline_container|iostream error",
    re.I,
)

# Folders that are to stay, and a descriptor of each: as long as it is open, no other folder has the same number.
_GUARDED: list[tuple[Path, int]] = []


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Nothing is made or written below the folder of a run once it was removed, moved or replaced by another.

    Raises:
        UserError: it was, as soon as something is written there, or fails for want of it.
    """
    place = Path(os.path.abspath(folder))
    entry = (place, os.open(place, os.O_RDONLY | os.O_DIRECTORY))
    _GUARDED.append(entry)
    try:
        yield
    except Exception as error:
        fault = _taken_away(place)
        if fault is None or str(error) == fault:
            raise
        raise UserError(fault) from error
    finally:
        _GUARDED.remove(entry)
        os.close(entry[1])


def check_guarded(path: Path) -> None:
    """UserError where the path lies below a `guarded` folder that is no longer there."""
    fault = _taken_away(path)
    if fault is not None:
        raise UserError(fault)


def _taken_away(path: Path) -> str | None:
    place = Path(os.path.abspath(path)) if _GUARDED else path
    for folder, descriptor in _GUARDED:
        if place.is_relative_to(folder) and not _is_at(folder, descriptor):
            return f"--out {folder}: was removed or moved while the run wrote there; begin the run anew"
    return None


def _is_at(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to: moved to `path` when the block ends well, removed when it does not.

    `durable`: the file is on the disk before it takes its place, and so is its name before the block returns.
    """
    with explained(path):
        make_folder(path.parent)
        beside = name_beside(path, os.getpid())
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
def whole_folder(folder: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """An empty folder beside `folder`, moved into its place when the block ends well; of a link, where it leads.

    Making it may take hours, and what lies in its place is looked at when it is moved: without `check` nothing is
    replaced but an empty folder. `check` is given the folder to look into, at its place and again when it was moved out
    of everybody's reach, and raises UserError where that is not to be replaced.

    Raises:
        UserError: what lies there stays, and what was made is kept beside it, under a name that the line says.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    check_replaceable(folder)

    def look(place: Path) -> None:
        if not place.is_dir():
            raise UserError(f"{folder}: a file was put there meanwhile, and is not overwritten; move it away")
        if check is not None:
            check(place)

    with explained(folder):
        make_folder(folder.parent)
        sweep_beside(folder)
        beside = name_beside(folder, os.getpid())
        try:
            beside.mkdir()
            yield beside
            try:
                if check is None:
                    _rename_to_free(beside, folder)
                else:
                    move_into_place(beside, folder, look)
            except UserError as error:
                raise UserError(f"{error}; what was made is kept in {_kept(beside, folder, 'new')}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def move_into_place(
    fresh: Path, folder: Path, check: Callable[[Path], None] = lambda place: None, *, durable: bool = False
) -> None:
    """Let the folder `fresh`, which lies beside it, take the place of another one, if there is one.

    That takes two moves. Where the process is killed between them, the old folder lies beside its place, and `sweep`
    or `sweep_beside` puts it back. `check`: see `whole_folder`. `durable`: what is in the new one is on the disk
    before, and so are the names after.
    """
    old = name_beside(folder, _OLD)
    if durable:
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
    if folder.exists():
        check(folder)
        remove(old)
        os.rename(folder, old)
    try:
        if old.exists():
            check(old)
        _rename_to_free(fresh, folder)
    except Exception as error:
        _put_back(folder)
        if not old.exists():
            raise
        # Something else has come there meanwhile: nothing that was ever to be replaced.
        raise UserError(f"{error}; what lay there before is in {_kept(old, folder, 'old')}") from error
    if durable:
        _sync(folder.parent)
    with suppress(OSError):
        remove(old)


def _rename_to_free(path: Path, folder: Path) -> None:
    """Rename a folder; the system replaces an empty one by it, and nothing else."""
    try:
        os.rename(path, folder)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        raise UserError(f"{folder}: something was put there meanwhile, and is not overwritten; move it away") from error


def _put_back(folder: Path) -> None:
    old = name_beside(folder, _OLD)
    if old.exists():
        with suppress(UserError):
            _rename_to_free(old, folder)


def _kept(path: Path, folder: Path, word: str) -> Path:
    """Where a folder is that is to stay: beside another, under the first free name such as NAME-new, NAME-new-2."""
    for number in itertools.count(1):
        place = folder.with_name(f"{folder.name[:_LONG]}-{word}{f'-{number}' if number > 1 else ''}")
        if not os.path.lexists(place):
            os.rename(path, place)
            break
    return place


def make_folder(folder: Path) -> None:
    """Make a folder, and those around it, where it is not there; UserError where the system refuses that."""
    check_guarded(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_fault(error):
            raise
        fault = f"cannot be made ({reason(error).lower()})"
        raise UserError(f"{shown(str(folder))}: {fault}; choose another place") from error


def check_replaceable(folder: Path) -> None:
    """UserError where `whole_folder` cannot move a folder to: a mount, the working folder or one around it."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is the folder one works in, or around it; give a new folder below it, or elsewhere")
    if os.path.ismount(folder):
        raise UserError(f"{folder}: another disk is mounted there, whose place no folder can take; give one below it")


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


def sweep(folder: Path) -> None:
    """Remove what killed processes were writing in a folder, at any depth: what bears our suffix, and nothing else.

    A folder that was to be replaced is put back where nothing has come in its place.
    """
    for entry in list(folder.rglob(f".*{PART}")):
        place = entry.with_name(entry.name[1:].removesuffix(f".{_OLD}{PART}"))
        if entry == name_beside(place, _OLD):
            _put_back(place)
        remove(entry)


def sweep_beside(path: Path) -> None:
    """Remove what killed processes were writing for this very place; of one that lives nothing.

    A folder that was to be replaced is put back where nothing has come in its place.
    """
    _put_back(path)
    for entry in path.parent.glob(glob.escape(name_beside(path, "").name.removesuffix(PART)) + f"*{PART}"):
        process = entry.name.removesuffix(PART).rpartition(".")[2]
        if entry.name == name_beside(path, process).name and process.isdecimal() and not _lives(int(process)):
            remove(entry)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return process != os.getpid()  # its own are those of another with its number


def is_part(path: Path) -> bool:
    """Whether the name is one of ours for what is being written."""
    return path.name.startswith(".") and path.name.endswith(PART)


def remove(entry: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def discard(folder: Path, *names: str) -> None:
    """Remove these files of a folder, and the folder unless something else lies there."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def is_disk_fault(error: BaseException) -> bool:
    """Whether this error of Python, or of a library that writes, is one of the disk: full, broken, read-only."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return not isinstance(error, UserError) and _FULL_WORDS.search(str(error)) is not None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the disk, from whichever library, as `DiskError`; what else is refused is for the user to mend."""
    try:
        yield
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        if error.filename is None or Path(error.filename).parent != path.parent:
            raise
        fault = f"cannot be written ({reason(error).lower()})"
        raise UserError(f"{path}: {fault}; choose another place, or move that away") from error
    except Exception as error:
        if not (isinstance(error, DiskError) or is_disk_fault(error)):
            raise
        cause = error.__cause__ if isinstance(error, DiskError) else error
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else "No space left on device"
        raise DiskError(f"{path}: cannot be written ({said.lower()}); free space there, or use another disk") from cause


def name_beside(path: Path, process: object) -> Path:
    """Where a process writes, or locks: the same disk, a name of its own that is no longer than file systems take."""
    name = path.name
    if len(name) > _LONG:
        name = f"{name[: _LONG - 16]}{hashlib.blake2b(on_disk(name), digest_size=8).hexdigest()}"
    return path.with_name(f".{name}.{process}{PART}")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
