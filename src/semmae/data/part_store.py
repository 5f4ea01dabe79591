"""Part labels on disk: `parts.npy` (uint8, images × grid × grid, memory-mapped) and `parts.json`.

Beside them, where the labels were computed, `attention.npy` (uint8, images × side × side), see `data/attention.py`.
Row i belongs to line i of the image manifest, whose digest is kept: with other images, the store refuses.
255 = not yet computed, so that labelling resumes where it stopped and several processes may write disjoint rows.

What a killed process leaves behind is sound: `parts.npy` and `attention.npy` appear when all of them is 255,
`parts.json` after them, and a row that was written in part still holds a 255, for no label and no rank is 255. Only
a store marked complete is read.

`parts.json` of a complete store holds the digest of each array, compared when it is opened: a damaged array would be
learned from without a word. That reads the arrays once, 3 s for ImageNet's 1.25 GB on two busy cores.
"""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from semmae.errors import UserError
from semmae.files import Fields, make_folder, open_regular, read_json, reserve, whole, write_json
from semmae.names import short, shown
from semmae.shell import command

UNKNOWN = 255
MOST_GRID = 4096  # cells a side: a store beyond this was not made by us
_BLOCK = 65536  # rows looked at together
# What labels depend on, and what a store begun earlier must agree in, with the types they have in the file.
_FIELDS = {
    "images": int,
    "grid": int,
    "label_names": list,
    "teacher_digest": str,
    "learner_digest": str,  # empty: imported labels have no learner
    "manifest_digest": str,
    "attention_grid": int,  # 0: imported labels may have no attention
}

Rows = np.memmap[Any, np.dtype[np.uint8]]


