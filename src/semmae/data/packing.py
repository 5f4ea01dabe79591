"""Writes images into tar shards of WebDataset's form: `KEY.jpg`, and where classes are known `KEY.cls`, their number.

Notable here:
- images are in an order drawn by the seed, so that each shard is a sample of all, see `by_window`;
- an image that is no larger than asked for is kept byte for byte, if browsers and WebDataset read its format;
- the same images, options and seed give the same bytes: members bear no times and no owners.
"""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from semmae.data.crop import least_side
from semmae.data.decode import decode, upright_size
from semmae.data.headers import PNG
from semmae.data.manifest import ImageSet
from semmae.data.naming import companion_names
from semmae.data.shards import SHARD
from semmae.data.workers import in_threads
from semmae.progress import Progress

_KEPT = ((b"\xff\xd8\xff", ".jpg"), (PNG, ".png"), (b"RIFF", ".webp"))  # how a file begins that may stay as it is
_CROP, _SCALE = 224, 0.2  # of the usual training: what decoding is measured for


@dataclass(frozen=True)
class Packing:
    """How images are written."""

    short_side: int  # pixels
    quality: int  # of JPEG, 1 to 100
    most: int  # bytes of a shard
    seed: int  # of the order

    def image(self, raw: bytes | Tensor) -> tuple[str, bytes]:
        """The ending and the bytes of an image, encoded or uint8 (3, H, W)."""
        if isinstance(raw, bytes):
            kept = next((ending for begin, ending in _KEPT if raw.startswith(begin)), None)
            if kept is not None and min(upright_size(raw)) <= self.short_side:
                return kept, raw
        # Twice: hardly another image than the whole photo, resized.
        pixels = raw if isinstance(raw, Tensor) else decode(raw, 2 * self.short_side)
        image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        short, encoded = min(image.size), io.BytesIO()
        if short > self.short_side:
            width, height = (max(1, round(side * self.short_side / short)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        elif isinstance(raw, Tensor):  # nobody has lost anything of these pixels yet
            image.save(encoded, "PNG")
            return ".png", encoded.getvalue()
        image.save(encoded, "JPEG", quality=self.quality)
        return ".jpg", encoded.getvalue()


def write_shards(
    folder: Path, name: str, images: ImageSet, targets: Sequence[int] | None, packing: Packing, threads: int
) -> list[tuple[Path, int]]:
    """Write NAME-000000.tar and so on; of each its path, and how many bytes of images it holds."""
    order = np.random.default_rng(packing.seed).permutation(len(images)).tolist()
    keys, written = keys_of(images), Shards(folder, name, packing.most)
    with Progress(len(images), label=f"packing {name}") as progress:
        try:
            found = in_threads(lambda row: packing.image(images.raw(row)), order, threads)
            for row, (ending, content) in zip(order, found, strict=True):
                members = [(keys[row] + ending, content)]
                if targets is not None:
                    members.append((f"{keys[row]}.cls", str(targets[row]).encode()))
                written.add(members, len(content))
                progress.update()
        finally:
            written.close()
    return written.files


class Shards:
    """Tar files that are written one after the other."""

    def __init__(self, folder: Path, name: str, most: int) -> None:
        self.files: list[tuple[Path, int]] = []
        self._folder, self._name, self._most = folder, name, most
        self._tar: tarfile.TarFile | None = None

    def add(self, members: Sequence[tuple[str, bytes]], size: int) -> None:
        """Names and contents that belong together; `size` counts as the image's bytes."""
        needed = sum(len(content) + 1024 for _, content in members) + 10240
        if self._tar is None or (self._tar.offset and self._tar.offset + needed > self._most):
            self.close()
            path = self._folder / f"{self._name}-{len(self.files):06}{SHARD}"
            self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115
            self.files.append((path, 0))
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            self._tar.addfile(member, io.BytesIO(content))
        path, before = self.files[-1]
        self.files[-1] = (path, before + size)

    def close(self) -> None:
        """End the shard that is being written."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def keys_of(images: ImageSet) -> list[str]:
    """A unique key of each image, by its name: `cat/7.jpg` → `cat/7`, without classes `cat_7`; dots become `_`."""
    names = companion_names(images.names, "")
    if images.shards is not None:  # packed before
        names = [name.partition(f"{SHARD}/")[2] for name in names]
    keys = [_key(name, flat=images.labels is None) for name in names]
    count = Counter(keys)
    keys = [key if count[key] == 1 else f"{key}-{row}" for row, key in enumerate(keys)]
    return keys if len(set(keys)) == len(keys) else [f"{row:09}" for row in range(len(keys))]


def _key(name: str, flat: bool) -> str:
    folder, slash, file = name.rpartition("/")
    # Folders would be classes where no image has one of its own.
    key = folder + slash + file.replace(".", "_")
    return key.replace("/", "_") if flat else key


class Gain(NamedTuple):
    """What decoding an image takes on one core, in seconds, for crops as a training takes them."""

    before: float
    after: float


def decoding_gain(images: ImageSet, rows: Sequence[int], packing: Packing) -> Gain | None:
    """The mean over these rows, by the time of the processor; None where images are no files."""
    first = images.raw(rows[0])
    if isinstance(first, Tensor):
        return None
    decode(first)  # what is made once
    pairs = [Gain(*map(_seconds, pair)) for pair in _both(images, rows, packing)]
    return Gain(*(sum(times) / len(pairs) for times in zip(*pairs, strict=True)))


def _both(images: ImageSet, rows: Sequence[int], packing: Packing) -> Iterator[tuple[bytes, bytes]]:
    for row in rows:
        raw = images.raw(row)
        assert isinstance(raw, bytes)
        yield raw, packing.image(raw)[1]


def _seconds(raw: bytes) -> float:
    began = time.thread_time()
    decode(raw, least_side(_CROP, _SCALE))
    return time.thread_time() - began
