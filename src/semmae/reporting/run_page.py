"""The page about a run: report.html, self-contained, made of what lies in the run's folder.

- Everything on the page is read from files (config.yaml, summary.json, metrics.jsonl, parts/, pictures/,
  results.json): `semmae report RUN` gives the same page again; a missing file only leaves its section out.
- Curves are inline SVG in the colours of the page (light or dark), pictures embedded PNG. Nothing is fetched.
- The text lives in report.html.jinja, what it shares with other pages in page.py; this file prepares numbers.
"""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from semmae import files
from semmae.errors import UserError
from semmae.evaluation.protocols import UNTRAINED
from semmae.names import short
from semmae.options import VERBS, Verb
from semmae.reporting import charts, comparison
from semmae.reporting.charts import finite, number
from semmae.reporting.next_steps import Step, next_steps, resuming
from semmae.reporting.page import (
    Record,
    Table,
    by_step,
    duration,
    figures_table,
    flat,
    methods_of,
    quality,
    read_config,
    read_facts,
    read_records,
    read_skipped,
    write_page,
)
from semmae.reporting.teachers import parts_teacher, tokens_sentence, tokens_teacher
from semmae.reporting.verdicts import verdicts
from semmae.run.config import CONFIG, saved_options
from semmae.sizes import size_shown

# heading, places where the picture may lie, what the reader sees on it
PICTURES = (
    (
        "Comparison",
        (comparison.PICTURE,),
        "What each row has more than the first, in points: a dot a seed, the diamond their mean, the bar its 95 % "
        f"interval. Beyond chance is a bar that does not touch zero. {comparison.CHANCE}",
    ),
    (
        "Parts",
        ("parts/parts.png", "parts.png"),
        "Each image beside its learned parts. A colour is the same part everywhere; background is dim grey.",
    ),
    (
        "Masks along the schedule",
        ("pictures/masks.png",),
        "Hidden patches are grey; every mask hides the same number. From left to right, training goes on.",
    ),
    (
        "Reconstructions",
        ("pictures/reconstructions.png",),
        "The autoencoder sees the visible patches only; its prediction of the hidden ones is pasted in.",
    ),
    ("Confusion", ("confusion.png",), "In a row, what the images of one class were taken for, in percent."),
    (
        "Predictions",
        ("predictions.png",),
        "Validation images beside their true classes and the predicted ones; a colour is one class everywhere.",
    ),
)

_WITHIN = ("teacher", "parts", UNTRAINED)  # stages that a run may hold as runs of their own
_WIDEST = 1100  # pixels of a screen; of a wider table the figures stand below each other
_PROTOCOL = "Protocol"
_MOST_PICTURE = 2**26  # bytes of a picture


def write_report(run: Path) -> Path:
    """Writes `run`/report.html and returns its path. UserError when the folder is no run of ours."""
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the folder that a command wrote with --out")
    if not any((run / name).exists() for name in (CONFIG, "metrics.jsonl", "results.json", "parts.json")):
        raise UserError(
            f"{run}: not a run, it holds none of config.yaml, metrics.jsonl, parts.json, results.json; "
            "give the folder that a command wrote with --out"
        )
    config, summary = read_config(run), read_facts(run / "summary.json")
    stages = _read_stages(run)
    verb = saved_options(run).get("verb") or summary.get("stage") or next(reversed(stages), "")
    row = VERBS.get(verb, Verb(""))
    network = "" if config.get("eval_only") else row.network
    basics = {**(config if stages else {}), **summary, "minutes": _minutes(run)}
    results = list(_results(run))
    of_images = not (
        run / comparison.PICTURE
    ).is_file()  # a comparison's intervals are over seeds, as its protocol says
    return write_page(
        run,
        "report.html",
        verdicts=verdicts(run),
        lead=_lead(row.deed, config, basics, tokens_teacher(run, config)),
        facts=_facts(run, config, basics, stages),
        notices=_notices(run, network, stages),
        stage_table=_stage_table(run, basics, stages) if len(stages) > 1 else None,
        pictures=list(_pictures(run)),
        curves=[(_title(stage), *charts.charts(records)) for stage, records in stages.items()],
        quality=quality(read_facts(run / "parts" / "quality.json") or read_facts(run / "quality.json")),
        results=results,
        intervals=of_images
        and any(" to " in cell for table in results if table.title != _PROTOCOL for row in table.rows for cell in row),
        config=[(name, number(value)) for name, value in config.items()],
        steps=_steps(run, verb, network),
    )


# Reading


def _read_stages(run: Path) -> dict[str, list[Record]]:
    """Records per stage, in the order of work."""
    found: dict[str, list[Record]] = {}
    for folder, default in [(run, "pretrain"), *((run / stage, stage) for stage in _WITHIN)]:
        for record in read_records(folder / "metrics.jsonl"):
            found.setdefault(str(record.get("stage", default)), []).append(record)
    order = [stage for stage in VERBS if stage in found] + [stage for stage in found if stage not in VERBS]
    return {stage: by_step(found[stage]) for stage in order}


def _title(stage: str) -> str:
    if stage == UNTRAINED:
        return "The same from new weights"
    return (VERBS[stage].title if stage in VERBS else "") or stage


# Words and numbers


