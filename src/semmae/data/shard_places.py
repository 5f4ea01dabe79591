"""Where tar shards lie: on a disk, or at addresses that fsspec reads, of which copies are kept in bounded room.

Notable here:
- a shard at an address is copied whole when one of its images is first asked for, or in the background before that:
  trainings take images by shard and window, and no store answers thousands of small requests a second;
- processes of one machine share the copies: one of them copies, the others wait for it;
- where the room is used up, those go first that were read least recently; a copy has its room before it is begun, so
  that as many as are made at once do not take more.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from semmae.data.checked import cache_folder
from semmae.data.stores import facts_of, file_system, list_anew, matching, named, said
from semmae.data.workers import in_threads
from semmae.errors import DiskError, UserError, listed, reason
from semmae.files import PART, explained, make_folder, name_beside, remove, sweep_beside, whole
from semmae.names import braced, bytes_shown, on_disk, shown

_SUFFIX, _ANNOUNCED = ".tar", ".room"  # of copies, and of files as long as a copy will be that is being made
_ROOM = "SEMMAE_CACHE_GB"
_USUAL_ROOM, _LEAST_ROOM = 64.0, 16.0  # GB; a training reads from up to three windows of 4 GB at a time
_TRIES, _PAUSE = 3, 2.0  # of copying a shard; seconds before the second, twice as many before the third
_WAIT = 0.2  # seconds, for room that copies of others have taken
_FRESH = 60  # seconds for which a copy counts as read just now
_LEFT = 3600  # seconds after which what is being copied, and grew no more, is a killed process's
_ASKED = 16  # shards whose sizes are asked for at a time
_READ_AHEAD = 2**30  # bytes of a shard that is read in one go

_log = logging.getLogger("semmae")
# By path. What two threads copy at once has one name beside its place, and a file system may have no locks of its own.
_of_threads: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_of_threads.clear)  # a thread that holds one is not there


class _ChangedError(OSError):
    """A shard is another one, and will be: nothing is gained by trying again."""


class Shard(NamedTuple):
    """A tar file with images."""

    name: str  # path below the root of the data set
    place: str  # its path, or its address
    size: int  # bytes
    stamp: int  # another one when it was changed: the time in ns, or a hash of what the store says of it
    remote: bool = False


def local_shards(root: Path, names: Sequence[str], data: str) -> list[Shard]:
    """The shards of these names below `root`, in this order. UserError where some are missing."""
    shards, missing = [], []
    for name in names:
        path = root / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            missing.append(name)
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error).lower()}); change its permissions") from error
        shards.append(Shard(name, str(path), stat.st_size, stat.st_mtime_ns))
    _refuse_missing(missing, len(names), data)
    _refuse_twice(shards, data)
    return shards


def names_shards(data: str) -> bool:
    """Whether an address is of shards: of one, of many by braces or `*`, or, by a slash at its end, of their folder."""
    return data.endswith(("/", _SUFFIX))


def remote_addresses(data: str) -> tuple[str, list[str]]:
    """The folder around all shards that an address means, and each one's own, there or not."""
    list_anew(data)
    patterns = [f"{data}*{_SUFFIX}"] if data.endswith("/") else braced(data)
    addresses = [address for pattern in patterns for address in matching(pattern, data)]
    return _common_folder(addresses), addresses


def remote_shards(data: str) -> tuple[str, list[Shard]]:
    """As `remote_addresses`, with what the store says of each shard."""
    root, addresses = remote_addresses(data)
    missing: list[str] = []
    shards: list[Shard] = []
    for address, facts in zip(addresses, in_threads(facts_of, addresses, _ASKED), strict=True):
        if facts is None:
            missing.append(address[len(root) :])
        else:
            shards.append(Shard(address[len(root) :], address, *facts, remote=True))
    _refuse_missing(missing, len(addresses), data)
    _refuse_twice(shards, data)
    largest = max(shards, key=lambda shard: shard.size)
    if largest.size > _room():
        raise UserError(
            f"{named(largest.place)}: {bytes_shown(largest.size)}, and {bytes_shown(_room())} are kept of shards at "
            f"addresses; set {_ROOM} to more, or write smaller shards with semmae pack"
        )
    return root, shards


