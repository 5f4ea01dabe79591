"""Curves of a run as numbers ready for inline SVG; the template draws them in the colours of the page.

- A chart is a 400 × 220 view box: wide enough for its text to be read when a phone shrinks it to 350 pixels.
- Both axes begin at zero: nothing is cut off that would make a small change look large.
- Long runs are thinned by averaging neighbours, which also calms the noise.
- Values that are not finite have no place on an axis: left out here, named at the top of the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from semmae.reporting.pictures import label_colours

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 38
_MOST_POINTS = 250
HIDDEN = "hidden/"  # before a label: the share of its patches that is hidden, as `MaskMeter` writes it

# title, unit, factor, and the keys drawn together with their names; HIDDEN stands for all that begin with it
CURVES: tuple[tuple[str, str, float, dict[str, str]], ...] = (
    (
        "Loss",
        "",
        1,
        {
            "loss": "total",
            "loss_reconstruction": "reconstruction",
            "loss_diversity": "diversity",
            "loss_dino": "DINO",
            "loss_ibot": "iBOT",
            "loss_koleo": "KoLeo",
        },
    ),
    ("Learning rate", "", 1, {"lr": "learning rate"}),
    ("Blend α: 0 within parts, 1 whole parts", "", 1, {"blend": "blend α"}),
    ("Hidden share of each part", " %", 100, {HIDDEN: ""}),
    ("Teacher momentum", "", 1, {"momentum": "momentum"}),
    ("Teacher temperature", "", 1, {"teacher_temp": "temperature"}),
    ("What the teacher's answer says of an image", " nats", 1, {"teacher_information": "0 = collapsed"}),
    ("Weight decay", "", 1, {"weight_decay": "weight decay"}),
    ("k-NN accuracy", " %", 1, {"knn_top1": "top-1"}),
    ("Validation accuracy", " %", 1, {"val_top1": "top-1", "val_mean_class": "mean of classes"}),
    ("Speed", " images/s", 1, {"images_per_s": "images/s"}),
    ("Time spent waiting for data", " %", 100, {"data_wait": "waiting"}),
)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its SVG points, and its first and last value as text."""

    name: str
    points: str
    first: str
    last: str
    colour: str = ""  # of CSS; without it the page's own, by the line's place


@dataclass(frozen=True)
class Chart:
    """One small plot over the steps; ticks are (pixel, text)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(records: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[tuple[str, str]]]:
    """Of one stage the charts of those of CURVES that change; (title, value) of the others: a number says more."""
    changing, same = [], []
    for title, unit, factor, names in CURVES:
        colours = {}
        if HIDDEN in names:
            names = _labels(records)
            colours = _colours([*names.values()])
        lines = _curves(records, factor, names)
        if any(not _constant(line) for line in lines.values()):
            changing.append(_chart(f"{title},{unit}" if unit else title, lines, colours))
        elif lines:
            values = {name: number(line[0][1]) for name, line in lines.items()}
            shown = values.values() if len(values) == 1 else (f"{name} {value}" for name, value in values.items())
            same.append((title, ", ".join(shown) + unit))
    return changing, same


def _labels(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys of hidden shares with the labels that they are of, in the order of those that have the most of them."""
    keys = sorted(([key for key in record if key.startswith(HIDDEN)] for record in records), key=len, reverse=True)
    return {key: key.removeprefix(HIDDEN) for each in keys for key in each}


def _colours(labels: Sequence[str]) -> dict[str, str]:
    """Those that the labels have in pictures, of CSS; darker on a light page, lighter on a dark one."""
    return {
        label: "var(--soft)" if colour is None else f"color-mix(in oklab, rgb{colour} 80%, var(--ink))"
        for label, colour in zip(labels, label_colours(labels), strict=False)  # there are 255
    }


def loss_charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart for every logged loss by itself: their scales differ, and what shrinks alone is seen to shrink."""
    keys = dict.fromkeys(key for record in records for key in record if key == "loss" or key.startswith("loss_"))
    names = {key: key.removeprefix("loss_").replace("_", " ") if key != "loss" else "total" for key in keys}
    curves = _curves(records, 1, names)
    return [_chart(f"Loss: {name}", {name: points}) for name, points in curves.items()]


def finite(value: object) -> bool:
    """Whether this is a number that has a place on an axis."""
    return isinstance(value, int | float) and math.isfinite(value)


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
        return _scientific(value, 1)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _curves(records: Sequence[Mapping[str, Any]], factor: float, names: Mapping[str, str]) -> dict[str, Points]:
    """Name → at most _MOST_POINTS pairs (step, value × factor), for the keys that have finite values."""
    curves = {}
    for key, name in names.items():
        points = [(float(r["step"]), factor * r[key]) for r in records if finite(r.get(key))]
        size = math.ceil(len(points) / _MOST_POINTS) or 1
        groups = [points[start : start + size] for start in range(0, len(points), size)]
        if groups:
            curves[name] = [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
    return curves


def _constant(points: Points) -> bool:
    values = [value for _, value in points]
    return max(values) - min(values) <= 1e-6 * max(map(abs, values))


def _chart(title: str, curves: Mapping[str, Points], colours: Mapping[str, str] | None = None) -> Chart:
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    last = max(*steps, 1.0)
    x_ticks = [tick for tick in _ticks(0, last, whole=True) if 0 <= tick <= last]
    # From zero on, so that what moves little looks like it.
    low, high = min(0.0, *values), max(0.0, *values)
    y_ticks = _ticks(low, high, whole=False)
    low, high = y_ticks[0], y_ticks[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    lines = tuple(
        Line(
            name,
            " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points),
            number(points[0][1]),
            number(points[-1][1]),
            (colours or {}).get(name, ""),
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
    plain = f"{value:g}"
    return plain if len(plain) <= 7 and not 0 < abs(value) < 1e-3 else _scientific(value, 2)


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
