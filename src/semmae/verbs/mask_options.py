"""Options of what pre-training hides, what contradicts them, and what they make a run read."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from semmae.errors import UserError
from semmae.masking import num_hidden, num_hints
from semmae.options.maskings import MASKINGS
from semmae.train.masks import BY_PARTS, CheckedMask, MaskContext, MaskFunction, Masking
from semmae.train.own_function import function_at, text_of
from semmae.verbs.options import FUNCTION, SizeOptions, check_choice

WITHOUT_LABELS = tuple(masking for masking in MASKINGS if masking not in BY_PARTS)  # of a store these read none
_WITHOUT_STORE = tuple(masking for masking in WITHOUT_LABELS if masking != "attention")


@dataclass(frozen=True, kw_only=True)
class MaskOptions(SizeOptions):
    """What to hide, and where the parts come from that are hidden."""

    masking: Masking | str = field(default="semantic", metadata={FUNCTION: True})
    """What to hide: a share of every part (intra), whole parts (inter), from one to the other (semantic), any patches \
    (random), rectangles (block), the most attended (attention), or what package.module:function of your own returns."""
    mask_ratio: float = 0.75
    """Share of the patches to hide."""
    gamma: float = 2.0
    """Exponent of the schedule of semantic masking: the blend is (step / steps)^gamma."""
    blend: float | None = None
    """Blend of semantic masking throughout, in place of the schedule: 0 a share of every part, 1 whole parts."""
    attention_hint: float = 0.0
    """Share of the most attended patches (a tenth of all) that masking by attention leaves visible."""
    token_subset: int | None = None
    """Encode and predict only so many patches of an image, the most attended, whatever the masking; default: all."""
    parts: Path | None = None
    """Part labels of these images, written by `semmae parts`."""
    teacher: str | None = None
    """Encoder to learn parts from, when --parts is not given; without both, one is trained first."""

    def __post_init__(self) -> None:
        """A Python call may give a mask function itself; what is kept is the text that finds it again."""
        if callable(self.masking):
            object.__setattr__(self, "masking", text_of(self.masking, "--masking"))


def check_masking(options: MaskOptions) -> None:
    """Refuse a masking that is neither known nor a function, and options that it does not read."""
    mask_source(options)
    if not reads_store(options) and (options.parts or options.teacher):
        raise UserError(
            f"--masking {options.masking} reads no parts; leave out --parts and --teacher, or choose semantic"
        )
    if options.blend is not None and options.masking != "semantic":
        raise UserError(
            f"--blend {options.blend} is of --masking semantic, not of {options.masking}; leave one of them out"
        )
    if options.gamma != MaskOptions.gamma and (options.blend is not None or options.masking != "semantic"):
        instead = f"--masking {options.masking} has no" if options.blend is None else "--blend stands in place of the"
        raise UserError(f"--gamma {options.gamma}: {instead} schedule, which --gamma shapes; leave one of them out")
    if options.attention_hint and options.masking != "attention":
        raise UserError(
            f"--attention-hint {options.attention_hint} is of --masking attention, not of {options.masking}; "
            "leave one of them out"
        )
    if options.masking == "attention":
        patches = patches_taking_part(options)
        num_hints(patches, num_hidden(patches, options.mask_ratio), options.attention_hint)


def try_own_mask(options: MaskOptions, labels: int) -> None:
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


def patches_taking_part(options: MaskOptions) -> int:
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


def reads_attention(options: MaskOptions) -> bool:
    """Whether nothing can be masked without attention."""
    return options.masking == "attention" or options.token_subset is not None


def reads_store(options: MaskOptions) -> bool:
    """Whether part labels or attention are read, if only by one's own function."""
    return options.masking not in _WITHOUT_STORE or reads_attention(options)


def mask_source(options: MaskOptions) -> Masking | MaskFunction:
    """The masking of that name, or one's own function."""
    if ":" in options.masking:
        return function_at(options.masking, "--masking")
    check_choice("masking", options.masking, tuple(MASKINGS))
    return cast(Masking, options.masking)


def learns_parts(options: MaskOptions) -> bool:
    """Whether part labels are made here. One's own mask function gets those that are asked for."""
    if options.parts is not None or not reads_store(options):
        return False
    return options.teacher is not None or options.masking in MASKINGS or reads_attention(options)
