"""Images that Python objects give item by item: map-style data sets, lists of images, as uint8 (3, H, W).

An item is an image, (image, label) or {"image": …, "label": …}. A hash of its pixels stands where files have a size, so
that the digest of a manifest covers them. A data set that draws (random crops) has another digest each time, and is
refused: crops and flips are drawn here, by seed, epoch and row.
"""

import pickle
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.data.compact import Labels, Names, Rows
from semmae.data.decode import picture_channels, pixels_of
from semmae.data.deep import OWN, own_count, planes_of
from semmae.data.parquet import classes_of
from semmae.data.workers import start_worker
from semmae.errors import UserError, listed, one_line, reason
from semmae.names import shown
from semmae.objects import described
from semmae.progress import Progress

_IMAGES = "give PIL images, uint8 arrays (height, width, 3), or uint8 or 0-to-1 float tensors (3, height, width)"
_IN_PICTURES = (1, 2, 4)  # channels, but for three, that a picture of Pillow's may have
_BATCH = 32  # rows that a process reads between two messages
_FEWEST = 64  # rows from which on processes are started to read them
_TWICE = 8  # rows that are read again, to see whether they stay
_ROUNDING = 1e-3  # by which a float may lie outside of 0 to 1


class Examined(NamedTuple):
    """What reading an item showed."""

    stamp: int = 0  # hash of the pixels
    label: object = None
    unreadable: str = ""  # why
    fault: str = ""  # why the data set is none of images


