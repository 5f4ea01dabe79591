"""The images of a run, in an order that stays; each was decoded once: no broken file stops a training.

- `open_images` is the door: source → manifest → `ImageSet`, whose rows read as uint8 tensors.
- What cannot be read is left out and listed; above 5 % the data set itself is at fault and refused.
- What was readable is remembered (`semmae.data.checked`): only new and changed files are decoded the next time.
- Names and classes are no Python objects (`semmae.data.compact`): a billion images, and processes that share them.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from semmae.data.checked import cache_file, cache_folder, known_rows, read_known, stamps, write_known
from semmae.data.compact import Labels, Names, Rows
from semmae.data.decode import decode, tell_slow_decoder, upright_size
from semmae.data.deep import other_channels
from semmae.data.endings import UNDECODED, counted, ending
from semmae.data.items import ItemSource
from semmae.data.kept_manifest import check_same, read_kept, write_kept
from semmae.data.selection import InShards, Selection, Source
from semmae.data.sources import open_source
from semmae.data.workers import in_threads
from semmae.errors import UserError, listed, reason
from semmae.files import write_csv
from semmae.objects import described
from semmae.options.shared import Check
from semmae.progress import Progress
from semmae.run.ranks import is_rank_zero, made, shared_folder, wait_for

UNREADABLE_LIMIT = 0.05
_CHECKS = get_args(Check)

_log = logging.getLogger("semmae")

Decoded = TypeVar("Decoded")


class OtherChannels(UserError):
    """All images have another number of channels than is asked for; what to do about it, who asks may know better."""

    def __init__(self, fault: str, found: int, asked: int) -> None:
        super().__init__(f"{fault}; give images of {asked} channel{'' if asked == 1 else 's'}")
        self.fault, self.found = fault, found  # `found` of the first image


@dataclass(frozen=True, eq=False)
class Manifest:
    """The readable images in the order of their rows, and those skipped as (name, reason)."""

    names: Names
    sizes: npt.NDArray[np.int64]  # (N,), bytes of each encoded image; of what an object gives, a hash of the pixels
    labels: Labels | None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Manifest):
            return NotImplemented
        same = self.names == other.names and np.array_equal(self.sizes, other.sizes)
        return same and self.labels == other.labels and self.skipped == other.skipped

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over names and sizes in their order: the same digest, the same rows."""
        digest = hashlib.sha256()
        for name, size in zip(self.names.encoded(), self.sizes, strict=True):
            digest.update(b"%b\0%d\n" % (name, size))
        return digest.hexdigest()

    def subset(self, limit: int, seed: int) -> "Manifest":
        return self.select(sample_rows(len(self), limit, seed))

    def select(self, rows: Rows) -> "Manifest":
        labels = None if self.labels is None else self.labels.take(rows)
        return Manifest(self.names.take(rows), self.sizes[np.asarray(rows, dtype=np.int64)], labels, self.skipped)


