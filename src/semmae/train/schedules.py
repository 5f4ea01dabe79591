"""Schedules as functions of the optimiser step: nothing here remembers anything, so resuming is exact."""

import math


def warmup_cosine(step: int, *, total: int, warmup: int, start: float, end: float) -> float:
    """Linear from 0 to `start` over `warmup` steps, then half a cosine to `end` at `total`."""
    if step < warmup:
        return start * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def cosine(step: int, *, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` to `end` over `total` steps."""
    return warmup_cosine(step, total=total, warmup=0, start=start, end=end)


def linear_warmup(step: int, *, warmup: int, start: float, end: float) -> float:
    """Linear from `start` to `end` over `warmup` steps, then `end`."""
    return end if step >= warmup else start + (end - start) * step / warmup


def warmup_poly(step: int, *, total: int, warmup: int, power: float = 1.0) -> float:
    """Linear from 0 to 1 over `warmup` steps, then 1 - t to that power, t from 0 to 1 at `total`."""
    if step < warmup:
        return step / warmup
    return float((1.0 - min(1.0, (step - warmup) / max(1, total - warmup))) ** power)
