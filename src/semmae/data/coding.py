"""What the numbers in annotation files stand for: classes 0 to K - 1, and what is ignored.

Notable here:
- inside, 255 is what nobody is asked about, whatever the files call it;
- where 0 and 255 are all that the files of a data set hold, as programs that draw write two classes, both are classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semmae.errors import UserError, listed
from semmae.names import shown

IGNORED = 255  # in labels: neither trained on nor measured

Labels = npt.NDArray[np.uint8]

_log = logging.getLogger("semmae")


@dataclass(frozen=True)
class Coding:
    """How the numbers in annotation files are meant."""

    ignore: int = IGNORED  # the number of what is to be ignored
    reduce_zero: bool = False  # 0 is to be ignored too, and class k is written as k + 1 (ADE20K)
    binary: bool = False  # there are two classes, written as 0 and 255; nothing is ignored

    @property
    def table(self) -> Labels:
        """Number in the file → label, uint8 (256,)."""
        table = np.arange(256, dtype=np.uint8)
        if self.binary:
            table[IGNORED] = 1
            return table
        if self.reduce_zero:
            table = np.roll(table, 1)
            table[0] = IGNORED
        table[self.ignore] = IGNORED
        return table

    @property
    def unasked(self) -> set[int]:
        """The numbers that are no class."""
        if self.binary:
            return set()
        return {self.ignore, 0} if self.reduce_zero else {self.ignore}


def coding_of(
    root: Path,
    coding: Coding,
    counts: Sequence[npt.NDArray[np.int64]],
    named: tuple[Path, Mapping[int, str]] | None,
) -> Coding:
    """The coding that was asked for, or, where 0 and 255 are all that the annotations hold, that of two classes.

    One that ignores 0 is kept. `counts`: pixels of every number in the files of each split, (256,); `named`: the file
    that names classes, and number in the annotations → name.
    """
    both, found = {0, IGNORED}, set(np.flatnonzero(np.sum(counts, 0)).tolist())
    if 0 in coding.unasked or not found <= both:
        return coding
    if named and named[1].keys() == both:
        return replace(coding, binary=True)
    if found != both:
        return coding
    if named:
        raise UserError(
            f"{root}: the annotations hold 0 and {IGNORED} only, and {named[0].name} names "
            f"{listed(sorted(named[1]), 5)}; "
            f'name these two, {{"0": "background", "{IGNORED}": "object"}}, or write the class as another number'
        )
    _log.warning("%s: the annotations hold 0 and %d only: these are two classes, nothing is ignored", root, IGNORED)
    return replace(coding, binary=True)


def names_of(
    root: Path,
    coding: Coding,
    counts: Sequence[npt.NDArray[np.int64]],
    named: tuple[Path, Mapping[int, str]] | None,
) -> tuple[str, ...]:
    """Names of the classes 0 to K - 1: those of the folder, or else the numbers that the annotations hold."""
    if coding.binary:
        both = named[1] if named else {}
        return both.get(0, "0"), both.get(IGNORED, str(IGNORED))
    found = [set(np.flatnonzero(numbers).tolist()) - coding.unasked for numbers in counts]
    if not all(found):
        raise UserError(
            f"{root}: the annotations of a split hold nothing but what is ignored, {listed(sorted(coding.unasked))}; "
            "see --ignore-index, --reduce-zero-label"
        )
    classes = sorted(set.union(*found))
    if classes[-1] == IGNORED:
        raise UserError(
            f"{root}: an annotation holds {IGNORED}, which can be no class; give --ignore-index {IGNORED} to ignore it "
            "(with --reduce-zero-label, to ignore 0 too), or write it as another number"
        )
    if named is None:
        known: Mapping[int, str] = {number: str(number) for number in range(classes[-1] + 1)}
    else:
        path, known = named
        beyond = [number for number in classes if number not in known]
        if beyond:
            raise UserError(
                f"{root}: the annotations hold {listed(beyond, 5)}, which {path.name} does not name (it names "
                f"{min(known)} to {max(known)}); add the names, or give --ignore-index or --reduce-zero-label"
            )
    first = int(coding.reduce_zero)
    names = tuple(known.get(number, str(number)) for number in range(first, max(known) + 1))
    if len(names) < 2:
        remedy = "; 0 is a class too without --reduce-zero-label" if first else ""
        raise UserError(f"{root}: a single class ({shown(names[0])}); annotations must hold at least two{remedy}")
    return names