class ImageSet:
    """A source and its manifest joined: row i is line i of the manifest. Picklable, fit for workers.

    `positions`: which of the source's images each row is, integers (N,); without them the manifest is of images of the
    source in their order. `channels` that they are read in: three, RGB of 8 bits, or others of 16 (`semmae.data.deep`);
    `OWN`: each in its own.
    """

    def __init__(self, source: Source, manifest: Manifest, positions: Rows | None = None, channels: int = 3) -> None:
        self.source, self.manifest, self.channels = source, manifest, channels
        if positions is None:
            positions = _positions(source.names, manifest.names)
        self.positions = np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def names(self) -> Names:
        return self.manifest.names

    @property
    def labels(self) -> Labels | None:
        return self.manifest.labels

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def shards(self) -> InShards | None:
        """Which tar file each row lies in; None where the images lie in none."""
        return None if self.source.shards is None else self.source.shards.take(self.positions)

    def copy_soon(self, row: int) -> None:
        """Have the tar file of a row copied in the background, where it lies at an address."""
        if self.source.shards is not None:
            self.source.shards.copy_soon(int(self.positions[row]))

    def select(self, rows: Rows) -> "ImageSet":
        return ImageSet(
            self.source, self.manifest.select(rows), self.positions[np.asarray(rows, dtype=np.int64)], self.channels
        )

    def read(self, row: int, least: int | None = None) -> Tensor:
        """uint8 (3, H, W), or uint16 (C, H, W); a large photo at a fraction of its size where `least` allows that."""
        return self._decoded(row, lambda raw: raw if isinstance(raw, Tensor) else decode(raw, least, self.channels))

    def raw(self, row: int) -> bytes | Tensor:
        """A row as its source gives it: encoded, or of an object as `read` gives it."""
        return self._decoded(row, lambda raw: raw)

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of a row, upright, in pixels of the file."""
        height, width = self._decoded(row, lambda raw: raw.shape[1:] if isinstance(raw, Tensor) else upright_size(raw))
        return height, width

    def _decoded(self, row: int, decoder: Callable[[bytes | Tensor], Decoded]) -> Decoded:
        try:
            return decoder(self.source.read(int(self.positions[row])))
        except (OSError, ValueError) as error:
            name = f"{self.source.root}/{self.names[row]}"
            raise UserError(
                f"{name}: not readable ({error}); restore it, or begin anew: --check full leaves it out"
            ) from error


def open_images(
    data: object,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
    check: Check = "full",
    needs_classes: bool = False,
    channels: int = 3,
) -> ImageSet:
    """The images of `data`, checked: all, one split, or `limit` drawn by `seed` (only these are decoded).

    `channels`: as of `ImageSet`. `data`: a path, `hf:NAME`, or one of the objects that `semmae.data.from_python` reads.
    Why they have no classes is logged, but with `needs_classes`: the caller refuses. `check`: "full" decodes every
    image, once; "header" reads no more than headers; "none" nothing: what cannot be read raises when its turn comes.
    Objects are examined whole.

    Of the processes of one run the first one makes the list, and the others take it from the run's folder.
    """
    check_check(check)

    def listed_source() -> Source:
        source = open_source(data, split)
        if isinstance(source, ItemSource):
            source.channels = channels
        if limit is not None and limit < len(source):
            rows = sample_rows(len(source), limit, seed)
            source = source.select(rows) if isinstance(source, ItemSource) else Selection(source, rows)
        return source

    def listed_images() -> ImageSet:
        source = listed_source()
        manifest = build_manifest(source, workers, check=check, channels=channels)
        if source.labels is None and source.class_note and not needs_classes:
            _log.info("%s: no classes: %s", described(data), source.class_note)
        return ImageSet(source, manifest, channels=channels)

    folder = shared_folder()
    if folder is None:
        return listed_images()
    key = hashlib.sha256(
        repr((described(data), split, limit, seed, check, channels)).encode("utf-8", "surrogateescape")
    )
    path = folder / f"{key.hexdigest()[:16]}.npz"
    if is_rank_zero():
        images = listed_images()
        write_kept(path, images.source, images.manifest, images.positions)
        made(path.stem)
        return images
    wait_for(path.stem)
    kept = read_kept(path)
    manifest = Manifest(kept.names, kept.sizes, kept.labels, kept.skipped)
    if manifest.digest != kept.digest:
        raise UserError(f"{path}: damaged; start all processes again")
    source = kept.source or listed_source()
    check_same(kept, source)
    return ImageSet(source, manifest, kept.positions, channels)


def check_check(check: Check) -> None:
    """ValueError where it is no way to look at images."""
    if check not in _CHECKS:
        raise ValueError(f"check {check!r}; give one of {', '.join(_CHECKS)}")


def build_manifest(
    source: Source,
    workers: int,
    cache: Path | Literal["default"] | None = "default",
    check: Check = "full",
    channels: int = 3,
) -> Manifest:
    """Look at every image once, as closely as `check` says; UserError when over 5 % cannot be read.

    `OtherChannels` where that is all of them, for their channels alone.

    `cache`: a folder, None for no cache.
    """
    if isinstance(source, ItemSource):
        reasons = source.examine(workers)
    elif check == "none":
        reasons = {}
    else:
        reasons = _unreadable(source, workers, cache_folder() if cache == "default" else cache, check, channels)
    skipped = tuple((source.names[i], reason) for i, reason in reasons.items())
    _judge(source, skipped, channels)
    whole = Manifest(source.names, source.sizes, source.labels, skipped)
    return whole.select(np.delete(np.arange(len(source)), list(reasons))) if reasons else whole


def _unreadable(source: Source, workers: int, cache: Path | None, check: Check, channels: int) -> dict[int, str]:
    """Row → why it cannot be read, of those that cannot; images that the cache knows are not looked at."""
    tell_slow_decoder()
    key = source.key if channels == 3 else f"{source.key}\0{channels} channels"
    file = None if cache is None else cache_file(cache, key)
    found = stamps(source.names, source.sizes, source.modified)
    known = found[:0] if file is None else read_known(file)
    readable = known_rows(found, known)
    if check == "header" and cache is not None:  # apart: a header says less than what was decoded whole
        file = cache_file(cache, f"{key}\0header")
        known = read_known(file)
        readable |= known_rows(found, known)
    todo = np.flatnonzero(~readable)
    reasons: dict[int, str] = {}
    try:
        for i, reason in zip(todo, _check(source, todo, workers, check, channels), strict=True):
            if reason is None:
                readable[i] = True
            else:
                reasons[int(i)] = reason
    finally:  # also when interrupted: the next check continues from here
        if file is not None and len(reasons) < len(todo):
            write_known(file, known, found[readable])  # those of other splits stay
    return reasons


def write_skipped(sets: Iterable[ImageSet], path: Path) -> None:
    """skipped.csv: name, reason; the header alone when all images of all sets could be read.

    Names are as those of the images; where sets lie in different folders, below the one that holds them all.
    """
    sets = list(sets)
    roots = [str(images.source.root) for images in sets]
    common = os.path.commonpath(roots) if len(set(roots)) > 1 else roots[0]
    # Sets divided by `select` list the same ones: a dict keeps the first of each.
    rows = dict.fromkeys(
        (os.path.normpath(os.path.join(os.path.relpath(root, common), name)) if root != common else name, reason)
        for root, images in zip(roots, sets, strict=True)
        for name, reason in images.manifest.skipped
    )
    write_csv(path, [("name", "reason"), *rows])


def sample_rows(count: int, limit: int, seed: int) -> list[int]:
    """`limit` of `count` rows drawn by `seed`, ascending; all of them when there are not more."""
    if limit < 1:
        raise UserError(f"limit {limit}: at least 1 image is needed; give a positive number")
    if limit >= count:
        return list(range(count))
    drawn: list[int] = np.random.default_rng(seed).choice(count, limit, replace=False).tolist()
    return sorted(drawn)


def _positions(names: Names, chosen: Names) -> npt.NDArray[np.int64]:
    """Which of the names each chosen one is; these are some of them, in their order."""
    if chosen == names:
        return np.arange(len(names))
    # In step through both: an index of all names would be millions of objects, if only for a moment.
    remaining, positions = enumerate(names.encoded()), np.empty(len(chosen), dtype=np.int64)
    for row, name in enumerate(chosen.encoded()):
        place = next((i for i, other in remaining if other == name), None)
        if place is None:
            raise ValueError(f"{os.fsdecode(name)} is none of the source's images, or not in their order")
        positions[row] = place
    return positions


def _check(
    source: Source, rows: npt.NDArray[np.int64], workers: int, check: Check, channels: int
) -> Iterator[str | None]:
    """Why each row cannot be read, None where it can. Threads: decoding frees the interpreter's lock."""

    def fault(row: int) -> str | None:
        try:
            raw = source.read(row)
            assert isinstance(raw, bytes)  # what objects give is examined by their own source
            if check == "header":
                upright_size(raw)
            else:
                decode(raw, least=1, channels=channels)  # all bytes are parsed, fewer pixels computed
        except OSError as error:
            return reason(error)
        except ValueError as error:
            return str(error)
        return None

    with Progress(len(rows), label=f"checking {source.root}") as progress:
        for found in in_threads(fault, map(int, rows), workers):
            yield found
            progress.update()


def _judge(source: Source, skipped: tuple[tuple[str, str], ...], channels: int) -> None:
    """UserError above the limit, else a warning of how many are left out."""
    if not skipped:
        return
    share = len(skipped) / len(source)
    shown = listed(f"{name} ({reason})" for name, reason in skipped)
    fault = f"{source.root}: {len(skipped)} of {len(source)} images ({100 * share:.1f} %) cannot be read"
    undecoded = Counter(kind for name, _ in skipped if (kind := ending(name)) in UNDECODED)
    if undecoded:
        fault += f", {counted(undecoded)} among them"
    if share > UNREADABLE_LIMIT:
        fault = f"{fault}, limit {100 * UNREADABLE_LIMIT:.0f} %: {shown}"
        others = [found for _, reason in skipped if (found := other_channels(reason)) is not None]
        if len(others) == len(source):
            raise OtherChannels(fault, others[0], channels)
        remedy = "convert, repair or remove them" if undecoded or others else "repair or remove them"
        raise UserError(f"{fault}; {remedy}")
    _log.warning("%s and are left out: %s", fault, shown)
