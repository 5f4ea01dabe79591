"""Images in tables: Parquet files, hub data sets and `Dataset` objects of Hugging Face `datasets`; bytes stay encoded.

Column `image` holds the encoded bytes or a struct {bytes, path}; where bytes lack, the file at path, seen from the
table's folder, is read. Column `label`, if there is one, holds the class: a text or a whole number.
"""

import errno
import glob
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semmae.data.compact import Labels, Names
from semmae.data.splits import TRAIN, VAL, pick_split
from semmae.errors import UserError, near, near_only, reason
from semmae.files import open_regular, read_bytes
from semmae.names import shown
from semmae.progress import quiet

if TYPE_CHECKING:
    from datasets import Dataset

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of a drive, C:/, there is one letter
_BLOCK = 4096  # rows looked at together when sizes are measured
_SPLIT = re.compile(rf"({'|'.join(sorted(TRAIN + VAL, key=len, reverse=True))})(?![a-z])")


class TableSource:
    """Rows of a `datasets.Dataset` (memory-mapped, so that workers share it)."""

    class_remedy = "give each row its class in a column `label`"
    shards = None

    def __init__(
        self,
        rows: "Dataset",
        *,
        root: Path,
        key: str,
        names: Names,
        modified: npt.NDArray[np.int64],
        beside: Path | None,
        class_note: str = "",
    ) -> None:
        assert len(rows) == len(names) == len(modified)
        self.root, self.key, self.names, self.modified = root, key, names, modified
        self.labels, self.class_note = _labels(rows, names)
        self.class_note = class_note or self.class_note
        # Paths of files are seen from here, and from a table's folder below. None: those of a table of the hub are of
        # the machine that it was made on.
        self._beside = beside
        self._rows = rows.select_columns(["image"]).with_format("arrow")
        lengths = (size for block in self._rows.iter(_BLOCK) for size in _lengths(block["image"]))
        self.sizes = np.fromiter(lengths, np.int64, len(rows))
        if beside is not None:
            self._measure_files(beside)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        """The encoded bytes of row i, empty where the table has none; OSError where they should be in a file."""
        cell = self._rows[i]["image"][0].as_py()
        if not isinstance(cell, dict):
            return cell or b""
        path = cell.get("path")
        if cell["bytes"] or not path:
            return cell["bytes"] or b""
        missing = f"no bytes in the table, and no file {shown(path)} beside it: put it there"
        if self._beside is None:
            raise OSError(errno.ENOENT, missing)
        try:
            return read_bytes(self._file(self._beside, i, path))
        except (OSError, ValueError) as error:
            raise OSError(errno.ENOENT, missing) from error

    def _measure_files(self, beside: Path) -> None:
        """Sizes and times of the files that rows without bytes name."""
        for i in np.flatnonzero(self.sizes == 0).tolist():
            cell = self._rows[i]["image"][0].as_py()
            if isinstance(cell, dict) and cell.get("path"):
                try:
                    stat = os.stat(self._file(beside, i, cell["path"]))
                except (OSError, ValueError):
                    continue
                self.sizes[i], self.modified[i] = stat.st_size, stat.st_mtime_ns

    def _file(self, beside: Path, i: int, path: str) -> Path:
        return (beside / self.names[i].rpartition("#")[0]).parent / path


def open_parquet(root: Path, files: Sequence[str], split: str | None, data: str) -> TableSource:
    """The rows of Parquet files (paths below root), all or those of the files that belong to a split."""
    splits = parquet_splits(files)
    if split is not None:
        wanted = pick_split(split, splits.values(), data)
        files = [file for file in files if splits.get(file) == wanted]
    paths = [root / file for file in files]
    schemas, counts = [], []
    for path in paths:
        schema, count = _read_schema(path)
        _check_columns(str(path), schema)
        schemas.append(schema)
        counts.append(count)
    bare = [path for path, schema in zip(paths, schemas, strict=True) if "label" not in schema.names]
    columns = ["image"] if bare else ["image", "label"]
    note = _no_label(name for schema in schemas for name in schema.names)
    if 0 < len(bare) < len(paths):
        note = f"{bare[0]} has no column `label`, as others have; add it"
    names = Names(f"{file}#{row}" for file, count in zip(files, counts, strict=True) for row in range(count))
    modified = np.repeat(np.array([path.stat().st_mtime_ns for path in paths], dtype=np.int64), counts)
    if not names:
        raise UserError(f"{data}: no rows in {len(files)} Parquet files; give a file with images")
    datasets = _datasets()
    try:
        # The library takes a name for a pattern.
        rows = datasets.Dataset.from_parquet([glob.escape(str(path)) for path in paths], columns=columns)
    except Exception as error:  # what a damaged file makes the library raise has no common type
        fault = reason(error.__cause__ or error, 200)
        raise UserError(f"{data}: Parquet not readable ({fault}); repair or remove the file") from error
    return TableSource(
        rows,
        root=root,
        key=str(root.resolve()),
        names=names,
        modified=modified,
        beside=root,
        class_note=note,
    )


