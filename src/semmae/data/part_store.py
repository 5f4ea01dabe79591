"""Part labels on disk: `parts.npy` (uint8, images × grid × grid, memory-mapped) and `parts.json`.

Row i belongs to line i of the image manifest, whose digest is kept: with other images, the store refuses.
255 = not yet computed, so that labelling resumes where it stopped and several processes may write disjoint rows.

What a killed process leaves behind is sound: `parts.npy` appears when all of it is 255, `parts.json` after it, and a
row that was written in part still holds a 255, for no label is 255. Only a store marked complete is read.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from semmae.errors import UserError

UNKNOWN = 255
_BLOCK = 65536  # rows looked at together when missing ones are sought
# What labels depend on, and what a store begun earlier must agree in.
_FIELDS = ("images", "grid", "label_names", "teacher_digest", "learner_digest", "manifest_digest")


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
        self.extra: dict[str, Any] = meta["extra"]
        self.labels: np.memmap[Any, np.dtype[np.uint8]] = _map(self.path, "r+" if writable else "r")
        shape = (self.images, self.grid, self.grid)
        if self.labels.shape != shape or self.labels.dtype != np.uint8:
            found = f"{self.labels.dtype} {self.labels.shape}"
            raise UserError(f"{path}: parts.npy holds {found}, parts.json tells uint8 {shape}; label the images anew")

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
        extra: dict[str, Any] | None = None,
    ) -> "PartStore":
        """A store with no row computed; one begun with the same arguments is taken up again, rows kept.

        Raises:
            UserError: one begun with others is there; every difference is named.
        """
        if not 1 <= len(label_names) <= UNKNOWN:
            raise ValueError(f"{len(label_names)} labels do not fit one byte; 1 to {UNKNOWN} do")
        path = Path(path)
        values = (images, grid, list(label_names), teacher_digest, learner_digest, manifest_digest)
        meta = dict(zip(_FIELDS, values, strict=True)) | {"extra": extra or {}, "complete": False}
        if (path / "parts.json").exists():
            begun = _read_meta(path)
            changed = [f"{name} {begun[name]}, not {meta[name]}" for name in _FIELDS if begun[name] != meta[name]]
            if changed:
                raise UserError(
                    f"{path}: holds part labels with {'; '.join(changed)}; restore what has changed, write to another "
                    "folder, or remove parts.json and parts.npy there"
                )
            return cls(path, begun, writable=True)
        path.mkdir(parents=True, exist_ok=True)
        part = path / "parts.npy.tmp"
        labels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(images, grid, grid))
        labels[:] = UNKNOWN
        labels.flush()  # before the renaming: after a power failure no row may look written that is not
        os.replace(part, path / "parts.npy")
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
                f"{path}: part labels are for the images {store.manifest_digest}, not for {manifest_digest}; "
                "use the data they were made with, or label this with `semmae parts`"
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

    def missing(self) -> np.ndarray:
        """int64 rows that are not computed, or only in part."""
        blocks = range(0, self.images, _BLOCK)
        found = [np.flatnonzero(self.unfinished(slice(at, at + _BLOCK))) + at for at in blocks]
        return np.concatenate([*found, np.empty(0, np.int64)]).astype(np.int64)

    def unfinished(self, rows: slice | Tensor) -> np.ndarray:
        """bool: which of these rows are not computed, or only in part."""
        labels = self.labels[rows.numpy() if isinstance(rows, Tensor) else rows]
        found: np.ndarray = (np.asarray(labels) == UNKNOWN).any((1, 2))
        return found

    def finish(self) -> None:
        """Mark the store complete (one process, when all have written)."""
        left = len(self.missing())
        if left:
            raise ValueError(f"{left} of {self.images} rows are not computed")
        self.labels.flush()
        self._meta = self._meta | {"complete": True}
        _write_meta(self.path, self._meta)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self._meta, "writable": self._writable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Mapped anew: pickled as it is, the array would be copied into every worker.
        self.__init__(state["path"], state["meta"], writable=state["writable"])  # type: ignore[misc]


def _map(path: Path, mode: str) -> Any:
    try:
        return np.load(path / "parts.npy", mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: parts.npy cannot be read ({error}); label the images anew") from error


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "parts.json").read_text(encoding="utf-8"))
        meta = {"learner_digest": ""} | meta  # labels that were imported have no learner
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
