"""Tokens that a frozen encoder gave of images, kept on disk while a run needs them.

One row an image, written in blocks of rows by whoever computes them; a run that was killed goes on with the rows that
are missing. Every block is on the disk before it is noted as done.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from semmae.data.token_file import Array, Column, TokenFile
from semmae.errors import DiskError
from semmae.files import discard, make_folder
from semmae.names import bytes_shown

FILE = "tokens.safetensors"
_DONE = "done"


class TokenStore:
    """Arrays (rows, *shape), in a folder of their own."""

    def __init__(self, folder: Path, rows: int, columns: Sequence[Column], info: Mapping[str, Any]) -> None:
        """`info`: JSON that says what the numbers are of; rows of another one are not taken for these."""
        self.folder = folder
        self._done = Column(_DONE, (), "int32")
        self._file = TokenFile(folder / FILE, rows, [*columns, self._done], info)

    @property
    def rows(self) -> int:
        return self._file.rows

    def is_begun(self) -> bool:
        """Whether the folder holds a store of the same rows, columns and info."""
        return self._file.is_begun()

    def begin(self, reserved: int = 0) -> bool:
        """Go on with what is there of the same rows, columns and info, or begin anew: then True.

        DiskError where there is no room, see `check_room`.
        """
        if self.is_begun():
            return False
        make_folder(self.folder)
        self.check_room("free space there, and give the same command again", reserved)
        self._file.create()
        return True

    def check_room(self, remedy: str, reserved: int = 0) -> None:
        """DiskError, with the remedy, where the file system has not the room, of which some bytes may be reserved.

        Nothing is touched: the folder need not be there.
        """
        place = next(each for each in (self.folder, *self.folder.absolute().parents) if each.is_dir())
        file, freed = self._file.path, 0
        if file.is_file() and not self.is_begun():  # of others, and replaced
            freed = file.stat().st_blocks * 512
        needed, free = self.to_come(), max(shutil.disk_usage(place).free + freed - reserved, 0)
        if needed > free:
            raise DiskError(
                f"{self.folder}: tokens of {self.rows} images need {bytes_shown(needed)}, {bytes_shown(free)} are "
                f"free there; {remedy}"
            )

    def missing(self) -> npt.NDArray[np.int64]:
        """Rows that are not computed, ascending."""
        done = np.concatenate([*self._file.blocks(self._done)]) if self.rows else np.zeros(0, np.int32)
        return np.flatnonzero(done == 0)

    def to_come(self) -> int:
        """Bytes that the missing rows will take of the disk: until they are written the file has holes."""
        return (len(self.missing()) if self.is_begun() else self.rows) * self._file.row_bytes

    def write(self, rows: Array, values: Mapping[str, Array]) -> None:
        """Write rows (n,), ascending: of every column (n, *shape)."""
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for places in np.split(np.arange(len(rows)), breaks):
            self._file.write(int(rows[places[0]]), {name: own[places] for name, own in values.items()})
        self._file.sync()
        for places in np.split(np.arange(len(rows)), breaks):
            self._file.write(int(rows[places[0]]), {_DONE: np.ones(len(places), np.int32)})

    def read(self, name: str) -> Array:
        """A column (rows, *shape), mapped from the file: nothing is in memory until it is looked at."""
        return self._file.mapped(name)

    def remove(self) -> None:
        """Delete the file, and the folder if that was all."""
        discard(self.folder, FILE)


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Arrays (N, …) of tokens in memory, an item an image; it is asked for as (epoch, row), as `EpochSampler` does."""

    def __init__(self, tokens: Mapping[str, Tensor]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(next(iter(self.tokens.values())))

    @property
    def item_bytes(self) -> int:
        """Of all its tokens."""
        return sum(own[0].nbytes for own in self.tokens.values())

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {name: own[key[1]] for name, own in self.tokens.items()}
