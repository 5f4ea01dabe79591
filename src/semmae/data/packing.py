"""Writes images into tar shards of WebDataset's form: `KEY.jpg`, and where classes are known `KEY.cls`, their number.

Notable here:
- images are in an order drawn by the seed, so that each shard is a sample of all, see `by_window`;
- an image that is no larger than asked for is kept byte for byte, if browsers and WebDataset read its format;
- nothing is lost that is read with any `--channels`, unless how many was said: JPEG takes what RGB of 8 bits holds, PNG
  grey of 16 bits. Images of other channels are kept as they are: transparency that is resized as a band among others
  shows colours that nobody saw, and resized as transparency it loses those beneath it;
- the same images, options and seed give the same bytes: members bear no times and no owners.
"""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image
from torch import Tensor

from semmae.data.crop import least_side
from semmae.data.decode import decode, own_channels, upright_size
from semmae.data.deep import NPY, OWN, TIFF
from semmae.data.endings import ARRAY
from semmae.data.headers import JPEG, PNG
from semmae.data.manifest import ImageSet
from semmae.data.naming import companion_names
from semmae.data.shards import SHARD
from semmae.data.wide_png import is_wide_png
from semmae.data.workers import in_threads
from semmae.errors import UserError
from semmae.progress import Progress

_KEPT = {JPEG: ".jpg", PNG: ".png", b"RIFF": ".webp"}  # how a file begins that may stay as it is
_OTHERS = {NPY: ARRAY, b"GIF8": ".gif", b"BM": ".bmp", **dict.fromkeys(TIFF, ".tif")}
_CROP, _SCALE = 224, 0.2  # of the usual training: what decoding is measured for


class Packed(NamedTuple):
    """An image as it is written."""

    ending: str
    content: bytes
    channels: int  # that it is kept for: 3 are RGB of 8 bits


