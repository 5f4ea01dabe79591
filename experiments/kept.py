"""A mask of one's own for experiment B: of objects more stays visible than of the background.

MILAN (arXiv 2208.06049) leaves visible what a teacher attends to, where its tokens are predicted: what
tells most of an image is what the others are predicted from. Here parts say what that is.
"""

import torch
from torch import Tensor

from semmae import MaskContext, hide_highest, num_hidden

_WEIGHT = 3.0  # of a patch of an object, beside one of the background


def objects(context: MaskContext) -> Tensor:
    """Hide patches by chance, those of objects less often than those of the background: bool (B, L), True = hidden."""
    assert context.parts is not None, "give --parts"
    weights = torch.where(context.parts > 0, _WEIGHT, 1.0)
    # The lowest of these are a draw by weight without return (Efraimidis and Spirakis, 2006).
    waits = -context.uniform().clamp(min=1e-9).log() / weights
    return hide_highest(waits, num_hidden(context.shape[1], context.ratio))
