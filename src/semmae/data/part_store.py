"""Part labels on disk: `parts.npy` (uint8, images × grid × grid, memory-mapped) and `parts.json`.

Beside them, where the labels were computed, `attention.npy` (uint8, images × side × side): how much the encoder's
class token attends to each place, as ranks inside the image (`data/attention.py`).

Row i belongs to line i of the image manifest, whose digest is kept: with other images, the store refuses.
255 = not yet computed, so that labelling resumes where it stopped and several processes may write disjoint rows.

What a killed process leaves behind is sound: `parts.npy` and `attention.npy` appear when all of them is 255,
`parts.json` after them, and a row that was written in part still holds a 255, for no label and no rank is 255. Only
a store marked complete is read.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from semmae.errors import UserError
from semmae.files import short, shown

UNKNOWN = 255
_BLOCK = 65536  # rows looked at together when missing ones are sought
# What labels depend on, and what a store begun earlier must agree in.
_FIELDS = ("images", "grid", "label_names", "teacher_digest", "learner_digest", "manifest_digest", "attention_grid")
# What a store may lack: imported labels have no learner, labels made by an older version no attention.
_ABSENT = {"learner_digest": "", "attention_grid": 0}

Rows = np.memmap[Any, np.dtype[np.uint8]]


class PartStore:
    """Made by `create` (to write, also to go on writing) or `open` (to read a complete one)."""

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

        Raises:
            UserError: one begun with others is there; every difference is named.
        """
        if not 1 <= len(label_names) <= UNKNOWN:
            raise ValueError(f"{len(label_names)} labels do not fit one byte; 1 to {UNKNOWN} do")
        path = Path(path)
        values = (images, grid, list(label_names), teacher_digest, learner_digest, manifest_digest, attention_grid)
        meta = dict(zip(_FIELDS, values, strict=True)) | {"extra": extra or {}, "complete": False}
        if (path / "parts.json").exists():
            begun = _read_meta(path)
            lacks_attention = attention_grid > 0 and begun["attention_grid"] == 0
            if lacks_attention:
                begun = begun | {"attention_grid": attention_grid, "complete": False}
            changed = [
                f"{name} {_brief(name, begun[name])}, not {_brief(name, meta[name])}"
                for name in _FIELDS
                if begun[name] != meta[name]
            ]
            if changed:
                raise UserError(
                    f"{path}: holds part labels with {'; '.join(changed)}; restore what has changed, write to another "
                    "folder, or remove parts.json and parts.npy there"
                )
            if lacks_attention:
                _new_rows(path, "attention.npy", (images, attention_grid))
                _write_meta(path, begun)
            return cls(path, begun, writable=True)
        path.mkdir(parents=True, exist_ok=True)
        _new_rows(path, "parts.npy", (images, grid))
        if attention_grid:
            _new_rows(path, "attention.npy", (images, attention_grid))
        _write_meta(path, meta)  # last: a store without it does not exist
        return cls(path, meta, writable=True)

    @classmethod
    def open(cls, path: Path, *, manifest_digest: str | None = None) -> "PartStore":
        """A complete store, read-only. UserError when it is missing, unfinished, or made for other images."""
        path = Path(path)
        if not (path / "parts.json").exists():
            raise UserError(f"{path}: no part labels (parts.json); make them with `semmae parts`")
        meta = _read_meta(path)
        store = cls(path, meta, writable=False)
        if not meta["complete"]:
            left = len(store.missing())
            raise UserError(f"{path}: {left} of {store.images} images are not labelled yet; resume `semmae parts`")
        if manifest_digest is not None and manifest_digest != store.manifest_digest:
            raise UserError(
                f"{path}: part labels are for the images {short(store.manifest_digest)}, not for "
                f"{short(manifest_digest)}; use the data they were made with, or label this with `semmae parts`"
            )
        return store

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def digests(self) -> dict[str, str]:
        """What the labels were made from: teacher, learner, images."""
        return {name: self._meta[name] for name in _FIELDS if name.endswith("_digest")}

    @property
    def complete(self) -> bool:
        return bool(self._meta["complete"])

    def write(self, rows: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> None:
        """Store labels (n, grid, grid) of the rows (n,); integers below `num_labels`."""
        values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if values.size and not 0 <= values.min() <= values.max() < self.num_labels:
            raise ValueError(f"labels {values.min()} to {values.max()}, the store knows 0 to {self.num_labels - 1}")
        self.labels[np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)] = values

    @property
    def attention(self) -> Rows:
        """Attention (images, a, a), ranks from 0 to `MOST_ATTENDED`.

        Raises:
            UserError: the store holds none.
        """
        if self._attention is None:
            remedy = f"add it with `semmae parts --out {self.path} --labels-only`"
            if "tokens" in self.extra:
                remedy = "its token files told none; label these images with `semmae parts --teacher`"
            raise UserError(f"{self.path}: holds no attention beside its part labels; {remedy}")
        return self._attention

    def write_attention(self, rows: np.ndarray | Tensor, attention: np.ndarray | Tensor) -> None:
        """Store attention (n, a, a) of the rows (n,); ranks from 0 to `MOST_ATTENDED`."""
        values = attention.cpu() if isinstance(attention, Tensor) else attention
        self.attention[np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)] = np.asarray(values)

    def missing(self) -> np.ndarray:
        """int64 rows whose labels or attention are not computed, or only in part."""
        blocks = [slice(at, at + _BLOCK) for at in range(0, self.images, _BLOCK)]
        found = [np.flatnonzero(self.unlabelled(rows) | self._unattended(rows)) + rows.start for rows in blocks]
        return np.concatenate([*found, np.empty(0, np.int64)]).astype(np.int64)

    def unlabelled(self, rows: slice | Tensor) -> np.ndarray:
        """bool: which of these rows have no labels, or only in part."""
        return _unknown(self.labels[rows.numpy() if isinstance(rows, Tensor) else rows])

    def _unattended(self, rows: slice) -> np.ndarray | bool:
        return False if self._attention is None else _unknown(self._attention[rows])

    def finish(self) -> None:
        """Mark the store complete (one process, when all have written)."""
        left = len(self.missing())
        if left:
            raise ValueError(f"{left} of {self.images} rows are not computed")
        self.labels.flush()
        if self._attention is not None:
            self._attention.flush()
        self._meta = self._meta | {"complete": True}
        _write_meta(self.path, self._meta)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self._meta, "writable": self._writable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Mapped anew: pickled as it is, the array would be copied into every worker.
        self.__init__(state["path"], state["meta"], writable=state["writable"])  # type: ignore[misc]


