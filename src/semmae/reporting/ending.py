"""The last lines of a verb: its figures, the verdict on them, what was made, where the page is, what to do next.

They are made of the run's files alone, so that a finished run that is asked for again says the same.
"""

from collections.abc import Sequence
from pathlib import Path

from semmae import files
from semmae.options import VERBS, Verb
from semmae.progress import logged, say
from semmae.reporting.next_steps import Step, next_steps
from semmae.reporting.page import quality, read_facts, text_lines
from semmae.reporting.verdicts import verdicts
from semmae.run.config import saved_options
from semmae.run.ranks import is_rank_zero

# What a run leaves for other programs, and what it is.
_MADE = {
    "encoder": "timm loads it",
    "autoencoder": "encoder and decoder",
    "classifier": "timm loads it, head and all",
    "segmenter": "semmae.load_segmenter reads it",
    "head": "semmae.load_head reads it",
    "learner": "the part learner",
    "parts.npy": "the labels of every image",
    "quality.json": "how good the parts are",
    "results.json": "figures and protocol",
    "per_class.csv": "every class by itself",
}
_PAGES = ("report.html", "parts.html", "parts/parts.html")


def end(run: Path) -> None:
    """Show how a run ended, and keep it in its train.log; by the first process alone."""
    if is_rank_zero():
        with logged(run / "train.log"):
            say(ending(run))


def ending(run: Path) -> str:
    """The last lines of a verb that wrote the folder of a run."""
    row = VERBS.get(saved_options(run).get("verb", ""), Verb(""))
    inner = run / row.within
    made = [f"{inner / name} ({what})" for name, what in _MADE.items() if (inner / name).exists()]
    pages = [str(inner / page) for page in _PAGES if (inner / page).is_file()]
    parts = quality(read_facts(inner / "parts" / "quality.json")) if row.within else None
    tables = [*text_lines(parts[1]), ""] if parts else []
    return lines([*tables, *_table(inner)], verdicts(inner), made, pages, first(next_steps(run)))


def first(steps: Sequence[Step]) -> str:
    """The command of the usual next step; empty where there is none."""
    return steps[0].command if steps else ""


def lines(
    table: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    made: Sequence[str] = (),
    pages: Sequence[str] = (),
    step: str = "",
) -> str:
    """The end of a verb as text: the figures, the verdict on them, what was made, where to look, what is next."""
    named = [*_labelled("made", made), *_labelled("page", pages), *_labelled("next", [step] if step else [])]
    return "\n\n".join("\n".join(block).strip("\n") for block in (table, verdicts, named) if block)


def _labelled(name: str, values: Sequence[str]) -> list[str]:
    """A line each, the name before the first."""
    return [f"{name if number == 0 else '':6}{value}" for number, value in enumerate(values)]


def _table(run: Path) -> list[str]:
    """The first table of results.md; none where nothing was measured."""
    path = run / "results.md"
    if not path.is_file():
        return []
    rows: list[str] = []
    for line in files.read_text(path, errors="surrogateescape").splitlines():
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            break
    return rows