def load_hub(data: str) -> Mapping[str, "Dataset"]:
    """A data set of the hub, "hf:NAME": its splits in their order."""
    if not data.removeprefix("hf:").strip():
        raise UserError(f"{shown(data)}: no name; give a data set of the hub as hf:NAME, or a folder")
    datasets = _datasets()
    try:
        with quiet("huggingface_hub", "datasets"):
            loaded: Mapping[str, Dataset] = datasets.load_dataset(data.removeprefix("hf:"))
    except Exception as error:  # hub, network and script errors have no common type
        fault = f"cannot be loaded from the hub: {reason(error, 300)}"
        raise UserError(f"{shown(data)}: {fault}; check the name and the network") from error
    return loaded


def is_address(data: str) -> bool:
    """Whether this is read over a network, `https://…` or `s3://…`, not from a disk."""
    return _ADDRESS.match(data) is not None


def load_remote(address: str) -> Mapping[str, "Dataset"]:
    """The table of a Parquet file at an address that fsspec reads, by the file's name; `datasets` keeps a copy."""
    name = address.rpartition("/")[2]
    if not name.endswith(".parquet"):
        of_hub = address.startswith("hf:")
        remedy = "give the data set as hf:NAME" if of_hub else "download the images and give their folder"
        fault = "at an address a Parquet file, or tar shards (SHARD.tar, FOLDER/), alone are read"
        raise UserError(f"{shown(address)}: {fault}; {remedy}")
    datasets = _datasets()
    try:
        table = datasets.load_dataset("parquet", data_files=[address], split="train")
    except Exception as error:  # file systems, networks and the library have no common type
        remedy = "check the address and the network"
        if isinstance(error, ImportError):
            remedy = 'pip install "semmae[remote]", for s3:// and gs:// also s3fs and gcsfs'
        raise UserError(f"{shown(address)}: cannot be loaded: {reason(error, 300)}; {remedy}") from error
    return {name: table}


def open_tables(
    tables: Mapping[str, "Dataset"], split: str | None, data: str, *, key: str, beside: Path | None
) -> TableSource:
    """The rows of tables by name of split, all of them in their order or those of one split."""
    if split is not None:
        wanted = pick_split(split, tables, data)
        tables = {wanted: tables[wanted]}
    for table in tables.values():
        _check_columns(data, table.features.arrow_schema)
    names = Names(f"{name}#{row}" for name, table in tables.items() for row in range(len(table)))
    if not names:
        raise UserError(f"{data}: no rows; give a data set with images")
    columns = ["image", "label"] if all("label" in table.column_names for table in tables.values()) else ["image"]
    note = _no_label(name for table in tables.values() for name in table.column_names)
    try:
        rows = _datasets().concatenate_datasets([table.select_columns(columns) for table in tables.values()])
    except Exception as error:  # of columns of different types
        raise UserError(f"{data}: its splits do not fit together ({reason(error)}); give one of them") from error
    unknown = np.zeros(len(names), dtype=np.int64)
    return TableSource(
        rows, root=Path(data), key=key, names=names, modified=unknown, beside=beside, class_note=note
    )  # fmt: skip


def parquet_splits(files: Sequence[str]) -> dict[str, str]:
    """File → split, where name or first folder begin with one: `train-00000.parquet`, `val/0.parquet`."""
    found = {}
    for file in files:
        parts = file.lower().split("/")
        match = _SPLIT.match(parts[-1]) or (_SPLIT.match(parts[0]) if len(parts) > 1 else None)
        if match:
            found[file] = match.group(1)
    return found


