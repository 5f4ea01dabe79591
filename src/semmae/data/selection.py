"""What every source of images has, and some rows of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from semmae.data.compact import Labels, Names, Rows
from semmae.data.shard_places import Shard, copied_soon


class Source(Protocol):
    """Images in a fixed order: encoded, or of an object as uint8 (3, H, W). The four lists are of the same length."""

    root: Path
    key: str  # what the cache of the manifest goes by: the same data, the same key; empty where it cannot be known
    names: Names  # stable and unique: path below the root, "file.parquet#row", or the row of an object
    labels: Labels | None  # class of each image; None when there are no classes
    sizes: npt.NDArray[np.int64]  # bytes of each encoded image; of what an object gives, a hash of the pixels
    modified: npt.NDArray[np.int64]  # time of the last change in ns, 0 when unknown
    class_note: str  # why there are no classes, or a single one, and the remedy; empty where nothing is odd
    class_remedy: str  # how images of this kind are given classes, where there is no such note

    @property
    def shards(self) -> "InShards | None":
        """None where the images lie in no tar files."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | Tensor: ...


class InShards(NamedTuple):
    """Which tar file each image lies in."""

    numbers: npt.NDArray[np.int64]  # (N,)
    sizes: npt.NDArray[np.int64]  # (N,): bytes of all images in that file, whichever of them are asked for
    places: Sequence[Shard]  # these files

    def take(self, rows: Rows) -> "InShards":
        """Of these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return InShards(self.numbers[chosen], self.sizes[chosen], self.places)

    @property
    def are_remote(self) -> bool:
        """Whether any of these files lies at an address."""
        return any(shard.remote for shard in self.places)

    def copy_soon(self, row: int) -> None:
        """Have the file of a row copied in the background, where it lies at an address."""
        shard = self.places[int(self.numbers[row])]
        if shard.remote:
            copied_soon(shard)


class Selection:
    """Some rows of a source, in the order given."""

    def __init__(self, source: Source, rows: Rows) -> None:
        self.within, self._rows = source, np.asarray(rows, dtype=np.int64)
        self.root, self.key = source.root, source.key
        self.class_note, self.class_remedy = source.class_note, source.class_remedy
        self.names = source.names.take(self._rows)
        self.labels = None if source.labels is None else source.labels.take(self._rows)
        self.sizes, self.modified = source.sizes[self._rows], source.modified[self._rows]
        self.shards = None if source.shards is None else source.shards.take(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes | Tensor:
        return self.within.read(int(self._rows[i]))