def _minutes(run: Path) -> float | None:
    """How long all stages of a run took together; None where no summary says it."""
    summaries = [read_facts(folder / "summary.json") for folder in (run, *(run / stage for stage in _WITHIN))]
    minutes = [summary["minutes"] for summary in summaries if "minutes" in summary]
    return sum(minutes) if minutes else None


def _lead(deed: str, config: Record, basics: Record, teacher: str | None) -> str:
    """A sentence: what was done, on what, for how long; and one about the teacher whose tokens were learned, if any."""
    masking = f" with {config['masking']} masking" if config.get("masking") else ""
    deed = deed.format(encoder=f"A {basics['model']}" if basics.get("model") else "An encoder", masking=masking)
    if basics.get("images"):
        deed += f" on {number(basics['images'])} images"
    unit = "steps" if basics.get("steps") else "epochs"
    if count := basics.get(unit):
        deed += f" for {number(count)} {unit if count != 1 else unit[:-1]}"
    if basics["minutes"]:
        deed += f", in {duration(basics['minutes'])}"
    return f"{deed}." if teacher is None else f"{deed}. {tokens_sentence(teacher)}"


def _facts(run: Path, config: Record, basics: Record, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The tiles at the top."""
    return {
        "Images": basics.get("images"),
        "Image size": (size := basics.get("image_size")) and size_shown(size),
        "Epochs": None if basics.get("steps") else basics.get("epochs"),
        "Steps": basics.get("steps"),
        "Time, all stages" if len(stages) > 1 else "Time": basics["minutes"] and duration(basics["minutes"]),
        "Data": config.get("data"),
        "Encoder": str(run / "encoder") if (run / "encoder").exists() else None,
        # What the parts are of that were learned on the way.
        "Teacher": parts_teacher(run / "parts"),
    }


def _notices(run: Path, network: str, stages: Mapping[str, list[Record]]) -> list[str]:
    """What a reader must not overlook: a run cut short, losses that were not finite, images left out."""
    notices = []
    if network and not (run / network).exists():
        notices.append(f"This run is not finished: its {network} is not written yet.")
    for stage, records in stages.items():
        bad = [int(record["step"]) for record in records if not finite(record.get("loss", 0.0))]
        if bad:
            steps = f"step {bad[0]}" if len(bad) == 1 else f"{len(bad)} records, the first at step {bad[0]}"
            notices.append(f"{_title(stage)}: the loss was not finite ({steps}).")
    for folder in (run, run / "teacher", run / "parts"):
        if (folder / "skipped.csv").exists():
            skipped = len(read_skipped(folder / "skipped.csv"))
            if skipped:
                images = "image was" if skipped == 1 else "images were"
                notices.append(f"{skipped} unreadable {images} left out; see {folder / 'skipped.csv'}.")
                break
    return notices


def _stage_table(run: Path, basics: Record, stages: Mapping[str, list[Record]]) -> Table:
    """A row per stage: how far it went, its last loss, its usual speed and the usual wait for data."""
    rows = []
    for stage, records in stages.items():
        inner = run / stage / "summary.json"
        summary = read_facts(inner if inner.exists() else run / "summary.json")
        last = {key: value for record in records for key, value in record.items()}
        speeds = [record["images_per_s"] for record in records if "images_per_s" in record]
        waits = [record["data_wait"] for record in records if "data_wait" in record]
        cells = (
            _title(stage),
            number(int(last["epoch"]) + 1 if "epoch" in last else None),
            duration(summary["minutes"]) if "minutes" in summary else "–",
            number(last.get("loss")),
            number(float(median(speeds)) if speeds else None),
            f"{median(waits):.0%}" if waits else "–",
        )
        rows.append(cells)
    rounds = "Rounds" if basics.get("steps") else "Epochs"
    return Table("", ("Stage", rounds, "Time", "Last loss", "Images/s", "Data wait"), tuple(rows))


# Sections


def _pictures(run: Path) -> Iterable[tuple[str, str, str]]:
    """(heading, caption, PNG as base64) of every picture that the run holds."""
    for heading, places, caption in PICTURES:
        path = next((run / place for place in places if (run / place).exists()), None)
        if path:
            try:
                yield heading, caption, base64.b64encode(files.read_bytes(path, _MOST_PICTURE)).decode()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error}); restore or remove it") from error


def _results(run: Path) -> Iterable[Table]:
    """For each results.json in the run and its folders: a table of scores and one of their protocol."""
    for path in sorted([*run.glob("results.json"), *run.glob("*/results.json")]):
        content = read_facts(path)
        rows = comparison.rows_in(path, content)
        if rows:
            yield from comparison.tables(rows)
            yield from _protocol(content)
            continue
        table = figures_table(methods_of(content), path.parent.name if path.parent != run else "")
        yield table if table.screen <= _WIDEST else table.turned
        yield from _protocol(content)


def _protocol(content: Record) -> Iterable[Table]:
    if content.get("protocol"):
        settings = (
            (name, short(str(value)) if name.endswith("_digest") else number(value))
            for name, value in flat(content["protocol"])
        )
        yield Table(_PROTOCOL, ("Setting", "Value"), tuple(settings))


def _steps(run: Path, verb: str, network: str) -> list[Step]:
    """What this run can be used for next; of one that was stopped, how to resume."""
    if (run / network).exists() or (run / "results.json").exists():
        return next_steps(run, verb)
    return [resuming(run, verb)] if (run / "checkpoints" / "last.ckpt").exists() else []
