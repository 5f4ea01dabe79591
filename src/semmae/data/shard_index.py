"""What lies where in tar shards: read off the headers once, and kept beside what is known of other data sets.

In a tar file of WebDataset's form the members of one image follow each other under one key, the name up to its first
dot: `cat/7.jpg`, `cat/7.cls`. Any other uncompressed tar of images is one too: an image is what ends like one.

| member               | is                                                                                   |
|----------------------|--------------------------------------------------------------------------------------|
| `KEY.jpg`, `.png` …  | the image; of several under one key the first of `_PREFERRED`, others are passed over |
| `KEY.npy`            | the image in a shard of arrays alone; passed over beside pictures, as in a folder       |
| `KEY.cls`            | its class, a number or a text                                                         |
| `KEY.json`           | its class under "label", where there is no `.cls`                                     |
| `KEY.mask.png`, …    | what belongs to `KEY.jpg`: passed over                                                |

Notable here:
- nothing is ever unpacked; a name that is absolute or holds `..` is refused all the same;
- a tar that ends without its mark of the end was cut off, or is damaged there, and is refused; so is one with more
  behind that mark than writers of tar files put there: another tar, or room that a copy made for what never came;
- the file of the index holds every shard of a folder that was ever looked at; one that was changed is read anew;
- of several processes of a run the first one reads the headers, and the others take its index;
- headers are read by Python, which uses one core for all threads: many are read by processes.
"""

import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from semmae.cores import usable_cores
from semmae.data.checked import cache_file, cache_folder
from semmae.data.compact import Names
from semmae.data.decode import SUFFIXES
from semmae.data.endings import ARRAY, UNDECODED, counted, ending
from semmae.data.shard_places import Shard, copied
from semmae.data.stores import named
from semmae.data.workers import in_processes
from semmae.errors import DiskError, UserError, reason
from semmae.files import open_regular, whole
from semmae.names import shown
from semmae.progress import Progress
from semmae.run.ranks import is_rank_zero, shared_folder

_FORM = 2  # of the file; one of another number is made anew
_BLOCK = 512  # bytes: tar files are made of such blocks
# Writers end a tar with two blocks of zeros and fill up its last record with more. Records are of 20 blocks, usually;
# whoever sets them (`tar --blocking-factor`) takes a power of two, for tapes 1 MiB at most. Of a file of such records
# its size is a multiple, which that of a file of others hardly is: half a file of zeros is never taken for padding.
_RECORD, _RECORDS = 20 * _BLOCK, tuple(_BLOCK * 2**power for power in range(5, 12))
_MOST_LABEL = 2**20  # bytes of a member that holds a label
_PREFERRED = (".jpg", ".jpeg", ".png", ".webp")
_LABELS = (".cls", ".json")
_THREADS = 4  # that read shards at the same time; of processes as many at least, because disks of a network answer
# several as fast as one
_MOST = 16  # processes
_WORTH = 20_000  # headers that are worth a process: a second of reading, where its start takes a tenth
_SAMPLE = 100  # headers by which all are estimated
_LINKS = "links or devices"  # among endings, what is no file
_COLUMNS = 3  # of a row: offset, bytes, number of its label or -1

_log = logging.getLogger("semmae")

_Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Members:
    """The images of one shard, in the order in which they lie there."""

    names: Names
    rows: _Array  # (N, 3): offset, bytes, number of the label or -1
    labels: tuple[str, ...]  # what these numbers stand for


def members_of(shards: Sequence[Shard], key: str) -> list[Members]:
    """The images of each shard; shards that are not known as they are now are read, and kept under the key.

    Of several processes the first one keeps them for all: on another machine they would have to be read, and those at
    addresses be copied, once more.
    """
    folder, together = cache_folder("index"), shared_folder()
    own, shared = (None if each is None else cache_file(each, f"shards\0{key}") for each in (folder, together))
    known: dict[Shard, Members] = {}
    for file in (shared, own):
        if file is not None and not known.keys() >= set(shards):
            known |= _read_index(file)
    unknown = [shard for shard in shards if shard not in known]
    passed = Counter[str]()
    try:
        for shard, (members, others) in zip(unknown, _all_read(unknown), strict=True):
            known[shard] = members
            passed += others
    finally:  # also where one is refused: the others are not read again
        places, current = {shard.place for shard in shards}, set(shards)
        kept = {each: known[each] for each in known if each.place not in places or each in current}
        if own is not None and kept and unknown:
            _write_index(own, kept)
    if shared is not None and is_rank_zero():
        _write_index(shared, kept)
    if passed:
        level = logging.WARNING if _LINKS in passed else logging.INFO  # they may be meant as images
        _log.log(level, "%s: passed over in its shards: %s", named(key), counted(passed))
    return [known[shard] for shard in shards]


