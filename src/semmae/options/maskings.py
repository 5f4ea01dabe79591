"""The maskings by name: what each hides, the function that draws it, and what options and loaders must know of it.

A new masking is a function in `semmae.train.masks` and a row here. Sources are in the docstring of `semmae.masking`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Masking:
    """A masking that has a name."""

    name: str
    function: str  # package.module:function, from a MaskContext to bool (B, L)
    words: str  # what is hidden
    reads: Literal["parts", "attention"] | None = None  # what a batch must have beside its images
    scheduled: bool = False  # the share of whole parts follows --gamma, or stays at --blend
    blend: float | None = None  # the share of whole parts, where it is always the same
    hints: bool = False  # --attention-hint leaves some of the most attended patches visible
    whole_grid: bool = False  # hides shapes, for which no patch of the grid may be missing (--token-subset)


_ROWS = (
    Masking(
        "semantic",
        "semmae.train.masks:semantic",
        "from a share of every part to whole parts",
        reads="parts",
        scheduled=True,
    ),
    Masking("intra", "semmae.train.masks:semantic", "a share of every part", reads="parts", blend=0.0),
    Masking("inter", "semmae.train.masks:semantic", "whole parts", reads="parts", blend=1.0),
    Masking("random", "semmae.train.masks:random", "any patches"),
    Masking("block", "semmae.train.masks:block", "rectangles", whole_grid=True),
    Masking("colour", "semmae.train.masks:colour", "blobs of filtered noise", whole_grid=True),
    Masking("attention", "semmae.train.masks:attention", "the most attended", reads="attention", hints=True),
)
MASKINGS: Mapping[str, Masking] = MappingProxyType({row.name: row for row in _ROWS})
