"""Data given as Python objects: what a run's options may record of them, and what messages call them.

Standard library only: options are checked before anything that computes is imported.
"""

import os
from collections.abc import Mapping

_MOST = 80  # characters of what a message calls an object


def recordable(data: object) -> str | list[str] | None:
    """What `config.yaml` can hold of `data`, so that a run resumes by itself: a path, or a list of paths, else None."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data) if isinstance(os.fspath(data), str) else None
    if isinstance(data, list | tuple) and all(isinstance(item, str | os.PathLike) for item in data):
        return [str(os.fspath(item)) for item in data]
    return None


def described(data: object) -> str:
    """A path as it is; of anything else what it is: "ImageFolder of 300 images", "list of 20 paths"."""
    recorded = recordable(data)
    if isinstance(recorded, str):
        return recorded
    kind = type(data).__name__
    try:
        count = len(data)  # type: ignore[arg-type]
    except Exception:  # of a foreign class: many have none, some raise what they like
        return kind[:_MOST]
    unit = "paths" if recorded else "splits" if isinstance(data, Mapping) else "images"
    if count == 1:
        unit = unit[:-1]
    return f"{kind[: _MOST - 40]} of {count} {unit}"
