"""Part labels as PNG files, for use elsewhere: one an image, under its name, in the colours of our pictures."""

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from semmae.data.crop import at_centres
from semmae.data.manifest import ImageSet
from semmae.data.naming import companion_names
from semmae.data.part_store import PartStore
from semmae.data.workers import in_threads
from semmae.errors import UserError
from semmae.files import is_part, make_folder, read_json, write_bytes, write_json
from semmae.names import shown
from semmae.progress import Progress
from semmae.reporting.pictures import label_colours
from semmae.run.places import check_place

_ABOUT = "labels.json"
_BACKGROUND = (0, 0, 0)

Size = Literal["grid", "image"]


@dataclass(frozen=True)
class _Export:
    store: PartStore
    images: ImageSet
    folder: Path
    size: Size
    palette: list[int]


def export_labels(store: PartStore, images: ImageSet, folder: Path, size: Size = "grid", workers: int = 2) -> None:
    """Write every image's labels as an 8-bit PNG with a palette: pixel value = label.

    The same folders and names as the images have; for a row of a table, its number. `size` is that of the stored
    cells, or of the image. Beside them `labels.json` has names and colours of the labels. PNGs that are there already
    stay, so that an export which was stopped is resumed.
    """
    colours = [colour or _BACKGROUND for colour in label_colours(store.label_names)]
    about = {
        "size": size,
        "label_names": store.label_names,
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours],
        "labels": store.digests,
    }
    _begin(folder, about)
    export = _Export(store, images, folder, size, [value for colour in colours for value in colour])
    names = companion_names(images.names, ".png")
    todo = [(row, name) for row, name in enumerate(names) if not (folder / name).exists()]
    with Progress(len(todo), "images", "labels as PNG") as progress:
        # Threads: decoding and compressing free the interpreter's lock.
        for _ in in_threads(partial(_write, export), todo, workers):
            progress.update()


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds other things than an export, or cannot be written in; nothing is written."""
    check_place("--export-png", folder)
    others = [path for path in folder.iterdir() if not is_part(path)] if folder.is_dir() else []
    if others and not (folder / _ABOUT).is_file():
        raise UserError(f"{folder}: holds other files; give a new folder for the PNGs")


def _begin(folder: Path, about: dict[str, Any]) -> None:
    check_folder(folder)
    path = folder / _ABOUT
    if path.is_file():
        found = read_json(path)
        changed = [
            f"{name} {shown(found.get(name))}, not {shown(about[name])}"
            for name in about
            if found.get(name) != about[name]
        ]
        if changed:
            raise UserError(f"{folder}: holds other labels ({'; '.join(changed)}); give another folder")
        return
    make_folder(folder)
    write_json(path, about)


def _write(export: _Export, place: tuple[int, str]) -> None:
    row, name = place
    labels = np.asarray(export.store.labels[row])
    if export.size == "image":
        labels = at_centres(labels, *export.images.read(row).shape[1:])
    picture = Image.fromarray(labels)
    picture.putpalette(export.palette)
    content = BytesIO()
    picture.save(content, "PNG", optimize=True)
    write_bytes(export.folder / name, content.getvalue())
