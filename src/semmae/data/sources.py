"""Where images come from: a folder, a glob, Parquet files, the hub. A source lists and reads, never decodes.

| `data`                       | names               | classes                            | splits           |
|------------------------------|---------------------|------------------------------------|------------------|
| folder of any depth, glob    | path below the root | first folder (second, after split) | `train/`, `val/` |
| Parquet file, folder of them | `file.parquet#row`  | column `label`                     | `train*`, `val*` |
| `hf:NAME`                    | `split#row`         | column `label`                     | those of the hub |
| `https://…/FILE.parquet`     | `FILE.parquet#row`  | column `label`                     | none             |
| CUB-200-2011 …, `layouts.py` | path below the root | by its own files                   | by its own files |
| `FILE.txt`, `FILE.csv`       | path below a folder | column `label`                     | none             |
| Python objects               | see `from_python`   |                                    | of a DatasetDict |
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from semmae.data.compact import Labels
from semmae.data.endings import counted, ending, sort_files
from semmae.data.folders import file_source, find_files, first_folders, open_folder, refuse_imageless, user_place
from semmae.data.from_python import open_object, tables_of
from semmae.data.layouts import Listing, find_listing
from semmae.data.lists import is_list, open_list
from semmae.data.parquet import is_address, load_hub, load_remote, open_parquet, open_tables, parquet_splits
from semmae.data.selection import Source
from semmae.data.splits import check_whole, has_both
from semmae.errors import UserError
from semmae.names import user_path

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger("semmae")


def open_source(data: object, split: str | None = None) -> Source:
    """The images of `data`, all or those of one split ("train" or "val"). UserError when there are none."""
    if not isinstance(data, str | os.PathLike):
        return open_object(data, split)
    text = os.fspath(data)
    tables = _network_tables(text)
    if tables is not None:
        return open_tables(tables, split, text, key=text, beside=None)
    listing = find_listing(user_place(text))
    if listing is not None:
        return _open_listing(listing, split)
    if is_list(user_place(text)):
        if split is not None:
            raise UserError(f"{data}: no {split!r} split, for a list has none; give a folder with train and val")
        return open_list(user_place(text))
    root, files = find_files(text)
    found = sort_files(files)
    if found.tables and found.decoded:
        raise UserError(
            f"{text}: holds {found.decoded} image files and {len(found.tables)} Parquet files; give one kind only, "
            f'such as "{text}/**/*{os.path.splitext(found.images[0])[1]}" or "{text}/**/*.parquet"'
        )
    if not found.images and not found.tables:
        refuse_imageless(text, files)
    others = found.others + Counter(map(ending, found.images if found.tables else ()))
    if others:
        count = others.total()
        passed = f"{count} files passed over that are no images" if count > 1 else "1 file passed over that is no image"
        _log.info("%s: %s: %s", text, passed, counted(others))
    if found.tables:
        return open_parquet(root, found.tables, split, text)
    return open_folder(root, found.images, split, text)


def has_split(data: object) -> bool:
    """Whether `data` holds both a training and a validation split."""
    return has_both(split_names(data))


def splits_of(data: object) -> tuple[str | None, ...]:
    """The splits to open: ("train", "val") where `data` holds both, else (None,), which stands for all images.

    A folder that is a split and lacks its counterpart is refused; a file, a pattern or an object means what it says.
    """
    names = split_names(data)
    if isinstance(data, str | os.PathLike) and user_path(data, "--data").is_dir():
        check_whole(names, os.fspath(data))
    return ("train", "val") if has_both(names) else (None,)


def split_names(data: object) -> set[str]:
    """What may be names of splits in `data`: its first folders, or the splits of its tables or of its own files."""
    if not isinstance(data, str | os.PathLike):
        return set(tables_of(data) or ())
    text = os.fspath(data)
    tables = _network_tables(text)
    if tables is not None:
        return set(tables)
    listing = find_listing(user_place(text))
    if listing is not None:
        return set(listing.splits)
    if is_list(user_place(text)):
        return set()
    found = sort_files(find_files(text)[1])
    return set(parquet_splits(found.tables).values()) if found.tables else first_folders(found.images)


def _network_tables(text: str) -> Mapping[str, "Dataset"] | None:
    """The tables of a name on the hub, or of an address; None where `text` means something on a disk."""
    if text.startswith("hf:") and not text.startswith("hf:/"):
        return load_hub(text)
    return load_remote(text) if is_address(text) and not os.path.lexists(text) else None


def _open_listing(listing: Listing, split: str | None) -> Source:
    names, labels = listing.rows(split)
    if labels is None:
        return file_source(listing.root, names, None, f"{listing.lacking} is missing; put it there")
    return file_source(listing.root, names, Labels(labels))