@dataclass(frozen=True)
class Packing:
    """How images are written."""

    short_side: int  # pixels
    quality: int  # of JPEG, 1 to 100
    most: int  # bytes of a shard
    seed: int  # of the order
    channels: int = OWN  # in which the images are read, and will be

    def image(self, raw: bytes | Tensor) -> Packed:
        """An image, encoded or as `ImageSet.read` gives it: uint8 (3, H, W) or uint16 (C, H, W)."""
        channels = self._kept_for(raw)
        if channels not in (1, 3):
            return Packed(*_whole(raw), channels)
        if isinstance(raw, bytes):
            kept = _ending(raw, _KEPT)
            if kept is not None and min(upright_size(raw)) <= self.short_side:
                return Packed(kept, raw, channels)
        # Twice: hardly another image than the whole photo, resized.
        pixels = raw if isinstance(raw, Tensor) else decode(raw, 2 * self.short_side, channels)
        if channels == 1:
            grey = Image.fromarray(pixels[0].numpy().astype(np.float32))  # which holds every number of 16 bits
            values = np.rint(np.asarray(self._resized(grey))).clip(0, 2**16 - 1).astype(np.uint16)
            return Packed(".png", _encoded(Image.fromarray(values), "PNG"), channels)
        image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        if isinstance(raw, Tensor) and min(image.size) <= self.short_side:
            return Packed(".png", _encoded(image, "PNG"), channels)  # nobody has lost anything of these pixels yet
        return Packed(".jpg", _encoded(self._resized(image), "JPEG", quality=self.quality), channels)

    def _kept_for(self, raw: bytes | Tensor) -> int:
        """The channels that nothing may be lost for; of a colour or of grey of 8 bits 3, also to be read in one."""
        if isinstance(raw, Tensor):
            return len(raw)
        if self.channels not in (OWN, 1):
            return self.channels
        if self.channels == 1 and is_wide_png(raw):
            return 1  # its grey has 16 bits
        own = own_channels(raw)
        return own if self.channels == OWN or own == 1 else 3

    def _resized(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short <= self.short_side:
            return image
        width, height = (max(1, round(side * self.short_side / short)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)


def _whole(raw: bytes | Tensor) -> tuple[str, bytes]:
    """The ending and the bytes of an image of other channels: of a file its own, of an object an array's."""
    if isinstance(raw, bytes):
        # What else is decoded has its name behind the length of its first block.
        other = ".avif" if raw[8:12] in (b"avif", b"avis") else ".heic"
        return _ending(raw, _KEPT | _OTHERS) or other, raw
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(raw.permute(1, 2, 0).numpy()))
    return ARRAY, file.getvalue()


def _ending(raw: bytes, endings: Mapping[bytes, str]) -> str | None:
    return next((ending for begin, ending in endings.items() if raw.startswith(begin)), None)


def _encoded(image: Image.Image, form: str, **how: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


class Written(NamedTuple):
    """A shard that was written."""

    path: Path
    size: int  # bytes of its images
    channels: Counter[int]  # that images are kept for → how many are


def write_shards(
    folder: Path, name: str, images: ImageSet, targets: Sequence[int] | None, packing: Packing, threads: int
) -> list[Written]:
    """Write NAME-000000.tar and so on. UserError where some images would be arrays, which shards hold alone."""
    order = np.random.default_rng(packing.seed).permutation(len(images)).tolist()
    keys, written = keys_of(images), Shards(folder, name, packing.most)
    first: dict[bool, int] = {}  # whether it is an array → row
    with Progress(len(images), label=f"packing {name}") as progress:
        try:
            found = in_threads(lambda row: packing.image(images.raw(row)), order, threads)
            for row, image in zip(order, found, strict=True):
                first.setdefault(image.ending == ARRAY, row)
                if len(first) > 1:
                    _refuse_mixed(images, first)
                label = [] if targets is None else [(f"{keys[row]}.cls", str(targets[row]).encode())]
                written.add([(keys[row] + image.ending, image.content), *label], image)
                progress.update()
        finally:
            written.close()
    return written.files


def _refuse_mixed(images: ImageSet, first: Mapping[bool, int]) -> NoReturn:
    array, picture = (images.names[first[is_array]] for is_array in (True, False))
    raise UserError(
        f"{images.source.root}: {array} is an array ({ARRAY}) and {picture} a picture, and in shards as in folders "
        "arrays beside pictures are no images; pack them apart"
    )


class Shards:
    """Tar files that are written one after the other."""

    def __init__(self, folder: Path, name: str, most: int) -> None:
        self.files: list[Written] = []
        self._folder, self._name, self._most = folder, name, most
        self._tar: tarfile.TarFile | None = None

    def add(self, members: Sequence[tuple[str, bytes]], image: Packed) -> None:
        """Names and contents that belong together, those of an image."""
        needed = sum(len(content) + 1024 for _, content in members) + 10240
        if self._tar is None or (self._tar.offset and self._tar.offset + needed > self._most):
            self.close()
            path = self._folder / f"{self._name}-{len(self.files):06}{SHARD}"
            self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115
            self.files.append(Written(path, 0, Counter()))
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            self._tar.addfile(member, io.BytesIO(content))
        path, before, channels = self.files[-1]
        self.files[-1] = Written(path, before + len(image.content), channels + Counter([image.channels]))

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
    decode(first, channels=packing.channels)  # what is made once
    pairs = [Gain(*(_seconds(raw, packing.channels) for raw in pair)) for pair in _both(images, rows, packing)]
    return Gain(*(sum(times) / len(pairs) for times in zip(*pairs, strict=True)))


def _both(images: ImageSet, rows: Sequence[int], packing: Packing) -> Iterator[tuple[bytes, bytes]]:
    for row in rows:
        raw = images.raw(row)
        assert isinstance(raw, bytes)
        yield raw, packing.image(raw).content


def _seconds(raw: bytes, channels: int) -> float:
    began = time.thread_time()
    decode(raw, least_side(_CROP, _SCALE), channels)
    return time.thread_time() - began
