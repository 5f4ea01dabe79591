"""Lists of millions of texts that are no Python object each: what a data set's names and classes are kept in.

A forked process shares the memory of its parent until one of them writes to it, and Python writes to every object that
it looks at, to count references: each process that loads images would soon have its own copy of a list of names.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from semmae.names import on_disk

Rows = Sequence[int] | npt.NDArray[np.int64]


class _Texts(Sequence[str]):
    """What both kinds have in common."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):  # a text is a sequence of letters
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"{type(self).__name__}([{shown}], {len(self)} in all)"


class Names(_Texts):
    """Texts that hardly repeat, read-only: one buffer of bytes and where each begins. Equal to a list of the same.

    Kept as the bytes that the file system knows them by, also of a name that is no UTF-8, also where the locale is C.
    """

    __slots__ = ("_buffer", "_starts")
    _buffer: bytes
    _starts: npt.NDArray[np.int64]  # (N + 1,): the last is where the buffer ends

    def __init__(self, names: Iterable[str] = ()) -> None:
        buffer, starts = bytearray(), array("q", [0])
        for name in names:
            buffer += on_disk(name)
            starts.append(len(buffer))
        self._buffer, self._starts = bytes(buffer), np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Names": ...
    def __getitem__(self, row: int | slice) -> "str | Names":
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        place = range(len(self))[row]  # counts from the end, and refuses what is beyond it
        return os.fsdecode(self._buffer[self._starts[place] : self._starts[place + 1]])

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._buffer == other._buffer and np.array_equal(self._starts, other._starts)
        return super().__eq__(other)

    @classmethod
    def _of(cls, buffer: bytes, starts: npt.NDArray[np.int64]) -> "Names":
        names = cls()
        names._buffer, names._starts = buffer, starts
        return names

    @classmethod
    def joined(cls, lists: Iterable["Names"]) -> "Names":
        """The names of several lists, one behind the other."""
        buffer, starts = bytearray(), [np.zeros(1, dtype=np.int64)]
        for names in lists:
            starts.append(names._starts[1:] + len(buffer))
            buffer += names._buffer
        return cls._of(bytes(buffer), np.concatenate(starts))

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """What they are kept as, for a file: the bytes of all names, and where each begins and the last ends."""
        return np.frombuffer(self._buffer, dtype=np.uint8), self._starts

    @classmethod
    def of_arrays(cls, buffer: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> "Names":
        """The names of these `arrays`; ValueError where they are none."""
        if buffer.dtype != np.uint8 or starts.dtype != np.int64 or starts.ndim != 1 or not len(starts):
            raise ValueError("no names")
        if starts[0] != 0 or starts[-1] != len(buffer) or (starts[1:] < starts[:-1]).any():
            raise ValueError("names that do not fit their places")
        return cls._of(buffer.tobytes(), starts)

    def encoded(self) -> Iterator[bytes]:
        # Arrays are gone through number by number: a list of them would be millions of objects again.
        return (self._buffer[start:end] for start, end in zip(self._starts, self._starts[1:], strict=False))

    def take(self, rows: Rows) -> "Names":
        chosen = np.asarray(rows, dtype=np.int64)
        starts, ends = self._starts[chosen], self._starts[chosen + 1]
        buffer = bytearray()
        for start, end in zip(starts, ends, strict=True):
            buffer += self._buffer[start:end]
        return Names._of(bytes(buffer), np.concatenate([[0], np.cumsum(ends - starts)]))


class Labels(_Texts):
    """The class of every row, read-only: a number each, and the names once. Equal to a list of the same."""

    __slots__ = ("_codes", "classes")
    _codes: npt.NDArray[np.int32]  # (N,)
    classes: tuple[str, ...]  # what the numbers stand for; some may be of no row

    def __init__(self, labels: Iterable[str] = ()) -> None:
        number: dict[str, int] = {}
        self._codes = np.array(array("i", (number.setdefault(label, len(number)) for label in labels)), dtype=np.int32)
        self.classes = tuple(number)

    @property
    def codes(self) -> npt.NDArray[np.int32]:
        """The number of every row's class, (N,)."""
        return self._codes

    @classmethod
    def of_codes(cls, codes: npt.NDArray[np.int32], classes: Iterable[str]) -> "Labels":
        """Of such numbers and what they stand for; ValueError where they do not fit."""
        labels = cls()
        labels._codes, labels.classes = codes, tuple(classes)
        if codes.dtype != np.int32 or (len(codes) and not 0 <= codes.min() <= codes.max() < len(labels.classes)):
            raise ValueError("numbers of no class")
        return labels

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Labels": ...
    def __getitem__(self, row: int | slice) -> "str | Labels":
        return self.take(range(*row.indices(len(self)))) if isinstance(row, slice) else self.classes[self._codes[row]]

    def __iter__(self) -> Iterator[str]:
        return (self.classes[code] for code in self._codes)

    def take(self, rows: Rows) -> "Labels":
        taken = Labels()
        taken._codes, taken.classes = self._codes[np.asarray(rows, dtype=np.int64)], self.classes
        return taken
