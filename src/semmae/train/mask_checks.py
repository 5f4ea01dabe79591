"""What of a masking would fail at the first step, refused before anything is written or trained."""

import dataclasses
import math

import torch

from semmae.errors import UserError
from semmae.masking import num_hidden, num_hints
from semmae.options.functions import function_at
from semmae.options.maskings import MASKINGS
from semmae.options.values import check_choice
from semmae.sizes import Grid, Size, num_patches, size_text
from semmae.train.masks import MaskContext, draw_mask


def check_masking(masking: str, *, patches: int, ratio: float, hint: float, part_hints: int = 0) -> None:
    """Refuse a masking that is neither known nor a function, and shares that hide or show no patch of so many."""
    if ":" in masking:
        function_at(masking, "--masking")
    else:
        check_choice("masking", masking, MASKINGS)
    hidden = num_hidden(patches, ratio)
    if masking in MASKINGS and MASKINGS[masking].hints:
        num_hints(patches, hidden, hint)
    if masking in MASKINGS and MASKINGS[masking].reads == "parts" and part_hints > patches - hidden:
        raise UserError(
            f"--hints {part_hints}: the mask ratio {ratio} leaves {patches - hidden} of all {patches} patches visible; "
            "use at most so many, or a smaller ratio"
        )


def patches_taking_part(masking: str, image_size: Size, patch_size: int, token_subset: int | None) -> int:
    """Patches of an image that are encoded or predicted."""
    patches = num_patches(image_size, patch_size)
    if token_subset is None:
        return patches
    if token_subset > patches:
        raise UserError(
            f"--token-subset {token_subset}: images of {size_text(image_size)} pixels have {patches} patches of "
            f"{patch_size}; give at most so many, or leave it out for all"
        )
    if masking in MASKINGS and MASKINGS[masking].whole_grid:
        raise UserError(
            f"--token-subset leaves gaps in the grid, and --masking {masking} hides {MASKINGS[masking].words}; leave "
            "one out"
        )
    return token_subset


def try_mask(
    function: str, *, grid: Grid, ratio: float, token_subset: int | None, labels: int, seed: int, has_parts: bool
) -> None:
    """Call one's own mask function, `package.module:name`, once, before anything is written or trained.

    It is given labels and scores made up, where it will be given part labels and attention (`has_parts`).
    """
    patches = math.prod(grid)
    context = MaskContext((2, patches), ratio, 0.0, torch.Generator().manual_seed(seed), labels, whole=grid)
    if has_parts:
        parts = (torch.arange(2 * patches) % labels).view(2, patches)
        context = dataclasses.replace(context, parts=parts, attention=context.uniform())
    if token_subset is not None:
        context = context.most_attended(token_subset)
    draw_mask(function, context)