class PartStore:
    """Made by `create` (to write, or to continue writing) or `open` (to read a complete one)."""

    def __init__(self, path: Path, meta: dict[str, Any], *, writable: bool) -> None:
        self.path, self._meta, self._writable = Path(path), meta, writable
        self.images: int = meta["images"]
        self.grid: int = meta["grid"]
        self.label_names: list[str] = meta["label_names"]
        self.teacher_digest: str = meta["teacher_digest"]
        self.learner_digest: str = meta["learner_digest"]
        self.manifest_digest: str = meta["manifest_digest"]
        self.attention_grid: int = meta["attention_grid"]
        self.extra: dict[str, Any] = meta["extra"]
        mode = "r+" if writable else "r"
        self.labels = _map(self.path, "parts.npy", (self.images, self.grid), mode)
        self._attention = None
        if self.attention_grid:
            self._attention = _map(self.path, "attention.npy", (self.images, self.attention_grid), mode)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        images: int,
        grid: int,
        label_names: list[str],
        teacher_digest: str,
        manifest_digest: str,
        learner_digest: str = "",
        attention_grid: int = 0,
        extra: dict[str, Any] | None = None,
    ) -> "PartStore":
        """A store with no row computed; one begun with the same arguments is taken up again, rows kept.

        One begun without attention, its cells a side, gets it: all rows lack it then, and keep their labels.
        """
        if not 1 <= len(label_names) <= UNKNOWN:
            raise ValueError(f"{len(label_names)} labels do not fit one byte; 1 to {UNKNOWN} do")
        path = Path(path)
        values = (images, grid, list(label_names), teacher_digest, learner_digest, manifest_digest, attention_grid)
        meta = dict(zip(_FIELDS, values, strict=True)) | {"extra": extra or {}, "complete": False, "arrays": {}}
        if (path / "parts.json").exists():
            begun = read_meta(path)
            lacks_attention = attention_grid > 0 and begun["attention_grid"] == 0
            changed = [
                f"{name} {_shown(begun[name])}, not {_shown(meta[name])}"
                for name in _FIELDS
                if begun[name] != meta[name] and not (lacks_attention and name == "attention_grid")
            ]
            if changed:
                raise UserError(
                    f"{path}: holds part labels with {'; '.join(changed)}; restore what has changed, write to another "
                    "folder, or remove parts.json and parts.npy there"
                )
            cls(path, begun, writable=False)._check()
            if lacks_attention:
                begun = begun | {"attention_grid": attention_grid, "complete": False, "arrays": {}}
                _new_rows(path, "attention.npy", (images, attention_grid))
                _write_meta(path, begun)
            return cls(path, begun, writable=True)
        make_folder(path)
        _new_rows(path, "parts.npy", (images, grid))
        if attention_grid:
            _new_rows(path, "attention.npy", (images, attention_grid))
        _write_meta(path, meta)  # last: a store without it does not exist
        return cls(path, meta, writable=True)

    @classmethod
    def open(cls, path: Path, *, manifest_digest: str | None = None) -> "PartStore":
        """A complete store, read-only, made for these images; its arrays are read once, see above.

        `path` is the folder of a run of `semmae parts`, or of one of `pretrain` that has made parts within it.
        """
        path = Path(path)
        if not (path / "parts.json").exists() and (path / "parts" / "parts.json").exists():
            path = path / "parts"
        if not (path / "parts.json").exists():
            raise UserError(f"{path}: no part labels (parts.json); make them with `semmae parts`")
        store = cls(path, read_meta(path), writable=False)
        if not store.complete:
            left = len(store.missing())
            raise UserError(f"{path}: {left} of {store.images} images are not labelled yet; resume `semmae parts`")
        if manifest_digest is not None and manifest_digest != store.manifest_digest:
            raise UserError(
                f"{path}: part labels are for the images {short(store.manifest_digest)}, not for "
                f"{short(manifest_digest)}; use the data they were made with, or label this with `semmae parts`"
            )
        store._check()
        return store

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def has_background(self) -> bool:
        """Whether label 0 is the background, as of every learner of ours unless it was told to learn none."""
        return self.label_names[0] == "background"

    @property
    def digests(self) -> dict[str, str]:
        """What the labels were made from: teacher, learner, images."""
        return {name: self._meta[name] for name in _FIELDS if name.endswith("_digest")}

    @property
    def labels_digest(self) -> str:
        """Of all labels of a complete store: SHA-256, in hexadecimal."""
        return str(self._meta["arrays"]["parts.npy"])

    @property
    def complete(self) -> bool:
        return bool(self._meta["complete"])

    def write(self, rows: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> None:
        """Store labels (n, grid, grid) of the rows (n,); integers below `num_labels`."""
        values = _array(labels)
        if values.size and not 0 <= values.min() <= values.max() < self.num_labels:
            raise ValueError(f"labels {values.min()} to {values.max()}, the store knows 0 to {self.num_labels - 1}")
        self.labels[_array(rows)] = values

    @property
    def attention(self) -> Rows:
        """Attention (images, a, a), ranks from 0 to `MOST_ATTENDED`; UserError where the store holds none."""
        if self._attention is None:
            remedy = f"add it with `semmae parts --out {self.path} --labels-only`"
            if "tokens" in self.extra:
                remedy = "its token files held none; label these images with `semmae parts --teacher`"
            raise UserError(f"{self.path}: holds no attention beside its part labels; {remedy}")
        return self._attention

    def write_attention(self, rows: np.ndarray | Tensor, attention: np.ndarray | Tensor) -> None:
        """Store attention (n, a, a) of the rows (n,); ranks from 0 to `MOST_ATTENDED`."""
        self.attention[_array(rows)] = _array(attention)

    def missing(self) -> np.ndarray:
        """int64 rows whose labels or attention are not computed, or only in part."""
        blocks = [slice(at, at + _BLOCK) for at in range(0, self.images, _BLOCK)]
        unknown = (np.any([_unknown(own[rows]) for own in self._arrays.values()], axis=0) for rows in blocks)
        found = [np.flatnonzero(rows) + number * _BLOCK for number, rows in enumerate(unknown)]
        return np.concatenate([*found, np.empty(0, np.int64)]).astype(np.int64)

    def unlabelled(self, rows: slice | np.ndarray) -> np.ndarray:
        """bool: which of these rows have no labels, or only in part."""
        return _unknown(self.labels[rows])

    def finish(self) -> None:
        """Mark the store complete (one process, when all have written), with the digests of its arrays."""
        left = len(self.missing())
        if left:
            raise ValueError(f"{left} of {self.images} rows are not computed")
        for rows in self._arrays.values():
            rows.flush()
        digests = {name: _digest(rows, self._highest(name)) for name, rows in self._arrays.items()}
        self._meta = self._meta | {"complete": True, "arrays": digests}
        _write_meta(self.path, self._meta)

    @property
    def _arrays(self) -> dict[str, Rows]:
        return {"parts.npy": self.labels} | ({} if self._attention is None else {"attention.npy": self._attention})

    def _highest(self, name: str) -> int:
        """The highest value that an array may hold: of labels that of the last name, of attention the highest rank."""
        return self.num_labels - 1 if name == "parts.npy" else UNKNOWN - 1

    def _check(self) -> None:
        """Compare the arrays with what `parts.json` holds of them: all values, and of a complete store the digests."""
        for name, rows in self._arrays.items():
            try:
                found = _digest(rows, self._highest(name), unknown=not self.complete)
            except ValueError as error:
                raise UserError(f"{self.path}: {name} {error}; {_anew(self.path)}") from error
            wanted = self._meta["arrays"].get(name, "none")
            if self.complete and found != wanted:
                raise UserError(
                    f"{self.path}: {name} is not the array that was labelled (digest {short(found)}, in parts.json "
                    f"{short(wanted)}); restore it, or {_anew(self.path)}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self._meta, "writable": self._writable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Mapped anew: pickled as it is, the array would be copied into every worker.
        self.__init__(state["path"], state["meta"], writable=state["writable"])  # type: ignore[misc]


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values)


def _map(path: Path, name: str, size: tuple[int, int], mode: str) -> Rows:
    """The array of a file, `size` its (images, cells a side)."""
    shape = (*size, size[1])
    try:
        start, found = _header(path / name)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}); {_anew(path)}") from error
    if found != f"uint8 {shape}":
        raise UserError(f"{path}: {name} holds {found}, parts.json says uint8 {shape}; {_anew(path)}")
    return np.memmap(path / name, np.uint8, mode, start, shape)  # type: ignore[call-overload,no-any-return]


