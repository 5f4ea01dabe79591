"""What the two HTML pages share: reading a run's files, words and numbers, the table of part quality, the template.

A page is made of files only, so that it can be made again; page.html.jinja holds its style and frame.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from semmae import files
from semmae.errors import UserError
from semmae.evaluation.protocols import OWN, PART_METHODS, PROTOCOLS
from semmae.names import encoded, shown
from semmae.reporting import charts
from semmae.reporting.charts import finite, number
from semmae.run.config import CONFIG, readable_value, saved_options
from semmae.shell import again

Record = Mapping[str, Any]

# What figures are called in tables: those of a single protocol, then those of several, in the order of their table.
FIGURES = {name: row.words(name) for row in PROTOCOLS.values() if row.prefix for name in row.summary} | {
    row.prefix + name: row.full_words(name) for row in PROTOCOLS.values() for name in row.summary
}

QUALITY_ROWS = {method: words[0].upper() + words[1:] for method, words in PART_METHODS.items()}
SCORES = {
    "nmi": "NMI",
    "ari": "ARI",
    "foreground_iou": "Foreground IoU",
    "nmi_all": "All-pixel NMI",
    "ari_all": "All-pixel ARI",
    "keypoint_nmi": "Keypoint NMI",
    "keypoint_ari": "Keypoint ARI",
}
QUALITY_COLUMNS = {key: f"{name} %" for key, name in SCORES.items()} | {"parts_used": "Parts in use"}

# Of a page, in pixels: left and right of all, of a letter in a table, left of a cell.
_MARGINS, _LETTER, _PADDING = 40, 8, 14
_NUMBER = (int, float)
# What is read of a run's files, and its type.
_FACTS: dict[str, dict[str, Any]] = {
    "summary.json": {
        "stage": str,
        "images": int,
        "skipped": int,
        "classes": int,
        "minutes": _NUMBER,
        "finished": bool,
        "epochs": _NUMBER,
        "steps": int,
        "image_size": (int, list),
        "model": str,
        "manifest": str,
    },
    "parts.json": {"images": int, "label_names": list, "extra": dict},
    "results.json": {"protocol": dict},
}


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of text; `best` holds the (row, column) of cells to stress."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()

    @property
    def turned(self) -> "Table":
        """The same with a row for each column."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Table(self.title, header, tuple(rows))

    @property
    def screen(self) -> int:
        """How wide a screen shows it whole, about, in pixels rounded up to hundreds: on a narrower one it scrolls."""
        # As page.html.jinja sets it: heads and the first column are broken between words, other cells are not.
        pixels = _MARGINS
        for column, (head, *cells) in enumerate(zip(self.header, *self.rows, strict=True)):
            unbroken = [*head.split(), *(word for cell in cells for word in (cell.split() if column == 0 else [cell]))]
            pixels += _LETTER * max(map(len, unbroken), default=0) + _PADDING
        return -(-pixels // 100) * 100


def write_page(run: Path, file: str, facts: Mapping[str, object], **values: Any) -> Path:
    """Writes a page into a run's folder, from the template of that name; returns its path.

    Everything put in is text: `<` cannot become markup. `facts`: the tiles at the top, but for those that are unknown.
    """
    tiles = [(name, number(value)) for name, value in facts.items() if value]
    template = _environment().get_template(f"{file}.jinja")
    page = template.render(name=run.resolve().name, facts=tiles, frame=charts, again=again(run), **values)
    files.write_bytes(run / file, encoded(page))
    return run / file


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("semmae.reporting", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# Reading


def read_facts(path: Path, form: str | None = None) -> dict[str, Any]:
    """The object in one of a run's files, {} when there is no file; UserError where a value is of a wrong type.

    `form`: the name that such a file has in a run, where this one has another.
    """
    if not path.exists():
        return {}
    content, form = files.read_json(path), form or path.name
    _check_types(path, content, _FACTS.get(form, {}))
    if form == "parts.json":
        _check_types(path, content.get("extra", {}), {"teacher": str}, null=True)
    elif form == "quality.json":
        _check_types(path, content, dict.fromkeys(QUALITY_ROWS, dict))
        for scores in (content[method] for method in QUALITY_ROWS if method in content):
            _check_types(path, scores, dict.fromkeys(scores, _NUMBER))
    elif form == "results.json":
        _check_types(path, content.get("protocol", {}), {"method": str, "encoder_digest": str})
        for figures in (content, *(value for value in content.values() if isinstance(value, dict))):
            _check_types(path, figures, dict.fromkeys(FIGURES, _NUMBER), null=True)
    return content


def read_config(run: Path) -> dict[str, Any]:
    """The options of a run as its pages show them; {} when there is no file of them."""
    options = {name: readable_value(value) for name, value in saved_options(run).items() if name != "verb"}
    _check_types(run / CONFIG, options, {"image_size": (int, list), "epochs": int, "steps": int}, null=True)
    return options


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """(name, reason) of the images in a skipped.csv; none when there is no file."""
    if not path.exists():
        return []
    header, *rows = files.read_csv(path) or [[]]
    if header != ["name", "reason"] or any(len(row) != 2 for row in rows):
        raise UserError(f"{path}: not the table of name and reason that was written; restore it, or remove it")
    return [(name, reason) for name, reason in rows]


def _check_types(path: Path, content: Mapping[str, Any], kinds: Mapping[str, Any], *, null: bool = False) -> None:
    """UserError where a value is there and of another type than given here; with `null` it may be null."""
    fields = files.Fields(path, {name: value for name, value in content.items() if not null or value is not None})
    for name, kind in kinds.items():
        fields.get(name, kind)


def flat(protocol: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value) of every setting, however deep."""
    for name, value in protocol.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def with_intervals(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with their 95 % intervals in one text, `41.2 (38.4 to 44.0)`, in place of three numbers."""
    shown: dict[str, Any] = {}
    for name, value in figures.items():
        low, high = (figures.get(f"{name}_{end}") for end in ("low", "high"))
        if finite(value) and finite(low) and finite(high):
            shown[name] = f"{value:.1f} ({low:.1f} to {high:.1f})"
        elif name.removesuffix("_low").removesuffix("_high") not in figures or not name.endswith(("_low", "_high")):
            shown[name] = value
    return shown


def figures_table(methods: Mapping[str, Record], title: str = "") -> Table:
    """A row a method, a column each figure that is a single number or text, with its interval."""
    shown = {name.replace("_", " "): with_intervals(figures) for name, figures in methods.items()}
    columns = dict.fromkeys(
        name for figures in shown.values() for name, value in figures.items() if not isinstance(value, dict | list)
    )
    rows = ((name, *(score(figures.get(column)) for column in columns)) for name, figures in shown.items())
    return Table(title, ("", *map(called, columns)), tuple(rows))


def methods_of(results: Record) -> dict[str, Record]:
    """Of a results.json: the encoder, and what it is compared with, by name, with their figures."""
    named: dict[str, Record] = {
        name: value for name, value in results.items() if isinstance(value, dict) and name != "protocol"
    }
    if OWN in named:
        return named
    # What it is compared with has the same figures; other tables in the file, of classes, have not.
    return {OWN: results, **{name: figures for name, figures in named.items() if results.keys() & figures.keys()}}


def figure_rows(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures by method, the other way round: what each is called → method → figure; those alone that have a name."""
    return {
        words: {method: with_intervals(figures).get(name) for method, figures in methods.items()}
        for name, words in FIGURES.items()
        if any(name in figures for figures in methods.values())
    }


def called(figure: str) -> str:
    """What a figure is called in tables, be it one of several protocols or not."""
    for row in PROTOCOLS.values():
        if row.prefix and figure.startswith(row.prefix):
            return row.full_words(figure.removeprefix(row.prefix))
    return next((row.words(figure) for row in PROTOCOLS.values() if figure in row.figures), figure.replace("_", " "))


def read_records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl; none when there is no file. UserError where one holds what is no figure."""
    if not path.exists():
        return []
    records = files.read_records(path)
    for place, record in enumerate(records, 1):
        kinds = {**dict.fromkeys(record, _NUMBER), "stage": str, "step": int, "epoch": int}
        _check_types(Path(f"{path}, record {place}"), record, kinds)
        if not re.fullmatch("[a-z]{0,20}", record.get("stage", "")):  # it is the name of a folder too
            raise UserError(f"{path}, record {place}: stage is {shown(record['stage'])}, no stage; restore it")
    return list(records)


def by_step(records: Iterable[Record]) -> list[Record]:
    """Records in the order of their steps; a step logged again after a resume counts once."""
    steps: dict[int, dict[str, Any]] = {}
    for record in records:
        step = int(record.get("step", len(steps)))
        steps.setdefault(step, {"step": step}).update(record)
    return [steps[step] for step in sorted(steps)]


# Words and numbers


def duration(minutes: float) -> str:
    """38 s, 4.2 min, 42 min, 3.5 h."""
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    if minutes < 90:
        return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def score(value: object) -> str:
    """Scores of one column line up: always one decimal."""
    lined_up = isinstance(value, float) and (value == 0 or 1 <= abs(value) < 1000)
    return f"{value:.1f}" if lined_up else number(value)


# Part quality


def quality(measured: Mapping[str, Mapping[str, float]]) -> tuple[str, Table] | None:
    """Of quality.json, method → scores in percent: a verdict and the table; None when nothing was measured."""
    methods = [method for method in QUALITY_ROWS if method in measured]
    if not methods:
        return None
    columns = [key for key in QUALITY_COLUMNS if any(key in measured[method] for method in methods)]
    rows, best = [], set()
    for method in methods:
        scores = measured[method]
        rows.append((QUALITY_ROWS[method], *(f"{scores[key]:.1f}" if key in scores else "–" for key in columns)))
    for column, key in enumerate(columns, 1):
        values = [measured[method].get(key, -math.inf) for method in methods]
        if key in SCORES and len(methods) > 1:
            best |= {(row, column) for row, value in enumerate(values) if value == max(values)}
    table = Table("", ("", *(QUALITY_COLUMNS[key] for key in columns)), tuple(rows), frozenset(best))
    return _verdict(measured, methods), table


def _verdict(measured: Mapping[str, Mapping[str, float]], methods: list[str]) -> str:
    """Whether the learned parts beat everything they are compared with, measure by measure."""
    others = [method for method in methods if method != "learned"]
    if "learned" not in methods or not others:
        return ""
    lost = []
    for key, name in SCORES.items():
        leader = max(others, key=lambda other: measured[other].get(key, -math.inf))
        if key in measured["learned"] and measured[leader].get(key, -math.inf) >= measured["learned"][key]:
            lost.append(f"{name} (by {QUALITY_ROWS[leader]})")
    if not lost:
        return "The learned parts beat everything they are compared with, on every measure."
    return f"The learned parts are matched or beaten on {', '.join(lost)}."


def quality_text(scores: Mapping[str, Mapping[str, float]], images: int) -> str:
    """The table of quality in plain text, the best of each column starred, and a verdict."""
    shown = quality(scores)
    assert shown is not None, "the learned parts at least were measured"
    verdict, table = shown
    title = f"Part quality on {images} images (* best of its column)"
    return "\n".join([title, *text_lines(table), verdict])


def text_lines(table: Table) -> list[str]:
    """Columns lined up: the first to the left, figures to the right, a star or its room behind each."""
    cells = [[f"{name} " for name in table.header]]
    for index, row in enumerate(table.rows):
        cells.append([cell + ("*" if (index, column) in table.best else " ") for column, cell in enumerate(row)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]