class ItemSource:
    """The items of a map-style object, uint8 (3, H, W). Classes and stamps are known once they are examined."""

    modified: npt.NDArray[np.int64]
    class_remedy = "give each image its class, as a pair (image, label)"
    shards = None

    def __init__(self, items: Any, rows: Rows | None = None) -> None:
        self._items = items
        self._rows = np.asarray(range(len(items)) if rows is None else rows, dtype=np.int64)
        self.channels = 3  # that images are read in
        self.root, self.key, self.class_note = Path(described(items)), "", ""  # without a key nothing is remembered
        self.names = Names(str(row) for row in self._rows)
        self.labels: Labels | None = None
        self.sizes, self.modified = (np.zeros(len(self._rows), dtype=np.int64) for _ in range(2))

    def __len__(self) -> int:
        return len(self._rows)

    def select(self, rows: Rows) -> "ItemSource":
        chosen = ItemSource(self._items, self._rows[np.asarray(rows, dtype=np.int64)])
        chosen.channels = self.channels
        return chosen

    def read(self, i: int) -> Tensor:
        """uint8 (3, H, W) of row i. ValueError where it cannot be read, UserError where it is no image."""
        return self._item(i)[0]

    def examine(self, workers: int) -> dict[int, str]:
        """Read each item once: row → why it cannot be read. Labels and stamps are kept."""
        found: list[Examined] = []
        with Progress(len(self), label=f"checking {self.root}") as progress:
            for batch in self._batches(workers):
                fault = next((examined.fault for examined in batch if examined.fault), None)
                if fault is not None:
                    raise UserError(fault)
                found += batch
                progress.update(len(batch))
        unreadable = {row: examined.unreadable for row, examined in enumerate(found) if examined.unreadable}
        self.sizes = np.array([examined.stamp for examined in found], dtype=np.int64)
        self._check_that_images_stay([row for row in range(len(self)) if row not in unreadable])
        self._keep_labels(found, unreadable)
        return unreadable

    def examined(self, i: int) -> Examined:
        try:
            pixels, label = self._item(i)
        except UserError as error:
            return Examined(fault=str(error))
        except ValueError as error:
            return Examined(unreadable=str(error))
        shape, planes = np.array(pixels.shape, dtype="<i8"), np.ascontiguousarray(pixels.numpy())
        digest = blake2b(shape.tobytes() + planes.tobytes(), digest_size=8).digest()
        return Examined(int.from_bytes(digest, "little", signed=True), _cell(label))

    def _examined(self, rows: Sequence[int]) -> list[Examined]:
        return [self.examined(row) for row in rows]

    def _item(self, i: int) -> tuple[Tensor, object]:
        row = int(self._rows[i])
        try:
            item = self._items[row]
        except Exception as error:  # of a foreign class: whatever it raises for a damaged file
            raise ValueError(f"{type(error).__name__}: {one_line(error)}"[:120]) from error
        place = f"{self.root}: item {row}"
        image, label = _image_and_label(item, place)
        return pixels(image, place, self.channels), label

    def _batches(self, workers: int) -> "DataLoader[Any]":
        # Images of a list are loaded here, once: processes would share the places in files that Pillow has open.
        here = isinstance(self._items, list | tuple | np.ndarray | Tensor) or len(self) < _FEWEST
        rows: Any = range(len(self))
        return DataLoader(
            rows,
            batch_size=_BATCH,
            num_workers=0 if here else workers,
            collate_fn=self._examined,
            generator=torch.Generator(),  # its own: the global random numbers stay where they are
            worker_init_fn=start_worker,
        )

    def _check_that_images_stay(self, rows: Sequence[int]) -> None:
        for row in rows[:: max(1, len(rows) // _TWICE)][:_TWICE]:
            if self.examined(row).stamp != self.sizes[row]:
                raise UserError(
                    f"{self.root}: item {self.names[row]} is another image each time that it is read; leave random "
                    "transforms out: crops and flips are drawn in training"
                )

    def _keep_labels(self, found: Sequence[Examined], unreadable: Mapping[int, str]) -> None:
        kept = [row for row in range(len(self)) if row not in unreadable]
        if all(found[row].label is None for row in kept):
            return
        classes = getattr(self._items, "classes", None)
        known = (
            classes if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes) else None
        )
        labels, self.class_note = classes_of([found[row].label for row in kept], self.names.take(kept), known)
        if labels is not None:
            of_row = dict(zip(kept, labels, strict=True))
            self.labels = Labels(of_row.get(row, "") for row in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """As processes that are started anew, not forked, get it; UserError where the object cannot be sent."""
        try:
            sent = bytes(ForkingPickler.dumps(self._items))
        except Exception as error:  # whatever a foreign class raises
            raise UserError(
                f"{self.root}: cannot be sent to other processes ({reason(error)}); give workers=0, or let it hold "
                "nothing that cannot be pickled, such as a lambda or an open file"
            ) from error
        return {**self.__dict__, "_items": sent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_items": pickle.loads(state["_items"])}


def _image_and_label(item: object, place: str) -> tuple[object, object]:
    if isinstance(item, Mapping):
        if "image" not in item:
            raise UserError(f'{place} holds {listed(item)}, and no "image"; name the image so')
        return item["image"], item.get("label")
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise UserError(f"{place} holds {len(item)} values; give the image, or (image, label)")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _cell(label: object) -> object:
    """A label as a cell of a table would hold it; of what is no label its type, in a list, which is none either."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        label = label.item()
    return label if label is None or isinstance(label, str | int | float) else [type(label).__name__]


def pixels(image: object, place: str, channels: int = 3) -> Tensor:
    """uint8 (3, H, W) of a picture, an array or a tensor, in memory of its own; a pixel's bytes lie side by side.

    Of another number of channels uint16 (C, H, W), see `semmae.data.deep`. Of `OWN` channels are RGB and grey of 8 bits
    alone; others are refused, because how they are to be read was not said.
    """
    if channels == OWN:
        own = _own_channels(image)
        if own != 3:
            fault = f"{place} has {own} channels" if own > 1 else f"{place} is grey of 16 bits"
            raise UserError(f"{fault}, and RGB of 8 bits would not hold it; use --channels {own}, or 3 for RGB")
    elif channels != 3:
        return _deep_pixels(image, place, channels)
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or image.shape[2:] in ((1,), (3,), (4,))):
            _refuse_kind(image, place)
        return pixels_of(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
    if not isinstance(image, Tensor):
        _refuse_kind(image, place)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        _refuse_kind(image, place)
    planes = image.detach().as_subclass(Tensor).cpu()
    if planes.dtype.is_floating_point:
        planes = planes.float()
        low, high = float(planes.min()), float(planes.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise UserError(
                f"{place} is a tensor from {low:.3g} to {high:.3g}, limits 0 and 1; leave Normalize out: images are "
                "normalised as the encoder needs them"
            )
        planes = (255 * planes).round().clamp(0, 255).to(torch.uint8)
    if planes.dtype != torch.uint8:
        _refuse_kind(image, place)
    return planes.expand(3, -1, -1).permute(1, 2, 0).clone(memory_format=torch.contiguous_format).permute(2, 0, 1)


def _own_channels(image: object) -> int:
    """As `own_channels` of an encoded image; 3 of what is none, which is refused as such."""
    if isinstance(image, Image.Image):
        return picture_channels(image)
    if isinstance(image, Tensor) and image.ndim == 3:
        return own_count(image.shape[0], 16 if image.dtype == torch.uint16 else 8)
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return own_count(image.shape[2] if image.ndim == 3 else 1, 16 if image.dtype == np.uint16 else 8)
    return 3


def _deep_pixels(image: object, place: str, channels: int) -> Tensor:
    try:
        if isinstance(image, Image.Image):
            return pixels_of(image, channels)
        array = image
        if isinstance(image, Tensor) and image.ndim == 3 and image.dtype in (torch.uint8, torch.uint16):
            array = image.detach().as_subclass(Tensor).cpu().permute(1, 2, 0).numpy()
        known = isinstance(array, np.ndarray) and array.dtype in (np.uint8, np.uint16)
        if isinstance(array, np.ndarray) and known and array.ndim in (2, 3) and array.size:
            return planes_of(array, channels)
    except ValueError as error:
        raise UserError(f"{place}: {error}; {taken(channels)}") from error
    _refuse_kind(image, place, channels)


def _refuse_kind(image: object, place: str, channels: int = 3) -> NoReturn:
    kind = f"{shown(image)}, of type {type(image).__name__}"
    if isinstance(image, Tensor | np.ndarray):  # of which the numbers say nothing
        name = "a tensor" if isinstance(image, Tensor) else "an array"
        kind = f"{name} of {str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
    raise UserError(f"{place} is {kind}; {taken(channels)}")


def taken(channels: int) -> str:
    """What is an image of so many channels, in words."""
    if channels == 3:
        return _IMAGES
    pictures = "PIL images, " if channels in _IN_PICTURES else ""
    kinds = f"{pictures}arrays (height, width, {channels}) or tensors ({channels}, height, width)"
    return f"give {kinds}, of uint8 or uint16 from 0 to their highest number"