def _all_read(shards: Sequence[Shard]) -> Iterator[tuple[Members, Counter[str]]]:
    with Progress(len(shards), "shards", "indexing") as progress:
        for members in in_processes(_read_shard, shards, _processes(shards), _THREADS):
            yield members
            progress.update()


def _processes(shards: Sequence[Shard]) -> int:
    """How many are worth their start; fewer than 2: threads do it.

    So they do for shards at addresses, which wait for their copies more than for a core.
    """
    cores = usable_cores()
    if len(shards) < 2 or cores < 2 or shards[0].remote:
        return 0
    return min(len(shards), max(_THREADS, min(cores, _MOST)), _headers_about(shards) // _WORTH)


def _headers_about(shards: Sequence[Shard]) -> int:
    """How many headers the shards hold, if all are as dense as the beginning of the first; 0 where that is no tar."""
    try:
        with open_regular(Path(shards[0].place)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            count = sum(tar.next() is not None for _ in range(_SAMPLE))
            return count * sum(shard.size for shard in shards) // max(_BLOCK, tar.offset)
    except Exception:  # of any kind, as a damaged header raises them: reading finds out, and says so
        return 0


def _read_shard(shard: Shard) -> tuple[Members, Counter[str]]:
    """The images of a shard, by its headers, and what else lies there, by its ending."""
    try:
        with open_regular(copied(shard) if shard.remote else Path(shard.place)) as file:
            reader = _Reader(shard, file)
            return reader.members(), reader.passed
    except OSError as error:
        raise UserError(
            f"{named(shard.place)}: cannot be read ({reason(error)}); restore it, or leave it out"
        ) from error


class _Reader:
    """Reads one shard."""

    def __init__(self, shard: Shard, file: BinaryIO) -> None:
        self.shard, self.file = shard, file
        self.places: dict[str, tuple[int, int]] = {}  # member → offset, bytes
        self.passed: Counter[str] = Counter()  # what is neither an image nor a label, by its ending

    def members(self) -> Members:
        if not self.shard.size:
            raise self._fault("an empty file, not a tar")
        try:
            self._read_headers()
        except (UserError, OSError):
            raise
        except Exception as error:  # also those of Python's own, of numbers and texts in a damaged header
            raise self._fault(f"no readable tar ({reason(error)})") from error
        images = self._images()
        labels: dict[str, int] = {}
        rows = np.empty((len(images), _COLUMNS), dtype=np.int64)
        for row, name in enumerate(images):
            label = self._label(name)
            number = -1 if label is None else labels.setdefault(label, len(labels))
            rows[row] = *self.places[name], number
        return Members(Names(images), rows, tuple(labels))

    def _read_headers(self) -> None:
        with tarfile.open(fileobj=self.file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else each would be kept
                if member.size < 0:
                    raise self._fault(f"damaged: {shown(member.name)} has {member.size} bytes")
                if member.isreg() and not member.issparse():
                    self._take(member)
                elif not member.isdir():
                    self.passed[_LINKS] += 1
            end = tar.offset
        self._check_end(end)

    def _check_end(self, end: int) -> None:
        """Refuse what ends otherwise than writers of tar files end it, from its last member on."""
        self.file.seek(end)
        rest, size = self.file.read(_RECORDS[-1] + 2 * _BLOCK), self.shard.size
        if rest[:_BLOCK] != bytes(_BLOCK):
            raise self._fault(f"cut off, or damaged, behind byte {end} of {size}")
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        if zeros < len(rest):
            fault = f"ends at byte {end} of {size}, and more lies behind, from byte {end + zeros} on"
            raise self._fault(fault, "fetch it again, or write each tar to a file of its own")
        padding = size - end - 2 * _BLOCK
        if not (padding < _RECORD or any(padding < record and size % record == 0 for record in _RECORDS)):
            raise self._fault(f"cut off: zeros alone from byte {end} of {size}, more than the end of a tar has")

    def _take(self, member: tarfile.TarInfo) -> None:
        name = member.name
        while name.startswith("./"):
            name = name[2:]
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise self._fault(f"holds {shown(member.name)}, a path that leads out of it", "write it with names below")
        if name in self.places:
            raise self._fault(f"holds {shown(name)} twice", "write it with each name once")
        if member.offset_data + member.size > self.shard.size:
            end = member.offset_data + member.size
            raise self._fault(f"cut off: {shown(name)} ends at byte {end}, the file at {self.shard.size}")
        self.places[name] = (member.offset_data, member.size)

    def _images(self) -> list[str]:
        """The members that are images, one under a key."""
        images = [name for name in self.places if _is_image(name)]
        # Arrays beside pictures are something else, such as features of these.
        pictures = [name for name in images if ending(name) != ARRAY] or images
        first: dict[str, str] = {}  # key → image, of those that are called KEY.ENDING
        for name in pictures:
            key, rest = _key(name)
            other = first.get(key)
            if "." not in rest and (other is None or _rank(name) < _rank(other)):
                first[key] = name
        chosen = [name for name in pictures if first.get(_key(name)[0], name) == name]
        taken = {*chosen, *(name for name in self.places if name.endswith(_LABELS))}
        self.passed.update(ending(name) for name in self.places if name not in taken)
        return chosen

    def _label(self, image: str) -> str | None:
        """The text of a `.cls`, or what a `.json` has under "label"."""
        stem = image[: -len(ending(image))]
        for kind in _LABELS:
            place = self.places.get(stem + kind)
            if place is None:
                continue
            if place[1] > _MOST_LABEL:
                raise self._fault(f"{shown(stem + kind)} holds {place[1]} bytes, limit {_MOST_LABEL}", "write a label")
            self.file.seek(place[0])
            raw = self.file.read(place[1])
            try:
                text = raw.decode()
                found = text.strip() if kind == ".cls" else _labelled(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise self._fault(f"{shown(stem + kind)}: no {kind[1:]} ({reason(error)})", "mend it") from error
            if found is not None:
                return found
        return None

    def _fault(self, fault: str, remedy: str = "fetch or write it again") -> UserError:
        return UserError(f"{named(self.shard.place)}: {fault}; {remedy}")


def _labelled(content: object) -> str | None:
    label = content.get("label") if isinstance(content, dict) else None
    return str(label) if isinstance(label, str | int) else None


def _is_image(name: str) -> bool:
    kind = ending(name)
    return (kind in SUFFIXES or kind in UNDECODED) and not name.rpartition("/")[2].startswith(".")


def _key(name: str) -> tuple[str, str]:
    """What WebDataset calls the key of a member, up to the first dot of its file's name, and what follows."""
    folder, slash, file = name.rpartition("/")
    stem, _, rest = file.partition(".")
    return folder + slash + stem, rest


def _rank(name: str) -> int:
    kind = ending(name)
    return _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)


# The file: arrays of numpy, one behind the other


def _write_index(file: Path, known: dict[Shard, Members]) -> None:
    facts = [(shard.size, shard.stamp, shard.remote, len(each.rows), len(each.labels)) for shard, each in known.items()]
    names = Names(name for shard in known for name in (shard.name, shard.place))
    labels = Names(label for each in known.values() for label in each.labels)
    rows = np.concatenate([each.rows for each in known.values()])
    images = Names.joined(each.names for each in known.values())
    try:
        with whole(file) as beside, beside.open("wb") as handle:
            for array in (np.array([_FORM]), np.array(facts, dtype=np.int64), rows):
                np.save(handle, array)
            for texts in (names, images, labels):
                for array in texts.arrays:
                    np.save(handle, array)
    except (OSError, DiskError, UserError) as error:  # only speed is lost
        _log.warning("%s: index of the shards not kept (%s), it is made again the next time", file, error)


def _read_index(file: Path) -> dict[Shard, Members]:
    """What was found before; nothing where there is no such file, or a damaged one."""
    try:
        with open_regular(file) as content:
            return dict(_indexed(content))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except Exception as error:  # also those of Python's own parser, which reads the header of an array
        _log.warning("%s: index of the shards not readable (%s), it is made again", file, reason(error))
        return {}


def _indexed(file: BinaryIO) -> Iterator[tuple[Shard, Members]]:
    def array(kind: type[np.generic], *shape: int) -> npt.NDArray[np.generic]:
        found: npt.NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
        if found.dtype != kind or found.shape[1:] != shape:
            raise ValueError(f"it holds {found.dtype} {found.shape}")
        return found

    def texts() -> Names:
        return Names.of_arrays(array(np.uint8).astype(np.uint8), array(np.int64).astype(np.int64))

    if array(np.int64).tolist() != [_FORM]:
        raise ValueError("it is of another version")
    facts, rows = array(np.int64, 5).astype(np.int64), array(np.int64, _COLUMNS).astype(np.int64)
    names, images, labels = texts(), texts(), texts()
    counts = [sum(facts[:, column].tolist()) for column in (3, 4)]  # Python's own numbers, which do not overflow
    if [2 * len(facts), len(rows), *counts] != [len(names), len(images), len(rows), len(labels)]:
        raise ValueError("its parts are of different lengths")
    if (facts[:, [0, 3, 4]] < 0).any():
        raise ValueError("it counts below 0")
    row, label = 0, 0
    for number, (size, stamp, remote, count, classes) in enumerate(facts.tolist()):
        shard = Shard(names[2 * number], names[2 * number + 1], size, stamp, bool(remote))
        own = rows[row : row + count]
        # Subtracted, because a sum may overflow.
        outside = (own[:, :2] < 0).any() or (own[:, 0] > size - own[:, 1]).any()
        if outside or (own[:, 2] < -1).any() or (own[:, 2] >= classes).any():
            raise ValueError(f"it names places outside of {shard.name}")
        yield shard, Members(images[row : row + count], own, tuple(labels[label : label + classes]))
        row, label = row + count, label + classes
