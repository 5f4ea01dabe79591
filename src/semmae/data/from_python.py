"""Images that Python objects give, in place of a path.

| object                                   | read as                  | names                      | classes        |
|------------------------------------------|--------------------------|----------------------------|----------------|
| list of paths                            | files                    | path below a common folder | none           |
| torchvision `ImageFolder`, no transform  | its files                | path below its root        | its `classes`  |
| Hugging Face `Dataset`, `DatasetDict`    | its table, bytes encoded | `split#row`                | column `label` |
| `torch.utils.data.Subset` of any of them | rows of that one         | as there                   | as there       |
| map-style data set, list of images       | `object[i]`, see `items` | `i`                        | of the items   |

The first three are read as if their path had been given: same pixels, same digest, the same part labels fit.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader

from semmae.data.compact import Labels
from semmae.data.items import ItemSource
from semmae.data.lists import open_paths
from semmae.data.parquet import open_tables
from semmae.data.selection import Selection, Source
from semmae.errors import UserError
from semmae.names import shown
from semmae.objects import described, recordable

_REMEDY = "give a path, a list of paths or of images, or a data set with a length whose items are images"

_log = logging.getLogger("semmae")


def open_object(data: object, split: str | None = None) -> Source:
    """The images that an object gives: all, or those of one split. UserError where it gives none."""
    tables = tables_of(data)
    if tables is not None:
        if any(table.format["type"] == "custom" for table in tables.values()):
            _log.info("%s: its transform is passed over, images are read as the table holds them", described(data))
        key = "datasets:" + ",".join(str(getattr(table, "_fingerprint", id(table))) for table in tables.values())
        return open_tables(tables, split, described(data), key=key, beside=Path.cwd())
    if split is not None:
        raise UserError(f"{described(data)}: no {split!r} split; give a DatasetDict, or a folder with train and val")
    if type(data) is Subset:
        return _open_subset(data)
    if isinstance(data, DatasetFolder) and _gives_plain_files(data):
        source = open_paths([path for path, _ in data.samples], described(data), within=Path(data.root))
        source.labels = Labels(data.classes[target] for _, target in data.samples)
        return source
    paths = recordable(data)
    if isinstance(paths, list) and paths:
        files = open_paths(paths, described(data))
        files.class_remedy = "give pairs (image, label), or a CSV file of path,label"
        return files
    return ItemSource(_checked(data))


def tables_of(data: object) -> Mapping[str, Any] | None:
    """Name of split → table, where `data` is of Hugging Face `datasets`: one that is not imported made no object."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(data, library.Dataset | library.DatasetDict):
        return None
    return data if isinstance(data, library.DatasetDict) else {str(data.split or "rows"): data}


def _gives_plain_files(data: DatasetFolder) -> bool:
    transforms = (data.transform, data.target_transform, data.transforms)
    own = type(data).__getitem__ is DatasetFolder.__getitem__ and data.loader is default_loader
    return own and all(transform is None for transform in transforms)


def _open_subset(data: "Subset[Any]") -> Source:
    source = open_object(data.dataset)
    rows, count = np.asarray(data.indices).ravel(), len(source)
    wrong = rows[(rows < -count) | (rows >= count)] if rows.dtype.kind in "iu" else rows
    if len(wrong):
        fault = f"row {shown(wrong[0].item())} of {count} images"
        raise UserError(f"{described(data)}: {fault}; give rows from 0 to {count - 1}")
    rows = rows.astype(np.int64) % count  # -1 is the last, as in a list
    found, counts = np.unique(rows, return_counts=True)
    if not len(rows) or counts.max() > 1:
        fault = f"row {found[counts.argmax()]} comes twice; give each once" if len(rows) else "empty; give some rows"
        raise UserError(f"{described(data)}: {fault}")
    return source.select(rows) if isinstance(source, ItemSource) else Selection(source, rows)


def _checked(data: Any) -> Any:
    """`data`, if it has a length and items; UserError if not."""
    text = described(data)
    if isinstance(data, DataLoader):
        raise UserError("DataLoader: gives batches; give its .dataset")
    # The last two: there is a method in all data sets of torch, and in classes.
    if isinstance(data, bytes | bytearray | Mapping | IterableDataset | type) or not hasattr(data, "__getitem__"):
        raise UserError(f"data {shown(data)}, of type {type(data).__name__}: is not read; {_REMEDY}")
    try:
        count = len(data)
    except Exception as error:
        raise UserError(f"data {shown(data)}, of type {text}: has no length; {_REMEDY}") from error
    if not count:
        raise UserError(f"{text}: empty; {_REMEDY}")
    if isinstance(data, list | tuple):
        is_path = [isinstance(item, str | os.PathLike) for item in data]
        if any(is_path):
            path, other = is_path.index(True), is_path.index(False)
            kind = type(data[other]).__name__
            raise UserError(f"{text}: item {path} is a path, item {other} of type {kind}; give one kind only")
    return data
