"""Sizes that a file claims: checked, value by value, before anything is built by them."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from semmae.errors import listed
from semmae.names import shown
from semmae.sizes import Size, read_size, sides

# No width, side, depth or number of parts comes near; what is below it is checked against the tensors themselves.
MOST = 2**20
MOST_BLOCKS = 1000  # the deepest Vision Transformers have under a hundred

SpecT = TypeVar("SpecT")


def read_spec(kind: type[SpecT], values: Any) -> SpecT:
    """A frozen dataclass of sizes out of what JSON held, lists for tuples; ValueError where it does not fit."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{shown(values)} in place of sizes by name")
    hints = get_type_hints(kind)
    needed = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    faults = {
        "missing": [name for name in needed if name not in values],
        "unknown": [shown(name) for name in values if name not in hints],
    }
    found = [f"{fault}: {listed(names)}" for fault, names in faults.items() if names]
    if found:
        raise ValueError(f"sizes {'; '.join(found)}")
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


def check_count(name: str, value: Any) -> int:
    """A size; ValueError where it is no whole number from 0 to a million, of blocks to a thousand."""
    most = MOST_BLOCKS if name == "depth" else MOST
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} is {shown(value)}, not a whole number from 0 to {most}")
    return value


def _checked(name: str, value: Any, hint: Any) -> Any:
    if hint == Size:
        try:
            size = read_size(value)
        except ValueError as error:
            raise ValueError(f"{name} is {shown(value)}, {error}") from None
        for side in sides(size):
            check_count(name, side)
        return size
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple) or (kinds[-1] is not ... and len(value) != len(kinds)):
            raise ValueError(f"{name} is {shown(value)}, not a list of the right length")
        return tuple(_checked(name, one, kinds[0]) for one in value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {shown(value)}; one of {listed(map(str, get_args(hint)), 9)}")
        return value
    if hint is int:
        return check_count(name, value)
    if hint is float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name} is {shown(value)}, not a number")
        return value
    assert hint in (str, bool), hint
    if not isinstance(value, hint):
        raise ValueError(f"{name} is {shown(value)}, not a {'text' if hint is str else 'truth'}")
    return value
