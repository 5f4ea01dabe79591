"""The tables and pictures of docs/evidence.md, and README's table of it, of whatever results/*.json hold.

python experiments/evidence.py
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pieces

from semmae.reporting.comparison import difference, draw, interval, summary, tables, verdict

README = Path(__file__).parents[1] / "README.md"
PAGE = README.with_name("docs") / "evidence.md"
UPERNET = "upernet_miou"
PICTURES = ("true-parts", "tiny-imagenet", "tiny-imagenet-tokens", "street-fashion")  # tables that have one


class Table(NamedTuple):
    """What is shown of which results."""

    results: str
    figure: str | None = None  # of README's line; UPerNet's in place of the others
    target: str = "pixels"  # rows with this one alone
    base: str = "random"  # the row that they are paired with
    names: str = ""  # what the names of rows begin with, as a regular expression


# By their names on the page.
TABLES = {
    "true-parts": Table("true_parts"),
    "true-parts-kinds": Table("true_parts", base="semantic-background", names="semantic-background-|colour"),
    "tiny-imagenet": Table("tiny_imagenet", names="(?!.*-epochs)"),
    "tiny-imagenet-longer": Table("tiny_imagenet", base="random-40-epochs", names=".*-40-epochs"),
    "tiny-imagenet-tokens": Table("tiny_imagenet", target="tokens"),
    "tiny-imagenet-tokens-masks": Table("tiny_imagenet", target="tokens", base="tokens-random"),
    "tiny-imagenet-gpu": Table("tiny_imagenet_gpu"),
    "street-fashion": Table("street_fashion"),
    "street-fashion-upernet": Table("street_fashion", UPERNET),
}
# README's: a line for each question, by results and figure, and a column for each row, by name.
QUESTIONS = {
    "drawn creatures, true parts: linear probe, top-1 %": Table("true_parts", "probe_top1"),
    "100 classes of Tiny ImageNet: fine-tuned, top-1 %": Table("tiny_imagenet", "finetune_top1"),
    "the same, predicting a teacher's tokens": Table("tiny_imagenet", "finetune_top1", "tokens", "tokens-random"),
    "street photos: segmentation, linear head, mIoU %": Table("street_fashion", "segment_miou"),
    "street photos: segmentation, UPerNet, mIoU %": Table("street_fashion", UPERNET),
}
COLUMNS = {
    "random": "random masks",
    "semantic": "the paper's: `semantic`",
    "semantic-background": "ours: with `--keep-background`",
    "colour": "ColorMAE's: `colour`",
}


def main() -> None:
    """Write the page anew, and the table of README."""
    PAGE.write_text(page(PAGE.read_text()))
    README.write_text(with_lines(README.read_text(), "evidence", in_short()))
    for place, runs in measured().items():
        if place in PICTURES:
            draw(PAGE.parent / "images" / f"evidence-{place}.png", summary(runs), runs)


def measured() -> dict[str, list[dict[str, Any]]]:
    """The runs of each table that has any."""
    found = {place: runs_of(pieces.written(table.results), table) for place, table in TABLES.items()}
    return {place: runs for place, runs in found.items() if runs}


def page(text: str) -> str:
    """docs/evidence.md with its tables."""
    for place, runs in measured().items():
        lines = lines_of(runs)
        if TABLES[place].figure == UPERNET:
            lines = [line.replace("linear head", "UPerNet") for line in lines]
        text = with_lines(text, place, lines)
    return text


def in_short() -> list[str]:
    """A line for each question, in Markdown: means, differences to random masks and their intervals."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for question, table in QUESTIONS.items():
        figure = table.figure or ""
        rows = {row["name"]: row for row in summary(runs_of(pieces.written(table.results), table))}
        names = [table.base.replace("random", row) for row in COLUMNS]
        shown = [_in_short(rows.get(row, {}), "segment_miou" if figure == UPERNET else figure) for row in names]
        lines.append(" | ".join([f"| {question}", *shown]) + " |")
    return lines


def _in_short(row: dict[str, Any], figure: str) -> str:
    if figure not in row:
        return "–"
    found, seeds = difference(row, figure), f"{row['seeds']} seed" + "s" * (row["seeds"] > 1)
    if found is None:
        return f"{row[figure]:.1f} ({seeds})"
    if found.pairs != row["seeds"]:
        seeds += f" of which {found.pairs} in pairs"
    if found.low is not None and found.high is not None:
        seeds = f"{seeds}, {interval(found.low, found.high)}"
    return f"{row[figure]:.1f}: {found.mean:+z.1f} ({seeds})"


def runs_of(rows: Sequence[dict[str, Any]], table: Table) -> list[dict[str, Any]]:
    """Rows as `semmae compare` has them, the one that they are paired with first; UPerNet's mIoU in place of others."""
    runs = []
    rows = [
        row for row in rows
        if row["name"] == table.base
        or (row["target"] == table.target and re.match(table.names, row["name"]))
    ]  # fmt: skip
    for row in sorted(rows, key=lambda row: row["name"] != table.base):
        known = {key: value for key, value in row.items() if value is not None or key == "parts"}
        if table.figure == UPERNET:
            if UPERNET not in row:
                continue
            known = {key: value for key, value in known.items() if not key.endswith(("_top1", "_miou"))}
            known["segment_miou"] = row[UPERNET]
        runs.append(known | {"minutes": {"total": row["minutes"]}})
    return runs


def lines_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Verdict and table in Markdown."""
    rows = summary(runs)
    table = tables(rows)[0]
    shown = ["| " + " | ".join(line) + " |" for line in (table.header, ["---"] * len(table.header), *table.rows)]
    said = verdict(rows)
    return [*([f"**{said}**", ""] if said else []), *shown]


def with_lines(text: str, place: str, lines: Sequence[str]) -> str:
    """The page with these lines between <!-- PLACE --> and the next <!-- end -->."""
    before, begin, rest = text.partition(f"<!-- {place} -->")
    _, end, after = rest.partition("<!-- end -->")
    assert begin and end, f"{place}: no place on the page"
    return "\n".join([before + begin, "", *lines, "", end + after])


if __name__ == "__main__":
    main()
