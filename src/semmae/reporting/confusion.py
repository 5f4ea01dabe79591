"""The confusion picture: which class is taken for which.

- Rows are true classes, columns what they were taken for, in percent of the row's images: rare classes are
  seen as well as frequent ones.
- Colour grows with the square root of the share, so that a confusion of a few percent shows beside the diagonal.
- More classes than labels fit for: only those most often taken for each other, and a column for all the rest.
"""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray
from torch import Tensor

from semmae.files import write_bytes
from semmae.names import readable

MOST_CLASSES = 40  # whose labels fit
SHOWN = 20  # of more than these
_WITH_NUMBERS = 25  # columns whose cells have room for a number
_LONGEST = 24  # letters of a label
_REST = "all others"
_DARK = 0.6  # of the colour scale: on darker cells the number is white

Shares = NDArray[np.float64]


def confusion_picture(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Write the picture of a confusion matrix, counts (K, K), true class by predicted class, as a PNG."""
    counts = confusion.cpu().numpy()
    assert counts.shape == (len(classes), len(classes)), "one name for each class"
    rows = most_confused(counts, SHOWN) if len(classes) > MOST_CLASSES else list(range(len(classes)))
    shares, columns = _shares(counts, rows), [classes[row] for row in rows]
    title = f"{len(classes)} classes"
    if len(rows) < len(classes):
        columns = [*columns, _REST]
        title = f"the {len(rows)} of {len(classes)} classes most often taken for each other"
    figure = _draw(shares, [classes[row] for row in rows], columns, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def most_confused(counts: NDArray[np.int64], shown: int) -> list[int]:
    """The classes, ascending, of the pairs most often taken for each other, until there are `shown` of them."""
    pairs = np.triu(counts + counts.T, k=1)
    chosen: set[int] = set()
    for place in np.argsort(-pairs, axis=None, kind="stable"):
        pair = {int(place) // len(counts), int(place) % len(counts)}
        if len(chosen | pair) > shown or len(chosen) == shown:
            break
        chosen |= pair
    return sorted(chosen)


def _shares(counts: NDArray[np.int64], rows: Sequence[int]) -> Shares:
    """Percent of each row's images, NaN for a class without images; a last column for classes left out."""
    totals = counts.sum(1, keepdims=True)[rows].astype(float)
    kept = counts[np.ix_(rows, rows)]
    if len(rows) < len(counts):
        kept = np.concatenate([kept, totals.astype(np.int64) - kept.sum(1, keepdims=True)], axis=1)
    shares: Shares = 100 * kept / np.where(totals > 0, totals, np.nan)
    return shares


def _draw(shares: Shares, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """The matrix with its labels; drawn without pyplot, which keeps figures in global state."""
    side = max(4.0, 0.42 * len(columns))
    figure = Figure(figsize=(side + 2.6, side + 1.6), dpi=100, layout="constrained")
    axes: Axes = figure.subplots()
    scale = PowerNorm(0.5, vmin=0, vmax=100)
    axes.set_facecolor("#dddddd")  # of classes without images
    drawn = axes.imshow(shares, cmap="Blues", norm=scale)
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90, parse_math=False)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    axes.set_title(f"Confusion, % of each true class: {title}", fontsize=10, wrap=True)
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="%", ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    if len(columns) <= _WITH_NUMBERS:
        _write_numbers(axes, shares, scale)
    return figure


def _write_numbers(axes: Axes, shares: Shares, scale: PowerNorm) -> None:
    """Whole percentages into the cells; none where it would be 0."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            colour = "white" if float(scale(share)) > _DARK else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _short(name: str) -> str:
    """A class's name as a label; escaped what is not printable or not in the font: all of it would be the same box."""
    known = _glyphs()
    name = "".join(
        letter if letter.isprintable() and ord(letter) in known else letter.encode("unicode_escape").decode("ascii")
        for letter in readable(name)
    )
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


@cache
def _glyphs() -> frozenset[int]:
    """The letters, as code points, that the font of the labels has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
