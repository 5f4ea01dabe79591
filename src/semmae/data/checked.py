"""Which images were found readable before: only what is new or has changed is decoded again.

A file for each data set, all its splits together: int64 (N, 3), a row an image, ascending by the first column: a hash
of the name, the size in bytes, the time of change. That is 24 bytes an image, and read as fast as the disk is.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_dir

from semmae.data.compact import Names
from semmae.errors import DiskError, UserError
from semmae.files import open_regular, whole
from semmae.names import on_disk, user_path

_log = logging.getLogger("semmae")

_Table = npt.NDArray[np.int64]  # (N, 3)


def cache_folder(kind: str = "readable") -> Path | None:
    """Where files of a kind are kept: below $SEMMAE_CACHE, or in the user's cache; None where that is no path."""
    given = os.environ.get("SEMMAE_CACHE")
    if given:
        try:
            return user_path(given, "SEMMAE_CACHE") / kind
        except UserError as error:  # only speed depends on it
            _log.warning("%s; without it all images are checked again", error)
            return None
    return Path(user_cache_dir("semmae")) / kind


def cache_file(folder: Path, key: str) -> Path:
    """The file of the data set with this key."""
    return folder / f"{hashlib.sha256(on_disk(key)).hexdigest()[:32]}.npy"


def stamps(names: Names, sizes: npt.NDArray[np.int64], modified: npt.NDArray[np.int64]) -> _Table:
    """Rows of such a file, in the order of the names: int64 (N, 3)."""
    # 64 bits a name. Where two images should share them, one of the two is decoded at every check.
    digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names.encoded())
    return np.stack([np.frombuffer(digests, "<i8", len(names)).astype(np.int64), sizes, modified], axis=1)


def known_rows(found: _Table, known: _Table) -> npt.NDArray[np.bool_]:
    """bool (N,): which of the stamps found now are, as they are, among those that are known."""
    if not len(known):
        return np.zeros(len(found), dtype=bool)
    places = np.searchsorted(known[:, 0], found[:, 0]).clip(max=len(known) - 1)
    same: npt.NDArray[np.bool_] = (known[places] == found).all(axis=1)
    return same


def read_known(file: Path) -> _Table:
    """What was found before; nothing when there is no file, or a damaged one."""
    try:
        with open_regular(file) as content:
            return _checked(np.lib.format.read_array(content, allow_pickle=False))
    except (FileNotFoundError, NotADirectoryError):
        return _merged([])
    except Exception as error:  # also those of Python's own parser, which reads the header of an array
        _log.warning("%s: cache not readable (%s), all images are checked again", file, error)
        return _merged([])


def write_known(file: Path, *tables: _Table) -> None:
    """Keep the stamps of these tables, a later one's where an image is in several."""
    try:
        with whole(file) as beside, beside.open("wb") as handle:
            np.save(handle, _merged(tables))
    except (OSError, DiskError, UserError) as error:  # only speed is lost
        _log.warning("%s: cache not written (%s), images are checked again the next time", file, error)


def _merged(tables: Iterable[_Table]) -> _Table:
    """All rows ascending by their hash; of several with the same the last."""
    whole: _Table = np.concatenate([np.zeros((0, 3), dtype=np.int64), *tables])
    whole = whole[np.argsort(whole[:, 0], kind="stable")]
    is_last = np.ones(len(whole), dtype=bool)
    is_last[:-1] = whole[1:, 0] != whole[:-1, 0]
    return whole[is_last]


def _checked(table: npt.NDArray[np.int64]) -> _Table:
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 3:
        raise ValueError(f"it holds {table.dtype} {table.shape}, not int64 (N, 3)")
    if (table[1:, 0] <= table[:-1, 0]).any():
        raise ValueError("its rows are not in their order")
    return table
