"""Schedules: their values at the turning points, and the way between."""

import math

import pytest
from hypothesis import given, settings, strategies as st

from semmae.train.schedules import cosine, linear_warmup, warmup_cosine

quick = settings(deadline=None, max_examples=80)


def test_the_turning_points_of_warm_up_and_cosine() -> None:
    def rate(step: int) -> float:
        return warmup_cosine(step, total=110, warmup=10, start=2.0, end=0.5)

    assert rate(0) == 0.0
    assert rate(5) == pytest.approx(1.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(35) == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert rate(60) == pytest.approx(1.25)
    assert rate(110) == pytest.approx(0.5)


def test_without_warm_up_the_first_step_has_the_full_value() -> None:
    assert warmup_cosine(0, total=10, warmup=0, start=3.0, end=0.0) == 3.0
    assert warmup_cosine(10, total=10, warmup=0, start=3.0, end=0.0) == 0.0


def test_past_the_end_the_last_value_stays() -> None:
    assert warmup_cosine(111, total=110, warmup=10, start=2.0, end=0.5) == pytest.approx(0.5)
    assert cosine(5000, total=100, start=0.996, end=1.0) == pytest.approx(1.0)


@quick
@given(st.integers(1, 200), st.integers(0, 60), st.floats(0.0, 1.0))
def test_up_to_the_end_of_warm_up_and_down_from_there(decay: int, warmup: int, end: float) -> None:
    values = [
        warmup_cosine(step, total=warmup + decay, warmup=warmup, start=1.0, end=end)
        for step in range(warmup + decay + 1)
    ]

    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert max(values) == values[warmup] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(end)
    # The fall is point-symmetric about its middle.
    for early, late in zip(values[warmup:], reversed(values[warmup:]), strict=True):
        assert early + late == pytest.approx(1.0 + end)


def test_a_momentum_rises_from_start_to_end() -> None:
    values = [cosine(step, total=100, start=0.996, end=1.0) for step in range(101)]

    assert values[0] == pytest.approx(0.996)
    assert values[50] == pytest.approx(0.998)
    assert values[100] == pytest.approx(1.0)
    assert values == sorted(values)


def test_a_temperature_rises_in_a_line_and_stays() -> None:
    values = [linear_warmup(step, warmup=4, start=0.04, end=0.08) for step in range(7)]

    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08, 0.08, 0.08])
    assert linear_warmup(0, warmup=0, start=0.04, end=0.08) == 0.08
