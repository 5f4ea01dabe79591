"""Items → batches."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from semmae.data.colour import changes_of

_PICTURES = {"images", "image", "local"}  # of an item: uint8 (…, 3, H, W)
_CHANGES = {"changes", "local_changes"}  # of their colours, as drawn


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Items → a batch. Pictures stay as they were decoded, a pixel's three bytes side by side: a plain copy.

    Of what was drawn for their colours, all at once, `Changes` are made.
    """
    pictures = _PICTURES & items[0].keys()
    batch = default_collate([{**item, **{name: side_by_side(item[name]) for name in pictures}} for item in items])
    batch |= {name: changes_of(batch[name]) for name in _CHANGES & items[0].keys()}
    return {**batch, **{name: planes(batch[name]) for name in pictures}}


def side_by_side(planes: Tensor) -> Tensor:
    """(…, 3, H, W) → (…, H, W, 3), a view."""
    return planes.movedim(-3, -1)


def planes(pixels: Tensor) -> Tensor:
    """(…, H, W, 3) → (…, 3, H, W), a view."""
    return pixels.movedim(-1, -3)
