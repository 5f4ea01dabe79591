"""Curves of a run as numbers ready for inline SVG; the template draws them in the colours of the page.

- A chart is a 400 × 220 view box: wide enough for its text to be read when a phone shrinks it to 350 pixels.
- Long runs are thinned by averaging neighbours, which also calms the noise.
- Values that are not finite have no place on an axis: left out here, named at the top of the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38
_MOST_POINTS = 250

# title and the keys drawn together, with their names
CURVES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Loss", {"loss": "total", "loss_reconstruction": "reconstruction", "loss_diversity": "diversity"}),
    ("Learning rate", {"lr": "learning rate"}),
    ("Blend α: 0 within parts, 1 whole parts", {"blend": "blend α"}),
    ("Share of patches hidden", {"hidden_share": "hidden"}),
    ("Teacher momentum", {"momentum": "momentum"}),
    ("Teacher temperature", {"teacher_temp": "temperature"}),
    ("k-NN accuracy, %", {"knn_top1": "top-1", "knn_top5": "top-5"}),
    ("Speed, images/s", {"images_per_s": "images/s"}),
    ("Share of time waiting for data", {"data_wait": "waiting"}),
)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its SVG points, and its first and last value as text."""

    name: str
    points: str
    first: str
    last: str


@dataclass(frozen=True)
class Chart:
    """One small plot over the steps; ticks are (pixel, text)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts of one stage, for those of CURVES that have two points or more."""
    found = []
    for title, names in CURVES:
        curves = {name: points for key, name in names.items() if len(points := _points(records, key)) > 1}
        if curves:
            found.append(_chart(title, curves))
    return found


def number(value: object) -> str:
    """A value for people: 12,345; 41.2; 1.5e-4; yes; –."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _points(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """(step, value) where the value is there and finite, at most _MOST_POINTS of them."""
    points = [
        (float(record["step"]), float(record[key]))
        for record in records
        if key in record and record[key] is not None and math.isfinite(record[key])
    ]
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _chart(title: str, curves: Mapping[str, Points]) -> Chart:
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    x_ticks = [
        tick for tick in _ticks(min(steps), max(steps), whole=True) if min(steps) <= tick <= max(steps)
    ]
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)) or high == low:  # a constant still needs an axis around it
        low, high = low - 0.05 * abs(low or 1.0), high + 0.05 * abs(high or 1.0)
    elif 0 < low < 0.4 * high:
        low = 0.0
    y_ticks = _ticks(low, high, whole=False)
    low, high = y_ticks[0], y_ticks[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - min(steps)) / ((max(steps) - min(steps)) or 1.0)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    lines = tuple(
        Line(
            name,
            " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points),
            number(points[0][1]),
            number(points[-1][1]),
        )
        for name, points in curves.items()
    )
    return Chart(
        title,
        lines,
        tuple((round(x(tick), 1), _short(tick)) for tick in x_ticks),
        tuple((round(y(tick), 1), _short(tick)) for tick in y_ticks),
    )


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """Round values that cover [low, high]."""
    locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], integer=whole)
    return [float(tick) for tick in locator.tick_values(low, high)]


def _short(value: float) -> str:
    """A tick: 0.25, 1.5e-4, 20k, 3M."""
    value = float(f"{value:.6g}")  # the ticks' own rounding error must not be printed
    for size, sign in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e6 if sign == 'M' else 1e3):g}{sign}"
    if 0 < abs(value) < 1e-3:
        return number(value)
    return f"{value:g}"
