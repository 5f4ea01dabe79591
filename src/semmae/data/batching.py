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

    Lists of views (3, H, W) become one tensor (B, views, 3, H, W). Of what was drawn for their colours, all at once,
    `Changes` are made.
    """
    pictures = _PICTURES & items[0].keys()
    batch = default_collate([{name: value for name, value in item.items() if name not in pictures} for item in items])
    batch |= {name: changes_of(batch[name]) for name in _CHANGES & items[0].keys()}
    return {**batch, **{name: _stacked([item[name] for item in items]) for name in pictures}}


def _stacked(pictures: Sequence[Tensor | list[Tensor]]) -> Tensor:
    """Pictures, or lists of as many views of each, of a batch: each is copied once."""
    views = [view for each in pictures for view in (each if isinstance(each, list) else [each])]
    stacked: Tensor = default_collate([view.movedim(-3, -1) for view in views])  # where processes load, shared at once
    count = (-1,) if isinstance(pictures[0], list) else ()
    return stacked.view(len(pictures), *count, *stacked.shape[1:]).movedim(-1, -3)
