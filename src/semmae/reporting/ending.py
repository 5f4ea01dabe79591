"""How a verb ends: what it made, where the page is, a verdict where something was measured, what to do next.

Notable here:
- it is shown when everything is written and the run is marked as finished: a reader that closes the pipe costs nothing;
- it is made of the run's files alone, so that a finished run that is asked for again says the same and computes
  nothing.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from semmae import files
from semmae.errors import UserError
from semmae.options.fields import Reads, options_of, with_facts
from semmae.options.shared import RunOptions
from semmae.progress import logged, say
from semmae.reporting import next_steps
from semmae.reporting.page import read_facts
from semmae.run.config import UNFINISHED, began_alike
from semmae.run.places import existing, newest
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
# What a training leaves, by its stage.
_LEFT = {
    "teacher": "encoder",
    "parts": "parts.npy",
    "pretrain": "encoder",
    "finetune": "classifier",
    "segment": "segmenter",
}
# Where in a run what an option reads lies.
_INSIDE: dict[Reads | None, tuple[str, ...]] = {
    "network": ("", "encoder", "autoencoder", "classifier", "segmenter", "checkpoints"),
    "labels": ("", "parts"),
    "learner": ("", "learner"),
}
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npy")
_PAGES = ("report.html", "parts.html", "parts/parts.html")
OptionsT = TypeVar("OptionsT", bound=RunOptions)


def ended(verb: Callable[[OptionsT], Path]) -> Callable[[OptionsT], Path]:
    """A verb that shows at its end what its run came to; where the run is finished already, that alone."""

    @functools.wraps(verb)
    def shown(options: OptionsT) -> Path:
        if not already_finished(options):
            end(verb(options))
        return options.out

    return shown


def end(run: Path, table: Sequence[str] | None = None) -> None:
    """Show how a run ended, and keep it in its train.log; by the first process alone.

    Args:
        run: its folder.
        table: figures to show, in place of those of its results.md.
    """
    if is_rank_zero():
        with logged(run / "train.log"):
            say(ending(run, table))


def already_finished(options: RunOptions) -> bool:
    """Whether `options.out` holds this very run, finished; its ending is shown then, and nothing is to be done."""
    if options.overwrite or not is_finished(options.out) or not began_alike(options, leaves_the_same=True):
        return False
    if any(getattr(options, name) for name in with_facts(type(options), continues=True) if name != "resume"):
        return False  # labels or figures are asked for again
    _refuse_stale(options)
    if is_rank_zero():
        told = f"{options.out}: already finished; nothing was computed (--overwrite begins it anew)"
        say(f"{told}\n\n{ending(options.out)}")
    return True


def _refuse_stale(options: RunOptions) -> None:
    """Refuse to call a run finished whose encoder, labels or images were changed since it began: it is of others."""
    begun = (options.out / "config.yaml").stat().st_mtime
    for name, option in options_of(type(options)).items():
        value, reads = getattr(options, name), option.facts.reads
        roots = existing(value) if isinstance(value, str | Path) and reads not in (None, "file") else []
        if reads in _INSIDE:
            places = [root / folder for root in roots for folder in _INSIDE[reads]]
            files = (file for place in places for file in (place.iterdir() if place.is_dir() else [place]))
            roots = [file for file in files if file.suffix in _WEIGHTS]
        last = newest(roots, options.out)
        if last is not None and last[0] > begun:
            raise UserError(
                f"--out {options.out}: finished, but {last[1]} was changed since it began; use --overwrite to begin it "
                "anew, or another folder"
            )


def is_finished(run: Path) -> bool:
    """Whether the folder holds a run that came to its good end, by the files that it leaves there."""
    if not (run / "config.yaml").is_file() or (run / UNFINISHED).exists():
        return False
    summary = read_facts(run / "summary.json")
    left = _LEFT.get(summary.get("stage", ""))
    if left and not (run / left).exists() or read_facts(run / "parts.json").get("complete", True) is not True:
        return False  # --resume makes it again
    of_demo = read_facts(run / "run" / "summary.json")
    return (run / "results.json").is_file() or any(each.get("finished") is True for each in (summary, of_demo))


def ending(run: Path, table: Sequence[str] | None = None) -> str:
    """The last lines of a verb that wrote the folder of a run; arguments as for `end`."""
    inner = run / "run" if next_steps.verb_of(run) == "demo" else run
    made = [f"{inner / name} ({what})" for name, what in _MADE.items() if (inner / name).exists()]
    pages = [str(inner / page) for page in _PAGES if (inner / page).is_file()]
    steps = next_steps.next_steps(run)
    return lines(_table(inner) if table is None else table, next_steps.verdicts(inner), made, pages, first(steps))


def first(steps: Sequence[next_steps.Step]) -> str:
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
