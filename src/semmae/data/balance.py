"""Each class as often as any other, for sets in which a few classes have most of the images (iNaturalist)."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def balanced_rows(classes: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """As many rows as there are, drawn so that each class comes equally often, in a random order.

    Classes of rows (N,) → the rows (N,), and how often each had come before (N,). No row of a class comes again before
    all of its class have come; which classes come once more, where their number does not divide N, is drawn.
    """
    present, sizes = np.unique(classes, return_counts=True)
    quotas = np.full(len(present), len(classes) // len(present))
    quotas[rng.permutation(len(present))[: len(classes) % len(present)]] += 1
    rows, turns = [], []
    for of_class, size, quota in zip(present, sizes, quotas, strict=True):
        members = np.flatnonzero(classes == of_class)
        rounds = [rng.permutation(members) for _ in range(-(-quota // size))]
        rows.append(np.concatenate([*rounds, members[:0]])[:quota])
        turns.append(np.arange(quota) // size)
    order = rng.permutation(len(classes))
    return np.concatenate(rows)[order], np.concatenate(turns)[order]
