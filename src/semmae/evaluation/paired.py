"""Differences between runs that share a seed: what the seed does to both drops out."""

import math
from collections.abc import Mapping
from statistics import mean, stdev
from typing import NamedTuple

from scipy import stats

LEVEL = 0.95
_ALIKE = 1e-6  # points: differences that are no further apart do not differ, but in how they are rounded


class Difference(NamedTuple):
    """A mean difference, the ends of its 95 % interval, of how many pairs.

    There is no interval of a single pair, nor of several that differ alike.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Of figures by seed, less those of the reference with the same seeds; None where they share none.

    The interval is Student's t over the pairs. It takes their differences for normal, which a handful cannot show.
    Accuracies of few images are often just equally far apart: the interval would have no width, and promise certainty.
    """
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    pairs = len(differences)
    if pairs == 0:
        return None
    middle = mean(differences)
    if max(differences) - min(differences) < _ALIKE:
        return Difference(middle, None, None, pairs)
    half = float(stats.t.ppf((1 + LEVEL) / 2, pairs - 1)) * stdev(differences) / math.sqrt(pairs)
    return Difference(middle, middle - half, middle + half, pairs)
