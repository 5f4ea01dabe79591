"""Which part of a data set is for training and which is held out, told by folder, file or hub names."""

from collections.abc import Iterable

from semmae.errors import UserError

TRAIN = ("train",)
# In order of preference: where there is no validation set, the test set is what results are told on.
VAL = ("val", "validation", "test")


def are_splits(names: Iterable[str]) -> bool:
    """Whether first-level names tell splits. `test` alone does not: it may be a class or any other folder."""
    return not {"train", "val", "validation"}.isdisjoint(names)


def find_split(split: str, names: Iterable[str]) -> str | None:
    """The name among `names` that stands for `split` ("train" or "val"), None when there is none."""
    if split not in ("train", "val"):
        raise ValueError(f'split must be "train" or "val", not {split!r}')
    available = set(names)
    return next((name for name in (TRAIN if split == "train" else VAL) if name in available), None)


def pick_split(split: str, names: Iterable[str], data: str) -> str:
    """As `find_split`; UserError when there is none."""
    names = sorted(set(names))
    found = find_split(split, names) if are_splits(names) else None
    if found is None:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "no folders"
        raise UserError(f"{data}: no {split!r} split, found {shown}; put the images into {data}/train and {data}/val")
    return found
