"""The limits of every number among the options: below and above them a value is a mistake, or could not be computed.

A number stands here once for all verbs, for a name means the same everywhere; a test walks the options of all verbs.
"""

import math
from typing import Any

from semmae.errors import UserError
from semmae.files import shown

MOST = 2**63 - 1  # of 64 bits: no limit but that of counting
_EPOCHS, _STEPS = 10**6, 10**9
_PIXELS = 8192
_WEIGHT = 10**6  # of a loss
_RATE = 1000

LIMITS: dict[str, tuple[float, float]] = {
    # What is read, and by how many
    "seed": (0, 2**32 - 1),  # of steps and ranks are made from it, none above the 64 bits that torch takes
    "workers": (0, 256),
    "limit": (1, MOST),
    "images": (1, 10**6),
    "sample": (1, MOST),
    "quality_images": (1, MOST),
    "pictures": (0, 10**4),
    "batch_size": (1, 2**20),
    "accumulate": (1, 2**16),
    "devices": (1, 1024),
    "nodes": (1, 2**16),
    # Sizes
    "image_size": (8, _PIXELS),
    "teacher_image_size": (8, _PIXELS),
    "local_size": (1, _PIXELS),
    "patch_size": (2, 1024),
    "token_subset": (2, 2**24),
    "grid": (2, 1024),
    "blur": (1, 255),
    "num_parts": (1, 254),  # a label is one byte, one is the background, one means "not yet computed"
    "num_heads": (1, 1024),
    "decoder_width": (4, 2**16),
    "decoder_depth": (1, 256),
    "decoder_heads": (1, 1024),
    "decoder_num_heads": (1, 1024),
    "decoder_channels": (1, 2**16),
    "prototypes": (2, 2**20),
    "head_width": (1, 2**16),
    "local_crops": (0, 256),
    "k": (1, 10**6),
    "ignore_index": (0, 255),
    # How long
    "epochs": (1, _EPOCHS),
    "teacher_epochs": (1, _EPOCHS),
    "parts_epochs": (1, _EPOCHS),
    "knn_every": (0, _EPOCHS),
    "val_every": (0, _EPOCHS),
    "steps": (1, _STEPS),
    "val_steps": (1, _STEPS),
    # Optimisers
    "lr": (0, _RATE),
    "blr": (0, _RATE),
    "min_lr": (0, _RATE),
    "weight_decay": (0, 100),
    "weight_decay_end": (0, 100),
    "warmup_share": (0, 1),
    "layer_decay": (0.01, 1),
    "clip": (0, 10**6),
    "ema": (0, 0.999999),
    "momentum": (0, 1),
    # Losses
    "ibot": (0, _WEIGHT),
    "koleo": (0, _WEIGHT),
    "diversity": (0, _WEIGHT),
    "agreement": (0, _WEIGHT),
    "concentration": (0, _WEIGHT),
    "total_variation": (0, _WEIGHT),
    "aux_weight": (0, _WEIGHT),
    "label_smoothing": (0, 0.99),
    "temperature": (0.0001, 1000),
    "teacher_temp": (0.001, 1),
    "warmup_teacher_temp": (0.001, 1),
    "temp_warmup_share": (0, 1),
    "frozen_share": (0, 1),
    "drop_path": (0, 0.95),
    # What is hidden
    "mask_ratio": (0, 1),  # which ratio hides a patch and leaves one depends on how many there are
    "mask_share": (0, 1),
    "mask_spread": (0, 1),
    "gamma": (0, 1000),
    "blend": (0, 1),
    "attention_hint": (0, 1),
    # What is shown
    "crop_scale": (0.05, 1),  # between them lie the local crops
    "crop_pct": (0.1, 1),
    "hue": (0, 0.5),  # turns either way: half of one reaches every hue
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "erasing": (0, 1),
    "min_scale": (0.1, 10),
    "max_scale": (0.1, 10),
    "most_of_one": (0.01, 1),
    "stride": (0.1, 1),
    # What is held out
    "val_share": (0.01, 0.99),
    "choice_share": (0.01, 0.5),
}


def limits_of(name: str) -> str | None:
    """The limits of a field in words, such as "from 0 to 1"; None where it has none."""
    if name not in LIMITS:
        return None
    low, high = LIMITS[name]
    return f"at least {low}" if high == MOST else f"from {low} to {high}"


def check_limits(option: str, name: str, value: Any) -> None:
    """Refuse a number that is not finite, whatever it is for, or is outside its limits.

    Args:
        option: as the message names it.
        name: of the field, by which the limits are found.
        value: of any kind; what is no number has no limits.

    Raises:
        UserError: names the value and the limits.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    low, high = LIMITS.get(name, (-math.inf, math.inf))
    if not low <= value <= high or abs(value) == math.inf:  # so written, NaN is refused too
        raise UserError(f"{option} {shown(value)}: must be {limits_of(name) or 'a finite number'}")