def _header(path: Path) -> tuple[int, str]:
    """Where the numbers of an array begin in its file, and what they are in words; OSError or ValueError for others.

    Not by `np.load`, which unpacks archives too, and not by `open_memmap`, which fills up a file that was cut.
    """
    with open_regular(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"an array in form {version}, ours have (1, 0)")
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # also those of Python's own parser, which reads the header
            raise ValueError(f"its header is damaged: {type(error).__name__}") from error
        start, length = file.tell(), os.fstat(file.fileno()).st_size
    wanted = start + math.prod(shape) * dtype.itemsize
    if length != wanted:
        raise ValueError(f"{length} bytes, {shown(wanted)} by its header")
    return start, f"{dtype} {shape}{' by columns' if by_columns and len(shape) > 1 else ''}"


def _digest(rows: Rows, highest: int, *, unknown: bool = False) -> str:
    """SHA-256, in hexadecimal, of the SHA-256 of each block of rows; the blocks are read by several threads.

    `rows`: uint8 (images, side, side). ValueError where a value above `highest` occurs, but with `unknown` `UNKNOWN`.
    """

    def of_block(start: int) -> bytes:
        block: npt.NDArray[np.uint8] = rows[start : start + _BLOCK]
        if block.max(initial=0) > highest:
            wrong = block[(block > highest) & ((block != UNKNOWN) | (not unknown))]
            if len(wrong):
                raise ValueError(f"holds {wrong.max()}, where values are 0 to {highest}")
        return hashlib.sha256(block.data).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(of_block, range(0, len(rows), _BLOCK)))).hexdigest()


def _anew(path: Path) -> str:
    """The remedy for a store that is of no use."""
    return f"remove parts.json there and label anew with `{command('parts', out=path, labels_only=True)}`"


def _shown(value: Any) -> str:
    """A fact as a message shows it: of a digest its beginning."""
    return short(value) if isinstance(value, str) else shown(value)


def _new_rows(path: Path, name: str, size: tuple[int, int]) -> None:
    """A file in which no row is computed, `size` its (images, cells a side)."""
    with whole(path / name) as beside:
        rows = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=(*size, size[1]))
        reserve(beside)
        rows[:] = UNKNOWN
        rows.flush()  # before the renaming: after a power failure no row may look written that is not


def _unknown(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = (np.asarray(rows) == UNKNOWN).any((1, 2))
    return found


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a store's `parts.json`, every value checked."""
    file = path / "parts.json"
    content = read_json(file)
    fields = Fields(file, content)
    kinds = {**_FIELDS, "extra": dict, "complete": bool, "arrays": dict}
    absent = [name for name in kinds if name not in content]
    if absent:
        raise UserError(f"{file}: lacks {', '.join(absent)}; {_anew(path)}")
    meta = {name: fields.need(name, kind) for name, kind in kinds.items()}
    limits = {"images": (1, 2**40), "grid": (1, MOST_GRID), "attention_grid": (0, MOST_GRID)}
    for name, (low, high) in limits.items():
        if not low <= meta[name] <= high:
            raise UserError(f"{file}: {name} is {shown(meta[name])}, must be {low} to {high}; {_anew(path)}")
    for name, values in (("label_names", meta["label_names"]), ("arrays", meta["arrays"].values())):
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{file}: {name} is {shown(meta[name])}, must hold texts; {_anew(path)}")
    if not 1 <= len(meta["label_names"]) <= UNKNOWN:
        raise UserError(f"{file}: {len(meta['label_names'])} label_names, must be 1 to {UNKNOWN}; {_anew(path)}")
    return meta


def _write_meta(path: Path, meta: dict[str, Any]) -> None:
    write_json(path / "parts.json", meta, durable=True)
