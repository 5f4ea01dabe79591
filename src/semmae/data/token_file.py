"""Rows of features on disk while they are computed, and the file that is made of them.

Under way they lie in a safetensors file of its final size, whose rows are filled in place: what a killed run has
computed stays, and memory holds one batch. Parquet and npz are copied from it, block by block, and need the room twice.
"""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from semmae.files import explained, open_regular, parse_json, whole, write_csv
from semmae.names import readable

Array = npt.NDArray[Any]

_SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8"}
_BLOCK = 2**25  # bytes copied together, and those of a row group
_MOST_ROWS = 2**14  # of a row group


@dataclass(frozen=True)
class Column:
    """One of the arrays: its name, the shape of one row, and its type, one of `_SAFETENSORS_TYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class TokenFile:
    """A safetensors file of arrays (rows, *shape), filled row by row; `info` is kept in its header as "semmae"."""

    def __init__(self, path: Path, rows: int, columns: Sequence[Column], info: Mapping[str, Any]) -> None:
        self.path, self.rows, self.columns, self.info = path, rows, list(columns), dict(info)
        self._header, self._starts = self._laid_out()

    @property
    def row_bytes(self) -> int:
        return sum(column.row_bytes for column in self.columns)

    @property
    def size(self) -> int:
        return len(self._header) + self.rows * self.row_bytes

    def create(self) -> None:
        """Begin the file: its header, and as many zeros as there will be numbers, which take no room yet."""
        with explained(self.path), self.path.open("wb") as file:
            file.write(self._header)
            file.truncate(self.size)
            _sync(file)

    def is_begun(self) -> bool:
        """Whether such a file was begun: of the same rows, columns and info."""
        if not self.path.is_file() or self.path.stat().st_size != self.size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self._header)) == self._header

    def write(self, start: int, values: Mapping[str, Array]) -> None:
        """Write rows from `start` on, (n, *shape) of every column that is given."""
        with explained(self.path), self.path.open("r+b") as file:
            for column in [each for each in self.columns if each.name in values]:
                rows = np.ascontiguousarray(values[column.name], dtype=np.dtype(column.dtype).newbyteorder("<"))
                assert rows.shape[1:] == column.shape, f"{column.name}: {rows.shape}, not {column.shape} a row"
                file.seek(self._starts[column.name] + start * column.row_bytes)
                file.write(rows.data)

    def mapped(self, name: str) -> Array:
        """All rows of a column, mapped from the file."""
        (column,) = (each for each in self.columns if each.name == name)
        return np.memmap(self.path, column.dtype, "r", self._starts[name], (self.rows, *column.shape))

    def sync(self) -> None:
        with explained(self.path), self.path.open("r+b") as file:
            _sync(file)

    def blocks(self, column: Column) -> Iterator[Array]:
        """All rows of a column, (n, *shape) at a time."""
        with self.path.open("rb") as file:
            file.seek(self._starts[column.name])
            for count in self._counts(column.row_bytes):
                yield _read_rows(file, column, count)

    def records(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Rows of all columns together, some at a time: number of the first, and the arrays (n, *shape)."""
        start = 0
        with self.path.open("rb") as file:
            for count in self._counts(self.row_bytes):
                values = {}
                for column in self.columns:
                    file.seek(self._starts[column.name] + start * column.row_bytes)
                    values[column.name] = _read_rows(file, column, count)
                yield start, values
                start += count

    def _counts(self, row_bytes: int) -> list[int]:
        step = min(max(_BLOCK // row_bytes, 1), _MOST_ROWS)
        return [min(step, self.rows - at) for at in range(0, self.rows, step)]

    def _laid_out(self) -> tuple[bytes, dict[str, int]]:
        """The header (its length, then JSON, https://github.com/huggingface/safetensors), and where columns start."""
        header: dict[str, Any] = {"__metadata__": {"semmae": json.dumps(self.info, sort_keys=True)}}
        starts, end = {}, 0
        # Larger numbers first, as safetensors itself writes them, so that each array is aligned.
        for column in sorted(self.columns, key=lambda column: -np.dtype(column.dtype).itemsize):
            starts[column.name], end = end, end + self.rows * column.row_bytes
            header[column.name] = {
                "dtype": _SAFETENSORS_TYPES[column.dtype],
                "shape": [self.rows, *column.shape],
                "data_offsets": [starts[column.name], end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        return head, {name: len(head) + start for name, start in starts.items()}


def _read_rows(file: BinaryIO, column: Column, count: int) -> Array:
    return np.frombuffer(file.read(count * column.row_bytes), column.dtype).reshape(count, *column.shape)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def paths_beside(out: Path) -> Path | None:
    """Where the images are listed that a file cannot name itself: safetensors holds numbers alone."""
    return out.with_suffix(".paths.csv") if out.suffix == ".safetensors" else None


def finish(file: TokenFile, names: Sequence[str], labels: Sequence[str] | None, out: Path) -> None:
    """Make `out` of a filled file of its file system, which is used up; names and classes go into it, or beside it."""
    table = {"path": [readable(name) for name in names]}
    if labels is not None:
        table["label"] = [readable(label) for label in labels]
    listed = paths_beside(out)
    if listed is None:
        with whole(out, durable=True) as beside:
            WRITERS[out.suffix](file, table, beside)
        file.path.unlink()
    else:
        write_csv(listed, [tuple(table), *zip(*table.values(), strict=True)])
        os.replace(file.path, out)  # not `whole`: it may be many gigabytes, and lies beside its place already


def _write_npz(file: TokenFile, table: Mapping[str, list[str]], path: Path) -> None:
    """What numpy.savez writes, without the arrays in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, texts in table.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                _write_texts(member, texts)
        about = io.BytesIO()
        np.lib.format.write_array(about, np.array(json.dumps(file.info, sort_keys=True)), allow_pickle=False)
        archive.writestr(zipfile.ZipInfo("semmae.npy"), about.getvalue())
        for column in file.columns:
            with archive.open(zipfile.ZipInfo(f"{column.name}.npy"), "w", force_zip64=True) as member:
                shape = (file.rows, *column.shape)
                header = {"descr": np.dtype(column.dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for block in file.blocks(column):
                    member.write(block.data)


def _write_texts(member: IO[bytes], texts: Sequence[str]) -> None:
    """What numpy.save writes of them: each as long as the longest, four bytes a character; never all in memory."""
    kind = np.dtype(f"<U{max(1, *map(len, texts))}")
    header = {"descr": kind.str, "fortran_order": False, "shape": (len(texts),)}
    np.lib.format.write_array_header_1_0(member, header)
    rows = max(1, _BLOCK // kind.itemsize)
    for start in range(0, len(texts), rows):
        member.write(np.array(texts[start : start + rows], kind).tobytes())


def _write_parquet(file: TokenFile, table: Mapping[str, list[str]], path: Path) -> None:
    """A row group a block; arrays of several dimensions are lists of lists."""
    fields = [pa.field(name, pa.string()) for name in table]
    fields += [pa.field(column.name, _arrow_type(column), nullable=False) for column in file.columns]
    schema = pa.schema(fields, metadata={"semmae": json.dumps(file.info, sort_keys=True)})
    # Floats neither repeat nor shrink: a dictionary of them, or compression, only costs time.
    with pq.ParquetWriter(path, schema, use_dictionary=["label"], compression="none") as writer:
        for start, values in file.records():
            count = len(values[file.columns[0].name])
            arrays = [pa.array(texts[start : start + count]) for texts in table.values()]
            arrays += [_arrow_array(column, values[column.name]) for column in file.columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=count)


def _arrow_type(column: Column) -> pa.DataType:
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    for length in reversed(column.shape):
        kind = pa.list_(kind, length)
    return kind


def _arrow_array(column: Column, values: Array) -> pa.Array:
    found = pa.array(values.ravel())
    for length in reversed(column.shape):
        found = pa.FixedSizeListArray.from_arrays(found, length)
    return found


def read_info(path: Path) -> dict[str, Any] | None:
    """What such a file says of its numbers, of any of the three kinds; None for a file of another origin."""
    try:
        open_regular(path).close()
        if path.suffix == ".parquet":
            text = (pq.read_schema(path).metadata or {})[b"semmae"].decode()
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive, archive.open("semmae.npy") as member:
                text = str(np.lib.format.read_array(member, allow_pickle=False))
        else:
            with safe_open(path, "numpy") as file:
                text = file.metadata()["semmae"]
        return parse_json(path, text)
    except Exception:  # bytes of another origin fail in as many ways as there are bytes
        return None


WRITERS: dict[str, Callable[[TokenFile, Mapping[str, list[str]], Path], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
}
