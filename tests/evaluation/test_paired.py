"""Paired differences: the interval is that of scipy's test, and of a worked example."""

import pytest
from scipy import stats

from semmae.evaluation.paired import Difference, paired_difference


def test_a_worked_example() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t of two degrees of freedom 4.3027."""
    found = paired_difference({0: 11.0, 1: 12.0, 2: 13.0}, {0: 10.0, 1: 10.0, 2: 10.0})
    assert found == pytest.approx(Difference(2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5, 3), rel=1e-5)


def test_as_scipy_has_it_whatever_the_order() -> None:
    own = {4: 61.2, 0: 58.9, 2: 60.1, 9: 57.0, 3: 63.3}
    other = {0: 58.1, 2: 60.4, 3: 61.0, 4: 60.0, 7: 99.0}
    found = paired_difference(own, other)
    seeds = [0, 2, 3, 4]
    test = stats.ttest_rel([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    low, high = test.confidence_interval(0.95)
    assert found == pytest.approx(Difference(sum(own[s] - other[s] for s in seeds) / 4, low, high, 4))


def test_without_pairs_there_is_no_difference_and_with_one_no_interval() -> None:
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert paired_difference({0: 1.0, 1: 5.0}, {0: 2.5}) == Difference(-1.5, None, None, 1)


def test_equal_differences_have_no_interval() -> None:
    """Its width would be 0: two seeds that gain one image of 16 each are no certainty."""
    assert paired_difference({0: 6.25, 1: 12.5}, {0: 0.0, 1: 6.25}) == Difference(6.25, None, None, 2)
    found = paired_difference({0: 10.1, 1: 11.1, 2: 12.1}, {0: 10.0, 1: 11.0, 2: 12.0})  # but for their rounding
    assert found is not None and (found.low, found.high, found.pairs) == (None, None, 3)