def copied(shard: Shard) -> Path:
    """A copy of a remote shard on the disk, made now where there is none. It may go when the next one is asked for.

    OSError where it cannot be fetched, or was changed since; DiskError where there is no room.
    """
    folder = _folder()
    name = hashlib.sha256(on_disk(f"{shard.place}\0{shard.size}\0{shard.stamp}")).hexdigest()[:32]
    path = folder / f"{name}{_SUFFIX}"
    if not _is_whole(path, shard):
        make_folder(folder)
        with _locked(folder / f"{name[:2]}.lock"):
            if not _is_whole(path, shard):
                with _room_for(path, shard):
                    _fetch(shard, path)
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _FRESH:
            os.utime(path)
            with path.open("rb") as file:
                read_ahead(file.fileno(), shard.size)
    return path


def _folder() -> Path:
    """Where the copies are, made or not."""
    folder = cache_folder("shards")
    if folder is None:
        raise UserError("SEMMAE_CACHE: is no path, and copies of remote shards are kept there; give another, or none")
    return folder


def copied_soon(shard: Shard) -> None:
    """Begin a copy in the background, where there is room. What fails is left to whoever will read from it."""
    with suppress(RuntimeError):  # the system begins no more threads
        threading.Thread(target=_copied_in_silence, args=(shard,), daemon=True, name="semmae-copy").start()


def _copied_in_silence(shard: Shard) -> None:
    try:
        if _is_room_ahead(shard):
            copied(shard)
    except Exception as error:
        _log.debug("%s: not copied ahead (%s)", shard.place, reason(error))


def _is_room_ahead(shard: Shard) -> bool:
    """Whether three windows fit beside each other: with less, a copy would take the place of one that is being read."""
    folder = _folder()
    make_folder(folder)
    room = shutil.disk_usage(folder).free
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes too
            room += 512 * path.stat().st_blocks  # what is announced has none
    return min(_room(), room) >= max(_LEAST_ROOM * 1e9, 3 * shard.size)


def read_ahead(descriptor: int, size: int) -> None:
    """All of a shard into the system's cache, in the background, unless it is a large one.

    A disk that seeks reads it a hundred times as fast as its images one by one, and images of a shard are wanted one
    after the other. Of one that is there already the system looks at every page: not to be asked for each image.
    """
    if size <= _READ_AHEAD and hasattr(os, "posix_fadvise"):  # not on macOS
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size
    except OSError:
        return False


def _fetch(shard: Shard, path: Path) -> None:
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            with whole(path) as beside:
                files, inside = file_system(shard.place)
                files.get_file(inside, str(beside))
                size = beside.stat().st_size
                # Asked for behind it: of a large file stores send parts, which may be of two versions.
                if said(shard.place, anew=True) != (shard.size, shard.stamp):
                    raise _ChangedError(errno.ESTALE, f"{named(shard.place)} was changed since this began")
                if size != shard.size:
                    raise OSError(f"{size} bytes, where {shard.size} were announced; it is cut off")
            return
        except (DiskError, UserError, _ChangedError):
            raise
        except Exception as error:  # stores, networks and their libraries have no common type
            if last:
                raise OSError(f"{named(shard.place)} cannot be fetched: {reason(error, 200)}") from error
            _log.debug("%s: once more (%s)", shard.place, reason(error))
            time.sleep(_PAUSE)


