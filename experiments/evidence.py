"""The tables and pictures of docs/evidence.md, of whatever results/*.json hold.

python experiments/evidence.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pieces

from semmae.reporting.comparison import draw, summary, tables, verdict

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
# Of the results by name: the table's name on the page, and the figure that it shows in place of another, if any.
TABLES = {
    "true-parts": ("true_parts", None),
    "tiny-imagenet": ("tiny_imagenet", None),
    "street-fashion": ("street_fashion", None),
    "street-fashion-upernet": ("street_fashion", "upernet_miou"),
}


def main() -> None:
    """Write the page anew."""
    text = PAGE.read_text()
    for place, (name, figure) in TABLES.items():
        file = pieces.RESULTS / f"{name}.json"
        if file.is_file() and f"<!-- {place} -->" in text:
            runs = runs_of(json.loads(file.read_text())["rows"], figure)
            text = with_lines(text, place, lines_of(runs))
            draw(PAGE.parent / "images" / f"evidence-{place}.png", summary(runs), runs)
    PAGE.write_text(text)


def runs_of(rows: Sequence[dict[str, Any]], figure: str | None = None) -> list[dict[str, Any]]:
    """Rows as `semmae compare` has them, random first; with `figure`, that in place of all others, as mIoU."""
    runs = []
    for row in sorted(rows, key=lambda row: row["name"] != "random"):
        known = {key: value for key, value in row.items() if value is not None or key == "parts"}
        if figure is not None:
            if figure not in row:
                continue
            known = {key: value for key, value in known.items() if not key.endswith(("_top1", "_miou"))}
            known["segment_miou"] = row[figure]
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
