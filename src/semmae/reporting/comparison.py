"""What a comparison found: a summary of each row, the verdict, tables for people and the page, a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semmae.errors import listed
from semmae.evaluation.paired import Difference, paired_difference
from semmae.files import Fields, remove, write_bytes, write_json, write_text
from semmae.options.compare import MEASURES, PART_KINDS
from semmae.reporting.page import Record, Table, called, duration
from semmae.reporting.results import protocol_lines

PICTURE = "comparison.png"
# The figures by which rows are compared, the first that all have for the verdict.
COMPARED = ("finetune_top1", "probe_top1", "knn_top1", "segment_miou", "kmeans_centred_nmi")
_PARTS = {"parts_nmi": "its part labels, NMI"}  # of what masks were made from
_STAGES = ("teacher", "tokens", *PART_KINDS, "pretrain", *MEASURES)  # in the order of work
_FACTS = ("name", "masking", "variant", "parts", "target")
_NUMBER = (int, float)
_DIFFERENCE = {"mean": _NUMBER, "low": (*_NUMBER, type(None)), "high": (*_NUMBER, type(None)), "pairs": int}
_NAMED = 10  # rows that a verdict names
CHANCE = (
    "Each interval is of one row by itself: of twenty rows that are no better or worse than the first, one is expected "
    "to lie beyond chance."
)


def check_record(run: Fields) -> None:
    """Refuse a line of a run that lacks what is read of it, or has something else there: the file may be edited."""
    for name, kind in {"masking": str, "variant": str, "target": str, "seed": int, "measured": list}.items():
        run.need(name, kind)
    run.need("parts", (str, type(None)))
    for name in run.content["measured"]:
        Fields(run.path, {"measured": name}).need("measured", str)
    _check_figures(run)


def rows_in(path: Path, content: Record) -> list[Record]:
    """The rows of a results.json, checked likewise; none where it is of something else."""
    rows = content.get("rows")
    for row in rows if isinstance(rows, list) else ():
        known = Fields(path, Fields(path, {"rows": row}).need("rows", dict))
        known.need("seeds", int)
        _check_figures(known)
        for figure in COMPARED:
            if (found := known.get(f"{figure}_difference", dict)) is not None:
                for name, kind in _DIFFERENCE.items():
                    Fields(path, found).need(name, kind)
    return rows if isinstance(rows, list) else []


def _check_figures(row: Fields) -> None:
    row.need("name", str)
    for figure in (*COMPARED, *_PARTS):
        row.get(figure, _NUMBER)
    minutes = Fields(row.path, row.need("minutes", dict))
    minutes.need("total", _NUMBER)
    for stage in minutes.content:
        minutes.get(stage, _NUMBER)


def summary(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """A row each, in the order in which they come: means over its seeds, differences to the first row, minutes."""
    by_name: dict[str, list[Record]] = {}
    for run in runs:
        by_name.setdefault(run["name"], []).append(run)
    first = next(iter(by_name), "")
    rows = []
    for name, own in by_name.items():
        row: dict[str, Any] = {key: own[0][key] for key in _FACTS} | {"seeds": len(own)}
        for figure in (*COMPARED, *_PARTS):
            values = _by_seed(own, figure)
            if not values:
                continue
            row[figure] = mean(values.values())
            found = paired_difference(values, _by_seed(by_name[first], figure)) if name != first else None
            if found is not None and figure in COMPARED:
                row[f"{figure}_difference"] = found._asdict()
        stages = [stage for stage in own[0]["minutes"]]
        row["minutes"] = {stage: round(mean(run["minutes"].get(stage, 0.0) for run in own), 3) for stage in stages}
        rows.append(row)
    return rows


def _by_seed(runs: Sequence[Record], figure: str) -> dict[int, float]:
    return {run["seed"]: run[figure] for run in runs if figure in run}


def difference(row: Record, figure: str) -> Difference | None:
    """The difference of a row of `summary` to the first one."""
    found = row.get(f"{figure}_difference")
    return None if found is None else Difference(**found)


def judged_by(rows: Sequence[Record]) -> str | None:
    """The figure of the verdict: the first that all rows have."""
    return next((figure for figure in COMPARED if rows and all(figure in row for row in rows)), None)


def verdict(rows: Sequence[Record]) -> str | None:
    """Which row is ahead of the first one, by how much, and whether that is beyond chance; None where none is.

    Of the rows with the most pairs: among many with two or three some intervals are narrow by chance, and far from 0.
    """
    figure = judged_by(rows)
    known = [(found, row["name"]) for row in rows[1:] if figure and (found := difference(row, figure))]
    if figure is None or not known:
        return None
    pairs = max(found.pairs for found, _ in known)
    judged = [each for each in known if each[0].pairs == pairs]
    left = len(known) - len(judged)
    also = "" if not left else " One row has fewer seeds." if left == 1 else f" {left} rows have fewer seeds."
    return _judged(judged, rows[0]["name"], figure, f"all {'others' if not left else 'with as many seeds'}") + also


def _judged(known: Sequence[tuple[Difference, str]], first: str, figure: str, rest: str) -> str:
    """`rest`: what the rows that are judged are called."""
    equal = [other for found, other in known if found.low is None]
    tested = [each for each in known if each[0].low is not None]
    if tested and equal:
        alike = f" The pairs of {listed(equal, _NAMED)} differ all alike, which says nothing of chance."
        return _judged(tested, first, figure, "the others") + alike
    best, name = max(known, key=lambda each: each[0].mean)
    ahead = [each for each in known if each[0].low is not None and each[0].low > 0]
    behind = [each for each in known if each[0].high is not None and each[0].high < 0]
    if ahead:
        best, name = max(ahead, key=lambda each: each[0].mean)
        others = [other for _, other in ahead if other != name]
        also = f"; ahead of it too: {listed(others, _NAMED)}" if others else ""
        return f"{name} is ahead of {first} by {_points(best, figure)}{also}."
    if len(behind) == len(known):
        return f"{first} is ahead of {rest}; nearest to it is {name}, behind by {_points(_turned(best), figure)}."
    if best.low is None:
        points = f"{abs(best.mean):.1f} points of {called(figure).removesuffix(' %')}"
        where = f"{points} {'above' if best.mean > 0 else 'below'}" if round(best.mean, 1) else "level with"
        known_by = "one pair" if best.pairs == 1 else f"{best.pairs} equal differences"
        return f"With {known_by} nothing is known of chance: {name}, the best of the others, is {where} {first}."
    lost = f"; behind it: {listed((other for _, other in behind), _NAMED)}" if behind else ""
    return f"No row is ahead of {first} beyond chance: {name} comes next, with {_points(best, figure, '+')}{lost}."


def _points(found: Difference, figure: str, sign: str = "") -> str:
    what = called(figure).removesuffix(" %")
    seeds = f"{found.pairs} paired seeds"
    about = seeds if found.low is None or found.high is None else f"{interval(found.low, found.high)}, {seeds}"
    return f"{found.mean:{sign}z.1f} points of {what} ({about})"


def interval(low: float, high: float) -> str:
    """The two ends as they are shown; rounded once, here and where means are."""
    return f"{low:z.1f} to {high:z.1f}"


def _turned(found: Difference) -> Difference:
    assert found.low is not None and found.high is not None, "several pairs"
    return Difference(-found.mean, -found.high, -found.low, found.pairs)


def tables(rows: Sequence[Record]) -> list[Table]:
    """Figures of every row, and the minutes of its stages."""
    figures = [figure for figure in (*COMPARED, *_PARTS) if any(figure in row for row in rows)]
    first = rows[0]["name"]
    header = ["", "Seeds"]
    for figure in figures:
        header.append(_PARTS.get(figure) or called(figure))
        if figure in COMPARED and len(rows) > 1:
            header.append(f"less {first}")
    header.append("Time of a run")
    lines = []
    for row in rows:
        cells = [row["name"], str(row["seeds"])]
        for figure in figures:
            cells.append(f"{row[figure]:.1f}" if figure in row else "–")
            if figure in COMPARED and len(rows) > 1:
                cells.append(_cell(difference(row, figure), row["seeds"]))
        lines.append((*cells, duration(row["minutes"]["total"])))
    stages = [stage for stage in _STAGES if any(stage in row["minutes"] for row in rows)]
    spent = [
        (row["name"], *(duration(row["minutes"][stage]) if stage in row["minutes"] else "–" for stage in stages))
        for row in rows
    ]
    return [
        Table("", tuple(header), tuple(lines)),
        Table("Time of each stage; what is made once counts in full", ("", *stages), tuple(spent)),
    ]


def _cell(found: Difference | None, seeds: int) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.mean:+z.1f} ({'one pair' if found.pairs == 1 else f'{found.pairs} equal pairs'})"
    pairs = f", {found.pairs} pairs" if found.pairs != seeds else ""
    return f"{found.mean:+z.1f} ({interval(found.low, found.high)}{pairs})"


def write_end(
    out: Path, runs: Sequence[Record], protocol: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> None:
    """Write results.json, results.md, whose first table is what a verb shows at its end, and comparison.png.

    `files`: digests of the files that said what to compare, by option.
    """
    rows = summary(runs)
    said = verdict(rows)
    content = {
        "protocol": dict(protocol),
        "verdict": said,
        "rows": rows,
        "runs": list(runs),
        "files": {**(files or {})},
    }
    write_json(out / "results.json", content)
    lines = [
        line for table in tables(rows) for line in [*([table.title, ""] if table.title else []), *_markdown(table), ""]
    ]
    text = [
        "# Results",
        "",
        *([said, ""] if said else []),
        *lines,
        CHANCE,
        "",
        "Protocol:",
        "",
        *protocol_lines(protocol),
    ]
    write_text(out / "results.md", "\n".join(text) + "\n")
    draw(out / PICTURE, rows, runs)


def _markdown(table: Table) -> list[str]:
    rule = tuple("-" * len(cell) or "-" for cell in table.header)
    return ["| " + " | ".join(row) + " |" for row in (table.header, rule, *table.rows)]


def draw(path: Path, rows: Sequence[Record], runs: Sequence[Record]) -> None:
    """A PNG: of each figure the differences to the first row, of every seed, their means and intervals."""
    figures = [figure for figure in COMPARED if any(difference(row, figure) for row in rows)]
    if not figures:
        remove(path)  # that of an earlier end, of other rows
        return
    picture = Figure(figsize=(2.2 + 3.4 * len(figures), 1.3 + 0.36 * len(rows)), dpi=110, layout="constrained")
    for number, (figure, axes) in enumerate(
        zip(figures, picture.subplots(1, len(figures), squeeze=False)[0], strict=True)
    ):
        _draw_figure(axes, figure, rows, runs)
        axes.set_yticks(
            range(len(rows)), [row["name"] for row in rows] if number == 0 else [""] * len(rows), parse_math=False
        )
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def _draw_figure(axes: Axes, figure: str, rows: Sequence[Record], runs: Sequence[Record]) -> None:
    first = rows[0]["name"]
    reference = _by_seed([run for run in runs if run["name"] == first], figure)
    axes.axvline(0, color="#888888", linewidth=1)
    reach = 0.0  # of the points and of intervals over three pairs and more: two have one ten times as wide
    for place, row in enumerate(rows):
        own = _by_seed([run for run in runs if run["name"] == row["name"]], figure)
        pairs = [own[seed] - reference[seed] for seed in own if seed in reference]
        found = difference(row, figure)
        if place == 0 or found is None:
            continue
        axes.plot(pairs, [place] * len(pairs), "o", color="#0067a8", alpha=0.35, markersize=4)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color="#0067a8", linewidth=2 if found.pairs > 2 else 0.6)
        axes.plot([found.mean], [place], "D", color="#0067a8", markersize=6)
        ends = (found.low, found.high) if found.pairs > 2 else ()
        reach = max(reach, *map(abs, pairs), *(abs(end) for end in ends if end is not None))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-1.1 * reach or -1, 1.1 * reach or 1)
    axes.set_title(f"{called(figure)}\n{first}: {rows[0].get(figure, float('nan')):.1f}", fontsize=10, parse_math=False)
    axes.set_xlabel("points more", fontsize=9)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
