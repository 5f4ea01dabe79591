"""Where images come from: a folder, a glob, Parquet files, the hub. A source lists and reads, never decodes.

| `data`                       | names               | classes                            | splits           |
|------------------------------|---------------------|------------------------------------|------------------|
| folder of any depth, glob    | path below the root | first folder (second, after split) | `train/`, `val/` |
| Parquet file, folder of them | `file.parquet#row`  | column `label`                     | `train*`, `val*` |
| `hf:NAME`                    | `split#row`         | column `label`                     | those of the hub |
| CUB-200-2011 and its like    | path below the root | told by its files                  | told by its files |

The last are read as their authors pack them: see `data/layouts.py`.
"""

import logging
import os
from collections import Counter
from pathlib import Path

from semmae.data.compact import Labels
from semmae.data.endings import counted, ending, sort_files
from semmae.data.folders import file_source, find_files, first_folders, open_folder, refuse_imageless, user_place
from semmae.data.layouts import Listing, find_listing
from semmae.data.parquet import TableSource, open_hub, open_parquet, parquet_splits
from semmae.data.selection import Source
from semmae.data.splits import has_both
from semmae.errors import UserError

_log = logging.getLogger("semmae")


def open_source(data: str | Path, split: str | None = None) -> Source:
    """The images of `data`, all or those of one split ("train" or "val"). UserError when there are none."""
    text = str(data)
    if text.startswith("hf:") and not text.startswith("hf:/"):
        return open_hub(text, split)
    listing = find_listing(user_place(text))
    if listing is not None:
        return _open_listing(listing, split)
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
        told = f"{count} files passed over that are no images" if count > 1 else "1 file passed over that is no image"
        _log.info("%s: %s: %s", text, told, counted(others))
    if found.tables:
        return open_parquet(root, found.tables, split, text)
    return open_folder(root, found.images, split, text)


def has_split(data: str | Path) -> bool:
    """Whether `data` holds both a training and a validation split."""
    return has_both(split_names(data))


def split_names(data: str | Path) -> set[str]:
    """What may be names of splits in `data`: its first folders, or the splits of its tables or of its own files."""
    text = str(data)
    if text.startswith("hf:") and not text.startswith("hf:/"):
        source: TableSource = open_hub(text, None)
        return {name.split("#", 1)[0] for name in source.names}
    listing = find_listing(user_place(text))
    if listing is not None:
        return set(listing.splits)
    found = sort_files(find_files(text)[1])
    return set(parquet_splits(found.tables).values()) if found.tables else first_folders(found.images)


def _open_listing(listing: Listing, split: str | None) -> Source:
    names, labels = listing.rows(split)
    if labels is None:
        note = f"{listing.lacking} is missing; put it there"
        return file_source(listing.root, names, None, note)
    return file_source(listing.root, names, Labels(labels))