@contextmanager
def _room_for(path: Path, shard: Shard) -> Iterator[None]:
    """Room for a copy: kept free while the block makes it. Waits for other copies that have taken all there is."""
    announced = path.with_suffix(_ANNOUNCED)
    sweep_beside(path)
    sweep_beside(announced)
    length = name_beside(announced, os.getpid())
    try:
        while True:
            with _locked(path.parent / "room.lock"):
                if _make_room(path.parent, shard):
                    with explained(length), length.open("wb") as file:
                        file.truncate(shard.size)  # which takes no room on the disk
                    break
            time.sleep(_WAIT)
        yield
    finally:
        length.unlink(missing_ok=True)


def _make_room(folder: Path, shard: Shard) -> bool:
    """Remove copies that were not read for longest, until another one fits in; False where others are being made."""
    _sweep_left(folder)
    copies, written, announced = [], dict[str, int](), dict[str, int]()  # bytes by the name of the shard
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes too
            stat = path.stat()
            sizes = announced if _ANNOUNCED in path.suffixes else written
            sizes[path.name.removeprefix(".").partition(".")[0]] = stat.st_size
            if path.suffix == _SUFFIX:
                copies.append((stat.st_mtime, stat.st_size, path))
    missing = sum(max(0, size - written.get(name, 0)) for name, size in announced.items())
    used, oldest = sum(written.values()) + missing, iter(sorted(copies))
    while used + shard.size > _room() or shutil.disk_usage(folder).free < missing + shard.size:
        entry = next(oldest, None)
        if entry is None and announced:
            return False
        if entry is None:
            free = bytes_shown(shutil.disk_usage(folder).free)
            raise DiskError(
                f"{folder}: a copy of {named(shard.place)} needs {bytes_shown(shard.size)}, {free} are free there; "
                "free space, or set SEMMAE_CACHE to another disk"
            )
        remove(entry[2])
        used -= entry[1]
    return True


def _sweep_left(folder: Path) -> None:
    """Remove what killed processes have announced, and half copies: a training ends while others are being made."""
    for entry in folder.glob(f".*{PART}"):
        name, _, process = entry.name.removesuffix(PART).removeprefix(".").rpartition(".")
        if not name.endswith((_ANNOUNCED, _SUFFIX)):
            continue  # none of ours
        with suppress(FileNotFoundError):  # another process ends it
            # A copy may be another machine's, where numbers of processes are others.
            if process != str(os.getpid()) and (
                name.endswith(_ANNOUNCED) or time.time() - entry.stat().st_mtime > _LEFT
            ):
                sweep_beside(folder / name)


def _room() -> float:
    """Bytes that copies may take."""
    given = os.environ.get(_ROOM)
    try:
        room = _USUAL_ROOM if given is None else float(given)
    except ValueError:
        room = 0.0
    if not _LEAST_ROOM <= room < float("inf"):
        raise UserError(f"{_ROOM} {shown(given)}: must be a number of gigabytes, at least {_LEAST_ROOM:g}")
    return room * 1e9


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process, nor any thread of this one, holds the lock."""
    with _of_threads.setdefault(str(path), threading.Lock()), path.open("a") as file:
        with suppress(OSError):  # a file system without locks: then two processes may copy the same
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:  # what was forked meanwhile has the file open, too
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _common_folder(addresses: Sequence[str]) -> str:
    """What all addresses begin with, up to a slash; at least the place of the first."""
    start = os.path.commonprefix([address.rpartition("/")[0] + "/" for address in addresses])
    return start.rpartition("/")[0] + "/"


def _refuse_twice(shards: Sequence[Shard], data: str) -> None:
    name, count = Counter(shard.name for shard in shards).most_common(1)[0]
    if count > 1:
        raise UserError(f"{named(data)}: means {name} {count} times; give each shard once")


def _refuse_missing(missing: Sequence[str], count: int, data: str) -> None:
    if missing == [data.rpartition("/")[2]]:
        raise UserError(f"{named(data)}: no such shard; check the place, and your rights there")
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{named(data)}: {listed(missing)} of {count} shards {are} missing; fetch what is missing, or give the "
            "range that is there"
        )
