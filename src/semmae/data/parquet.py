"""Images in tables: Parquet files and hub data sets, through Hugging Face `datasets`, bytes never decoded.

Column `image` holds the encoded bytes or a struct {bytes, path}; column `label`, if there is one, the class.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semmae.data.compact import Labels, Names
from semmae.data.splits import TRAIN, VAL, pick_split
from semmae.errors import UserError, near

if TYPE_CHECKING:
    from datasets import Dataset

_BLOCK = 4096  # rows looked at together when sizes are measured
_SPLIT = re.compile(rf"({'|'.join(sorted(TRAIN + VAL, key=len, reverse=True))})(?![a-z])")


class TableSource:
    """Rows of a `datasets.Dataset` (memory-mapped, so that workers share it)."""

    def __init__(
        self, rows: "Dataset", *, root: Path, key: str, names: Names, modified: npt.NDArray[np.int64], data: str
    ) -> None:
        _check_columns(data, rows.features.arrow_schema)
        assert len(rows) == len(names) == len(modified)
        self.root, self.key, self.names, self.modified = root, key, names, modified
        self.labels = _labels(rows)
        self._rows = rows.select_columns(["image"]).with_format("arrow")
        lengths = (size for block in self._rows.iter(_BLOCK) for size in _lengths(block["image"]))
        self.sizes = np.fromiter(lengths, np.int64, len(rows))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        """The encoded bytes of row i, empty where the table has none."""
        cell = self._rows[i]["image"][0].as_py()
        value = cell["bytes"] if isinstance(cell, dict) else cell
        return value or b""


def open_parquet(root: Path, files: Sequence[str], split: str | None, data: str) -> TableSource:
    """The rows of Parquet files (paths below root), all or those of the files that belong to a split."""
    splits = parquet_splits(files)
    if split is not None:
        wanted = pick_split(split, splits.values(), data)
        files = [file for file in files if splits.get(file) == wanted]
    paths = [root / file for file in files]
    schemas = [_read_schema(path) for path in paths]
    for path, schema in zip(paths, schemas, strict=True):
        _check_columns(str(path), schema)
    columns = ["image"] + (["label"] if all("label" in schema.names for schema in schemas) else [])
    counts = [pq.read_metadata(path).num_rows for path in paths]
    names = Names(f"{file}#{row}" for file, count in zip(files, counts, strict=True) for row in range(count))
    modified = np.repeat(np.array([path.stat().st_mtime_ns for path in paths], dtype=np.int64), counts)
    if not names:
        raise UserError(f"{data}: no rows in {len(files)} Parquet files; give a file with images")
    datasets = _datasets()
    try:
        rows = datasets.Dataset.from_parquet([str(path) for path in paths], columns=columns)
    except datasets.exceptions.DatasetGenerationError as error:
        raise UserError(f"{data}: Parquet not readable ({error.__cause__}); repair or remove the file") from error
    return TableSource(rows, root=root, key=str(root.resolve()), names=names, modified=modified, data=data)


def open_hub(data: str, split: str | None) -> TableSource:
    """A data set of the hub, "hf:NAME", all its splits in their order or one."""
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(data.removeprefix("hf:"))
    except Exception as error:  # hub, network and script errors have no common type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{data}: cannot be loaded from the hub: {reason}; check the name and the network") from error
    if split is not None:
        wanted = pick_split(split, loaded, data)
        loaded = {wanted: loaded[wanted]}
    for part in loaded.values():
        _check_columns(data, part.features.arrow_schema)
    names = Names(f"{name}#{row}" for name, part in loaded.items() for row in range(len(part)))
    rows, unknown = datasets.concatenate_datasets(list(loaded.values())), np.zeros(len(names), dtype=np.int64)
    return TableSource(rows, root=Path(data), key=data, names=names, modified=unknown, data=data)


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


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); repair or remove it") from error


def _check_columns(data: str, schema: pa.Schema) -> None:
    if "image" not in schema.names:
        raise UserError(f'{data}: no column "image"{near("image", schema.names)}; rename the one with the image bytes')
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f'{data}: column "image" holds {kind}, not bytes; store the encoded image files')


def _labels(rows: "Dataset") -> Labels | None:
    """Class names; None without a column `label` or when some rows have none (null, or -1 as on the hub)."""
    if "label" not in rows.column_names:
        return None
    column = rows.select_columns(["label"]).with_format("arrow")

    def values() -> Iterator[Any]:
        for block in column.iter(_BLOCK):
            yield from block["label"].to_pylist()

    if any(value is None or value == -1 for value in values()):
        return None
    known = getattr(rows.features["label"], "names", None)
    return Labels(str(value) if known is None else known[value] for value in values())


def _lengths(cells: pa.ChunkedArray) -> list[int]:
    """Bytes of each encoded image, 0 for a missing one."""
    if pa.types.is_struct(cells.type):
        cells = pc.struct_field(cells, "bytes")
    return [length or 0 for length in pc.binary_length(cells).to_pylist()]
