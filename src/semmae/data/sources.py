"""Where images come from: a folder, a glob, Parquet files, the hub, tar shards. A source reads, and never decodes.

| `data`                       | names               | classes                            | splits           |
|------------------------------|---------------------|------------------------------------|------------------|
| folder of any depth, glob    | path below the root | first folder (second, after split) | `train/`, `val/` |
| Parquet file, folder of them | `file.parquet#row`  | column `label`                     | `train*`, `val*` |
| `hf:NAME`                    | `split#row`         | column `label`                     | those of the hub |
| `https://…/FILE.parquet`     | `FILE.parquet#row`  | column `label`                     | none             |
| tar shards, `shards.py`      | `shard.tar/member`  | `.cls`, `.json`, or first folder   | `train*`, `val*` |
| CUB-200-2011 …, `layouts.py` | path below the root | by its own files                   | by its own files |
| `FILE.txt`, `FILE.csv`       | path below a folder | column `label`                     | none             |
| Python objects               | see `from_python`   |                                    | of a DatasetDict |
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semmae.data.compact import Labels
from semmae.data.endings import Sorted, counted, ending, sort_files
from semmae.data.folders import file_source, find_files, first_folders, open_folder, refuse_imageless, user_place
from semmae.data.from_python import open_object, tables_of
from semmae.data.layouts import Listing, find_listing
from semmae.data.lists import is_list, open_list
from semmae.data.parquet import is_address, load_hub, load_remote, open_parquet, open_tables, parquet_splits
from semmae.data.selection import Source
from semmae.data.shard_places import Shard, local_shards, names_shards, remote_addresses, remote_shards
from semmae.data.shards import SHARD, open_shards, shard_splits
from semmae.data.splits import check_whole, has_both
from semmae.errors import UserError
from semmae.names import braced, has_braces, user_path

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger("semmae")


def open_source(data: object, split: str | None = None) -> Source:
    """The images of `data`, all or those of one split ("train" or "val"). UserError when there are none."""
    if not isinstance(data, str | os.PathLike):
        return open_object(data, split)
    text = os.fspath(data)
    shards = _shards_by_pattern(text)
    if shards is not None:
        return open_shards(shards[1], split, text, shards[0])
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
    shard_names = _shards_among(found, files)
    if shard_names:
        return open_shards(local_shards(root, shard_names, text), split, text, str(root))
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
    if _is_address(text) and names_shards(text):
        root, addresses = remote_addresses(text)
        return set(shard_splits(address[len(root) :] for address in addresses).values())
    shards = _shards_by_pattern(text)
    if shards is not None:
        return set(shard_splits(shard.name for shard in shards[1]).values())
    tables = _network_tables(text)
    if tables is not None:
        return set(tables)
    listing = find_listing(user_place(text))
    if listing is not None:
        return set(listing.splits)
    if is_list(user_place(text)):
        return set()
    files = find_files(text)[1]
    found = sort_files(files)
    shard_names = _shards_among(found, files)
    if shard_names:
        return set(shard_splits(shard_names).values())
    return set(parquet_splits(found.tables).values()) if found.tables else first_folders(found.images)


def _network_tables(text: str) -> Mapping[str, "Dataset"] | None:
    """The tables of a name on the hub, or of an address; None where `text` means something on a disk."""
    if text.startswith("hf:") and not text.startswith("hf:/"):
        return load_hub(text)
    return load_remote(text) if _is_address(text) else None


def _is_address(text: str) -> bool:
    """Whether this means a place in a network, and none on a disk."""
    return is_address(text) and not os.path.lexists(text)


def _shards_by_pattern(text: str) -> tuple[str, list[Shard]] | None:
    """The folder, and the tar shards in it, that an address means, or a path with braces; None for anything else."""
    if _is_address(text):
        return remote_shards(text) if names_shards(text) else None
    if not (text.endswith(SHARD) and has_braces(text)) or os.path.lexists(user_place(text)):
        return None
    paths = braced(str(user_place(text)))
    root = Path(os.path.commonpath([os.path.dirname(path) or "." for path in paths]))
    return str(root), local_shards(root, [os.path.relpath(path, root) for path in paths], text)


def _shards_among(found: Sorted, files: Sequence[str]) -> list[str]:
    """The tar shards among files; where there are images or tables beside, tar files are none."""
    return [] if found.images or found.tables else [name for name in files if ending(name) == SHARD]


def _open_listing(listing: Listing, split: str | None) -> Source:
    names, labels = listing.rows(split)
    if labels is None:
        return file_source(listing.root, names, None, f"{listing.lacking} is missing; put it there")
    return file_source(listing.root, names, Labels(labels))