def _map(path: Path, name: str, size: tuple[int, int], mode: str) -> Rows:
    """The array of a file, `size` its (images, cells a side)."""
    try:
        rows: Rows = np.load(path / name, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}); label the images anew") from error
    shape = (*size, size[1])
    if rows.shape != shape or rows.dtype != np.uint8:
        found = f"{rows.dtype} {rows.shape}"
        raise UserError(f"{path}: {name} holds {found}, parts.json tells uint8 {shape}; label the images anew")
    return rows


def _new_rows(path: Path, name: str, size: tuple[int, int]) -> None:
    """A file in which no row is computed, `size` its (images, cells a side)."""
    part = path / f"{name}.tmp"
    rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(*size, size[1]))
    rows[:] = UNKNOWN
    rows.flush()  # before the renaming: after a power failure no row may look written that is not
    os.replace(part, path / name)


def _brief(name: str, value: Any) -> str:
    return short(str(value)) if name.endswith("_digest") else shown(value)


def _unknown(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = (np.asarray(rows) == UNKNOWN).any((1, 2))
    return found


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "parts.json").read_text(encoding="utf-8"))
        meta = _ABSENT | meta
        absent = [name for name in (*_FIELDS, "extra", "complete") if name not in meta]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: parts.json is damaged ({error}); label the images anew") from error
    if absent:
        raise UserError(f"{path}: parts.json lacks {', '.join(absent)}; label the images anew")
    return dict(meta)


def _write_meta(path: Path, meta: dict[str, Any]) -> None:
    part = path / "parts.json.tmp"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path / "parts.json")
