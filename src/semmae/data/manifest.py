"""The images of a run, in an order that stays; each was decoded once: no broken file stops a training.

- `open_images` is the door: source → manifest → `ImageSet`, whose rows read as uint8 tensors.
- What cannot be read is left out and listed; above 5 % the data set itself is at fault and the user is told.
- What was readable is cached by (name, size, time of change): only other files are decoded the next time.
"""

import csv
import gzip
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from platformdirs import user_cache_dir
from torch import Tensor

from semmae.data.decode import decode
from semmae.data.sources import Selection, Source, open_source
from semmae.errors import UserError
from semmae.progress import Progress

UNREADABLE_LIMIT = 0.05
_BLOCK = 512  # images handed to the threads together
_CACHE_VERSION = 1

_log = logging.getLogger("semmae")

# name → (size, time of change) of the images found readable
_Known = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Manifest:
    """The readable images in the order of their rows, and those skipped as (name, reason)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over names and sizes in their order: the same digest, the same rows."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def subset(self, limit: int, seed: int) -> "Manifest":
        """`limit` images drawn by `seed`, in their order."""
        return self.select(sample_rows(len(self), limit, seed))

    def select(self, rows: Sequence[int]) -> "Manifest":
        """The images of these rows, in this order."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        names, sizes = tuple(self.names[row] for row in rows), tuple(self.sizes[row] for row in rows)
        return Manifest(names, sizes, labels, self.skipped)


class ImageSet:
    """A source and its manifest joined: row i is line i of the manifest. Picklable, fit for workers."""

    def __init__(self, source: Source, manifest: Manifest) -> None:
        self.source, self.manifest = source, manifest
        positions = {name: i for i, name in enumerate(source.names)}
        self._positions = np.array([positions[name] for name in manifest.names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def names(self) -> tuple[str, ...]:
        return self.manifest.names

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.manifest.labels

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def select(self, rows: Sequence[int]) -> "ImageSet":
        """The images of these rows, in this order."""
        return ImageSet(self.source, self.manifest.select(rows))

    def read(self, row: int, least: int | None = None) -> Tensor:
        """uint8 (3, H, W) of a row, a large photo at a fraction of its size where `least` allows (see `decode`).

        UserError when the file has gone or broken since it was checked.
        """
        try:
            return decode(self.source.read(int(self._positions[row])), least)
        except (OSError, ValueError) as error:
            name = f"{self.source.root}/{self.names[row]}"
            raise UserError(f"{name}: no longer readable ({error}); restore it, or begin anew without it") from error


def open_images(
    data: str | Path, *, split: str | None = None, limit: int | None = None, seed: int = 0, workers: int = 2
) -> ImageSet:
    """The images of `data`, checked: all, one split, or `limit` drawn by `seed` (only these are decoded)."""
    source = open_source(data, split)
    if limit is not None and limit < len(source):
        source = Selection(source, sample_rows(len(source), limit, seed))
    return ImageSet(source, build_manifest(source, workers))


def build_manifest(
    source: Source, workers: int, cache: Path | Literal["default"] | None = "default", progress: bool = True
) -> Manifest:
    """Decode every image once; UserError when over 5 % cannot be. `cache`: a folder, None for no cache."""
    folder = _default_cache() if cache == "default" else cache
    file = None if folder is None else folder / f"{hashlib.sha256(source.key.encode()).hexdigest()[:32]}.json.gz"
    known = {} if file is None else _read_cache(file)
    stamps = list(zip(source.sizes, source.modified, strict=True))
    todo = [i for i, name in enumerate(source.names) if known.get(name) != stamps[i]]
    reasons: dict[int, str] = {}
    try:
        for i, reason in zip(todo, _check(source, todo, workers, progress), strict=True):
            if reason is None:
                known[source.names[i]] = stamps[i]
            else:
                reasons[i] = reason
    finally:  # also when interrupted: the next check goes on from here
        if file is not None and len(reasons) < len(todo):
            _write_cache(file, known)
    skipped = tuple((source.names[i], reason) for i, reason in reasons.items())
    _judge(source, skipped)
    kept = [i for i in range(len(source)) if i not in reasons]
    names, sizes = tuple(source.names[i] for i in kept), tuple(source.sizes[i] for i in kept)
    return Manifest(names, sizes, None if source.labels is None else tuple(source.labels[i] for i in kept), skipped)


def write_skipped(manifest: Manifest, path: Path) -> None:
    """skipped.csv: name, reason; the header alone when all images could be read."""
    part = path.with_name(path.name + ".tmp")
    with open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("name", "reason"), *manifest.skipped])
    os.replace(part, path)


def sample_rows(count: int, limit: int, seed: int) -> list[int]:
    """`limit` of `count` rows drawn by `seed`, ascending; all of them when there are not more."""
    if limit < 1:
        raise UserError(f"limit {limit}: at least 1 image is needed; give a positive number")
    if limit >= count:
        return list(range(count))
    drawn: list[int] = np.random.default_rng(seed).choice(count, limit, replace=False).tolist()
    return sorted(drawn)


def _check(source: Source, rows: Sequence[int], workers: int, progress: bool) -> Iterator[str | None]:
    """Why each row cannot be read, None where it can. Threads: decoding frees the interpreter's lock."""

    def reason(row: int) -> str | None:
        try:
            decode(source.read(row), least=1)  # all bytes are parsed, fewer pixels computed
        except OSError as error:
            return error.strerror or type(error).__name__
        except ValueError as error:
            return str(error)
        return None

    line = Progress(len(rows), label=f"checking {source.root}") if progress else nullcontext()
    with ThreadPoolExecutor(max(workers, 1)) as pool, line as counter:
        for at in range(0, len(rows), _BLOCK):
            block = rows[at : at + _BLOCK]
            yield from pool.map(reason, block)
            if counter:
                counter.update(len(block))


def _judge(source: Source, skipped: tuple[tuple[str, str], ...]) -> None:
    """UserError above the limit, else a warning that tells how many are left out."""
    if not skipped:
        return
    share = len(skipped) / len(source)
    shown = ", ".join(f"{name} ({reason})" for name, reason in skipped[:3]) + (", …" if len(skipped) > 3 else "")
    fault = f"{source.root}: {len(skipped)} of {len(source)} images ({100 * share:.1f} %) cannot be read"
    if share > UNREADABLE_LIMIT:
        raise UserError(f"{fault}, limit {100 * UNREADABLE_LIMIT:.0f} %: {shown}; repair or remove them")
    _log.warning("%s and are left out: %s", fault, shown)


def _default_cache() -> Path:
    return Path(os.environ.get("SEMMAE_CACHE") or user_cache_dir("semmae")) / "manifests"


def _read_cache(file: Path) -> _Known:
    """What was found before; nothing when there is no cache, or one that is damaged or of another version."""
    try:
        stored = json.loads(gzip.decompress(file.read_bytes()))
        if stored["version"] != _CACHE_VERSION:
            return {}
        return {name: (size, modified) for name, size, modified in stored["images"]}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: cache not readable (%s), all images are checked again", file, error)
        return {}


def _write_cache(file: Path, known: _Known) -> None:
    """Keep what is known, of other splits too. Only speed is lost when the folder cannot be written."""
    part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    stored = {"version": _CACHE_VERSION, "images": [[name, *stamp] for name, stamp in known.items()]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(gzip.compress(json.dumps(stored).encode(), compresslevel=1))
        os.replace(part, file)
    except OSError as error:
        _log.warning("%s: cache not written (%s), images are checked again the next time", file, error)
