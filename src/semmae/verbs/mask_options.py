"""Options of what pre-training hides, what contradicts them, and what they make a run read."""

import dataclasses
from typing import cast

import torch

from semmae.errors import UserError
from semmae.masking import num_hidden, num_hints
from semmae.options.functions import function_at
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainOptions
from semmae.options.values import check_choice
from semmae.train.masks import BY_PARTS, CheckedMask, MaskContext, MaskFunction, Masking

WITHOUT_LABELS = tuple(masking for masking in MASKINGS if masking not in BY_PARTS)  # of a store these read none
_WITHOUT_STORE = tuple(masking for masking in WITHOUT_LABELS if masking != "attention")


def check_masking(options: PretrainOptions) -> None:
    """Refuse a masking that is neither known nor a function, and options that it does not read."""
    mask_source(options)
    if not reads_store(options) and (options.parts or options.teacher):
        raise UserError(
            f"--masking {options.masking} reads no parts; leave out --parts and --teacher, or choose semantic"
        )
    if options.masking == "attention":
        patches = patches_taking_part(options)
        num_hints(patches, num_hidden(patches, options.mask_ratio), options.attention_hint)


def try_own_mask(options: PretrainOptions, labels: int) -> None:
    """Call one's own mask function once, on labels and scores made up, before anything is written or trained.

    Raises:
        UserError: what it returns is no mask.
    """
    source = mask_source(options)
    if not callable(source):
        return
    patches = (options.image_size // options.patch_size) ** 2
    context = MaskContext((2, patches), options.mask_ratio, 0.0, torch.Generator().manual_seed(options.seed), labels)
    if options.parts or learns_parts(options):
        parts = (torch.arange(2 * patches) % labels).view(2, patches)
        context = dataclasses.replace(context, parts=parts, attention=context.uniform())
    if options.token_subset is not None:
        context = context.most_attended(options.token_subset)
    CheckedMask(source)(context)


def patches_taking_part(options: PretrainOptions) -> int:
    """Patches of an image that are encoded or predicted.

    Raises:
        UserError: --token-subset is more than there are, or a masking of the whole grid.
    """
    patches, subset = (options.image_size // options.patch_size) ** 2, options.token_subset
    if subset is None:
        return patches
    if subset > patches:
        raise UserError(
            f"--token-subset {subset}: images of {options.image_size} pixels have {patches} patches of "
            f"{options.patch_size}; give at most so many, or leave it out for all"
        )
    if options.masking == "block":
        raise UserError("--token-subset leaves gaps in the grid, and --masking block hides rectangles; leave one out")
    return subset


def reads_attention(options: PretrainOptions) -> bool:
    """Whether nothing can be masked without attention."""
    return options.masking == "attention" or options.token_subset is not None


def reads_store(options: PretrainOptions) -> bool:
    """Whether part labels or attention are read, if only by one's own function."""
    return options.masking not in _WITHOUT_STORE or reads_attention(options)


def mask_source(options: PretrainOptions) -> Masking | MaskFunction:
    """The masking of that name, or one's own function."""
    if ":" in options.masking:
        return function_at(options.masking, "--masking")
    check_choice("masking", options.masking, tuple(MASKINGS))
    return cast(Masking, options.masking)


def learns_parts(options: PretrainOptions) -> bool:
    """Whether part labels are made here. One's own mask function gets those that are asked for."""
    if options.parts is not None or not reads_store(options):
        return False
    return options.teacher is not None or options.masking in MASKINGS or reads_attention(options)
