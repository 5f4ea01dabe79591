"""How much each place of an image is attended, as it is stored: ranks inside the image, one byte a cell.

Attention has a heavy tail; as ranks it fits one byte, and keeps what is read off it, an order of the patches.
"""

import torch
from torch import Tensor
from torch.nn import functional

from semmae.sizes import Grid, Size, sides, square

MOST_ATTENDED = 254  # the highest rank; 255 = not yet computed, as for labels
_MOST_CELLS = 14  # a side: 196 bytes, which with 784 of labels stay below 1 kB an image


def stored_side(side: Size) -> int:
    """Cells a side that attention over a grid of patches is stored on: as many as its longer side, at most 14."""
    return min(max(sides(side)), _MOST_CELLS)


def attention_ranks(attention: Tensor, grid: Grid | None = None) -> Tensor:
    """Attention (B, L) over a grid → uint8 (B, a, a), 0 to `MOST_ATTENDED`; a finer one is averaged first.

    Without a grid it is a square. The cells are those of the image stretched to one, as labels are.
    """
    grid = grid or square(attention.shape[1])
    cells = functional.adaptive_avg_pool2d(attention.float().reshape(-1, *grid), stored_side(grid))
    return ranks(cells.flatten(1)).view(cells.shape)


def ranks(scores: Tensor) -> Tensor:
    """Scores (B, L) → uint8 (B, L): the place in the ascending order of the row, spread over 0 to `MOST_ATTENDED`.

    Equal scores share the middle of their places: a row that is all the same is 127 throughout.
    """
    ascending = scores.sort(dim=1).values
    scores = scores.contiguous()
    below, upto = (torch.searchsorted(ascending, scores, right=right) for right in (False, True))
    steps = 2 * max(scores.shape[1] - 1, 1)  # twice the place is a whole number
    return (((below + upto - 1) * MOST_ATTENDED + steps // 2) // steps).to(torch.uint8)
