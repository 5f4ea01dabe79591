"""Data given as Python objects: what a run's options may record of them, and what messages call them.

Standard library only: options are checked before anything that computes is imported.
"""

import os
from collections.abc import Mapping

_MOST = 40  # letters of a class's name in a message


def recordable(data: object) -> str | list[str] | None:
    """What `config.yaml` can hold of `data`, so that a run resumes by itself: a path, or a list of paths, else None."""
    if isinstance(data, list | tuple):
        paths = [_path(item) for item in data]
        return None if None in paths else [path for path in paths if path is not None]
    return _path(data)


def described(data: object) -> str:
    """A path as it is; of anything else what it is: "ImageFolder of 300 images", "list of 20 paths"."""
    recorded = recordable(data)
    if isinstance(recorded, str):
        return recorded
    kind = type(data).__name__[:_MOST]
    try:
        count = len(data)  # type: ignore[arg-type]
    except Exception:  # of a foreign class: many have none, some raise what they like
        return kind
    unit = "path" if recorded else "split" if isinstance(data, Mapping) else "image"
    return f"{kind} of {count} {unit}{'' if count == 1 else 's'}"


def _path(item: object) -> str | None:
    path = os.fspath(item) if isinstance(item, str | os.PathLike) else None
    return path if isinstance(path, str) else None