def _datasets() -> Any:
    """The library, imported only when a table is read (it takes a second), its progress bars off."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _read_schema(path: Path) -> tuple[pa.Schema, int]:
    """The columns, and the number of rows."""
    try:
        with open_regular(path) as file:
            table = pq.ParquetFile(file)
            _check_features(table.schema_arrow)
            return table.schema_arrow, table.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({reason(error)}); repair or remove it") from error


def _check_features(schema: pa.Schema) -> None:
    """ArrowInvalid where the entry by which `datasets` keeps its types of columns does not fit the columns."""
    if b"huggingface" not in (schema.metadata or {}):
        return
    try:
        _datasets().Features.from_arrow_schema(schema)
    except Exception as error:  # as many types as there are ways to damage JSON
        raise pa.ArrowInvalid(f"its entry huggingface is damaged: {reason(error)}") from error


def _check_columns(data: str, schema: pa.Schema) -> None:
    if "image" not in schema.names:
        raise UserError(f'{data}: no column "image"{near("image", schema.names)}; rename the one with the image bytes')
    kind = schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
        # Paths alone, without a type for the bytes that none has.
        kind = pa.binary() if pa.types.is_null(inner) and kind.get_field_index("path") >= 0 else inner
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raise UserError(f'{data}: column "image" holds paths, not bytes; give the folder of these files in --data')
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f'{data}: column "image" holds {shown(str(kind))}, not bytes; store the encoded image files')


def _no_label(columns: Iterable[str]) -> str:
    """Why a table has no classes, where a column may hold them under another name, such as `fine_label`."""
    names = dict.fromkeys(columns)
    hint = "" if "label" in names else near_only("label", names)
    return hint and f'no column "label"{hint} Rename it'


def _labels(rows: "Dataset", names: Names) -> tuple[Labels | None, str]:
    """The class of every row, and, where there are none though there is a column `label`, why, and the remedy."""
    if "label" not in rows.column_names:
        return None, ""
    column = rows.select_columns(["label"]).with_format("arrow")
    cells = (value for block in column.iter(_BLOCK) for value in block["label"].to_pylist())
    return classes_of(cells, names, getattr(rows.features["label"], "names", None))


def classes_of(cells: Iterable[object], names: Names, known: Sequence[str] | None) -> tuple[Labels | None, str]:
    """The class that the cell of each row stands for, by the names `known` where cells hold their numbers.

    None where some row has none, then why, and the remedy.
    """
    missing: list[int] = []

    def classes() -> Iterator[str]:
        for row, value in enumerate(cells):
            try:
                name = _class_of(value, known)
            except ValueError as error:
                raise ValueError(f"label {shown(value)} of {names[row]} {error}") from error
            if name is None:
                missing.append(row)
            yield name or ""

    try:
        labels = Labels(classes())
    except ValueError as error:
        return None, str(error)
    if len(missing) == len(names):
        return None, "no row has a label; fill the column `label`"
    if missing:
        count = f"{len(missing)} of {len(names)} rows have no label"
        return None, f"{count}, such as {names[missing[0]]}; label or remove them"
    return labels, ""


def _class_of(value: object, known: Sequence[str] | None) -> str | None:
    """The class that a cell stands for; None for null, NaN, no text, or -1 as on the hub; ValueError for others."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():  # of whole numbers pandas makes such as soon as one is missing
            raise ValueError("is no whole number; a class is a text or a whole number")
        value = int(value)
    if value is None or value == "" or value == -1:
        return None
    if not isinstance(value, (int, str)):
        raise ValueError("is neither a text nor a whole number; write one class a row")
    if known is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(known):
        raise ValueError(f"is none of the {len(known)} classes, which are numbered from 0; mend it")
    return str(known[value])


def _lengths(cells: pa.ChunkedArray) -> list[int]:
    """Bytes of each encoded image, 0 for a missing one."""
    if pa.types.is_struct(cells.type):
        cells = pc.struct_field(cells, "bytes")
    if pa.types.is_null(cells.type):
        return [0] * len(cells)
    return [length or 0 for length in pc.binary_length(cells).to_pylist()]
