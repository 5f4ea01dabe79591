"""Balanced epochs: each class equally often, no image again before its class is through."""

from collections import Counter

import numpy as np
import pytest

from semmae.data.balance import balanced_rows
from semmae.data.samplers import EpochSampler

LONG_TAIL = np.array([0] * 40 + [3] * 7 + [1] * 2 + [7])


@pytest.mark.parametrize("classes", [LONG_TAIL, np.arange(5), np.zeros(6, int), np.array([0] * 9 + [1] * 2)])
def test_each_class_comes_equally_often(classes: np.ndarray) -> None:
    rows, turns = balanced_rows(classes, np.random.default_rng(3))

    counts = Counter(classes[rows].tolist())
    assert len(rows) == len(turns) == len(classes) and max(counts.values()) - min(counts.values()) <= 1
    assert counts.keys() == set(classes.tolist())
    assert len(set(zip(rows.tolist(), turns.tolist(), strict=True))) == len(rows)
    for of_class in counts:
        times = Counter(rows[classes[rows] == of_class].tolist())
        members = np.flatnonzero(classes == of_class).tolist()
        seen = [times[row] for row in members]
        assert max(seen) - min(seen) <= 1


def test_a_sampler_gives_repeated_rows_other_crops_and_ranks_their_share() -> None:
    sampler = EpochSampler(50, seed=1, classes=LONG_TAIL.tolist())
    keys = list(sampler)
    assert len(set(keys)) == len(keys) == 50 and list(sampler) == keys
    assert max(Counter(row for _, row in keys).values()) > 10  # the single image of class 7
    shares = [
        list(EpochSampler(50, seed=1, classes=LONG_TAIL.tolist(), num_replicas=2, rank=rank)) for rank in range(2)
    ]
    assert sorted(shares[0] + shares[1]) == sorted(keys)
    sampler.set_epoch(1)
    assert set(sampler).isdisjoint(keys)


def test_a_class_for_each_row() -> None:
    with pytest.raises(ValueError, match="50 rows, 3 classes"):
        EpochSampler(50, classes=[0, 1, 2])
