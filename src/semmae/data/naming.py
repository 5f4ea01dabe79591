"""Names of files that lie beside images: one a row, unique, at the same relative path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath


def companion_names(names: Sequence[str], suffix: str) -> list[str]:
    """Relative paths, in the order of `names`, of the files with this suffix that belong to images.

    | image                          | companion                                            |
    |--------------------------------|------------------------------------------------------|
    | `cat/1.jpg`                    | `cat/1.png`                                          |
    | `cat/2.jpg` beside `cat/2.gif` | `cat/2.jpg.png`, `cat/2.gif.png`                     |
    | `train.parquet#12`, `train#12` | `train.parquet/12.png`, `train/12.png`               |
    """
    stems = [_stem(name) for name in names]
    count = Counter(stems)
    short = [stem if count[stem] == 1 else name for name, stem in zip(names, stems, strict=True)]
    # `2.jpg` and `2.gif` beside `2.jpg.gif`: whole names are unique always.
    return [name + suffix for name in (short if len(set(short)) == len(short) else names)]


def _stem(name: str) -> str:
    table, mark, row = name.rpartition("#")
    if mark and row.isdigit():
        return f"{table}/{row}"
    return str(PurePosixPath(name).with_suffix(""))
