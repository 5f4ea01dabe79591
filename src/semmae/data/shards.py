"""Images in tar shards, on a disk or at addresses: each is a range of bytes, so that rows keep their numbers.

Names are `shard.tar/member`. Classes: the text of `.cls`, or "label" of `.json`; of numbers the names in `classes.json`
beside the shards, a list. Where no image has either: the folders of the members, as of files. Splits are those that the
names of the shards have: `train-000.tar`, `imagenet-val-000.tar`.
"""

import errno
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semmae.data.compact import Labels, Names
from semmae.data.decode import MOST_BYTES
from semmae.data.endings import UNDECODED, ending
from semmae.data.folders import first_folders, folder_classes
from semmae.data.parquet import classes_of
from semmae.data.selection import InShards
from semmae.data.shard_index import Members, members_of
from semmae.data.shard_places import Shard, copied, read_ahead
from semmae.data.splits import TRAIN, VAL, are_splits, pick_split
from semmae.data.stores import named, read_beside
from semmae.errors import UserError
from semmae.files import open_regular, read_bytes

SHARD = ".tar"
CLASSES = "classes.json"
_SPLIT = re.compile(rf"(?:^|[-_./])({'|'.join(sorted(TRAIN + VAL, key=len, reverse=True))})(?![a-z])")
_OPEN = 128  # shards that a process keeps open
_AGAIN = 3  # tries to open a copy, which may be removed at any time


class ShardSource:
    """The images of tar shards. `read` raises OSError where a shard has gone, or was changed since it was indexed."""

    class_remedy = 'give each image its class in a file KEY.cls of its shard, or as "label" in KEY.json'

    def __init__(
        self,
        shards: Sequence[Shard],
        members: Sequence[Members],
        *,
        root: str,
        key: str,
        labels: Labels | None,
        class_note: str,
    ) -> None:
        self.root, self.key, self.labels, self.class_note = Path(root), key, labels, class_note
        counts = [len(each.rows) for each in members]
        rows = np.concatenate([each.rows for each in members])
        self.names = _names(shards, members)
        self.modified = np.repeat(np.array([shard.stamp for shard in shards], dtype=np.int64), counts)
        self._offsets, self.sizes = rows[:, 0].copy(), rows[:, 1].copy()
        self._places, self._shard = list(shards), np.repeat(np.arange(len(shards)), counts)
        images = [int(each.rows[:, 1].sum()) for each in members]
        self.shards: InShards | None = InShards(
            self._shard, np.repeat(np.array(images, dtype=np.int64), counts), self._places
        )
        self._opened: dict[int, _Opened] = {}

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        number, offset, size = int(self._shard[i]), int(self._offsets[i]), int(self.sizes[i])
        undecoded = UNDECODED.get(ending(self.names[i]))
        if undecoded:
            raise OSError(errno.ENOTSUP, undecoded)
        if size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"{size} bytes, limit {MOST_BYTES}")
        raw = self._file(number).read(offset, size)
        if len(raw) < size:
            raise OSError(errno.EIO, f"{self._places[number].name} is cut off")
        return raw

    def _file(self, number: int) -> "_Opened":
        shard = self._places[number]
        if shard.remote:  # none is kept open: the room of a removed copy would not be free
            return _opened_copy(shard)
        found = self._opened.get(number)
        if found is None:
            found = _Opened(Path(shard.place), shard)
            if len(self._opened) >= _OPEN:
                self._opened.clear()
            self._opened[number] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Each process opens shards for itself."""
        return {**self.__dict__, "_opened": {}}


class _Opened:
    """An open shard, closed as soon as nobody reads it: another thread may when it is dropped."""

    def __init__(self, path: Path, shard: Shard) -> None:
        with open_regular(path) as file:
            stat = os.fstat(file.fileno())
            if stat.st_size != shard.size or (not shard.remote and stat.st_mtime_ns != shard.stamp):
                raise OSError(errno.ESTALE, f"{shard.name} was changed since this began")
            self._descriptor = os.dup(file.fileno())
        if not shard.remote:  # copies are opened for every image
            read_ahead(self._descriptor, stat.st_size)

    def read(self, offset: int, size: int) -> bytes:
        """Without a place in the file of its own, which threads and forked processes would share."""
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _opened_copy(shard: Shard) -> _Opened:
    for _ in range(_AGAIN - 1):
        try:
            return _Opened(copied(shard), shard)
        except FileNotFoundError:  # removed between the two
            continue
    return _Opened(copied(shard), shard)


def open_shards(shards: Sequence[Shard], split: str | None, data: str, root: str) -> ShardSource:
    """The images of these shards, all or those of one split. UserError where there are none."""
    key = root if shards[0].remote else str(Path(root).resolve())
    wanted = list(shards)
    if split is not None:
        splits = shard_splits(shard.name for shard in shards)
        name = pick_split(split, splits.values(), data)
        wanted = [shard for shard in shards if splits.get(shard.name) == name]
    members = members_of(wanted, key)
    empty = [shard.place for shard, each in zip(wanted, members, strict=True) if not len(each.rows)]
    if empty:
        more = f", and {len(empty) - 1} more are" if len(empty) > 1 else ""
        raise UserError(f"{named(empty[0])}: a tar without images{more}; remove it, or give shards with KEY.jpg")
    labels, note = _classes(wanted, members, root)
    return ShardSource(wanted, members, root=root, key=key, labels=labels, class_note=note)


def shard_splits(names: Iterable[str]) -> dict[str, str]:
    """Shard → split, of those whose name has one in it."""
    found = ((name, _SPLIT.search(name.lower())) for name in names)
    return {name: match.group(1) for name, match in found if match}


def _names(shards: Sequence[Shard], members: Sequence[Members]) -> Names:
    return Names(f"{shard.name}/{name}" for shard, each in zip(shards, members, strict=True) for name in each.names)


def _classes(shards: Sequence[Shard], members: Sequence[Members], root: str) -> tuple[Labels | None, str]:
    """The class of every image; None where some have none, then why, and the remedy."""
    if not any(each.labels for each in members):
        names = [name for each in members for name in each.names]
        return folder_classes(names, depth=1 if are_splits(first_folders(names)) else 0)
    known = _class_names(shards, root)
    texts = (each.labels[number] if number >= 0 else None for each in members for number in each.rows[:, 2].tolist())
    numbered = known is not None
    cells = (int(text) if text == "-1" or (numbered and text and text.isdecimal()) else text for text in texts)
    return classes_of(cells, _names(shards, members), known)


def _class_names(shards: Sequence[Shard], root: str) -> list[str] | None:
    """The names of the classes by number, of a file beside the shards; None where there is none."""
    path = Path(root) / CLASSES
    raw = read_beside(root, CLASSES) if shards[0].remote else read_bytes(path) if path.is_file() else None
    if raw is None:
        return None
    try:
        names = json.loads(raw)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        place = named(root + CLASSES if shards[0].remote else str(path))
        raise UserError(f'{place}: no list of names; write ["cat", "dog"], or remove it')
    return names
