"""The runs of a comparison: which there are, what was found of them, whether they are those that are asked for.

What a row is may change while its name stays; a run is known by its options, and by digests of its images, its teacher
and its part labels, wherever these lie.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semmae.errors import UserError, listed
from semmae.files import Fields, read_json, write_text
from semmae.options.compare import PART_KINDS, CompareOptions
from semmae.options.fields import flag, options_of
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import OWN_TEACHER
from semmae.options.values import as_given
from semmae.reporting.comparison import check_record
from semmae.run.config import CONFIG, kept_values, saved_options, to_yaml
from semmae.verbs.rows import Row
from semmae.verbs.shared_stages import Stages

_log = logging.getLogger("semmae")

RECORD = "comparison.json"  # in the folder of a run: what was found of it


class Job(NamedTuple):
    """A run: a row, and the seed that it is trained with."""

    row: Row
    seed: int
    out: Path


def jobs_of(options: CompareOptions, rows: Iterable[Row]) -> list[Job]:
    """All runs, a seed after the other, so that pairs are whole early."""
    seeds = range(options.seed, options.seed + options.seeds)
    return [Job(row, seed, options.out / "runs" / row.name / f"seed-{seed}") for seed in seeds for row in rows]


def unfinished(jobs: Iterable[Job], names: Sequence[str]) -> list[Job]:
    """The runs of which not everything is known yet that is to be measured."""
    return [job for job in jobs if not {*names} <= {*record_of(job).get("measured", ())}]


def records(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """What was found of the runs that are finished."""
    return [found for job in jobs if (found := record_of(job))]


def record_of(job: Job) -> dict[str, Any]:
    """What was found of a run; nothing where it is not finished."""
    path = job.out / RECORD
    if not path.is_file():
        return {}
    found = read_json(path)
    check_record(Fields(path, found))
    if (found["name"], found["seed"]) != (job.row.name, job.seed):
        raise UserError(
            f"{path}: is of row {found['name']}, seed {found['seed']}; move the folder back, or remove it, and the run "
            "is made anew"
        )
    return found


def say_left_out(out: Path, jobs: Iterable[Job]) -> None:
    """Say which finished runs of other rows and seeds lie there, and are not among those of this end."""
    asked = {job.out for job in jobs}
    others = [path.parent for path in sorted(out.glob(f"runs/*/seed-*/{RECORD}")) if path.parent not in asked]
    if others:
        names = listed(f"{run.parent.name}, {run.name}" for run in others)
        _log.info("%s holds other runs too, not asked for now and in no table: %s", out / "runs", names)


def run_options(options: CompareOptions, job: Job, stages: Stages) -> PretrainOptions:
    """Options of pretrain for a run, whose folder may hold its beginning."""
    if options.teacher == OWN_TEACHER:
        options = dataclasses.replace(options, teacher=str(options.out / "teacher"))
    own = job.row.options(options, job.out, job.seed, stages.folder(job.row))
    return dataclasses.replace(own, resume=(job.out / CONFIG).is_file())


def check_same_options(options: CompareOptions, jobs: Iterable[Job], stages: Stages) -> None:
    """Refuse runs, of whatever share, that were made with other options than their rows have now.

    Where things lie does not matter.
    """
    for job in jobs:
        if (job.out / CONFIG).is_file() or (job.out / RECORD).is_file():
            _check_same_options(options, job, stages)


def _check_same_options(options: CompareOptions, job: Job, stages: Stages) -> None:
    every, was = options_of(PretrainOptions), saved_options(job.out)
    if not was:
        raise UserError(
            f"row {job.row.name}: {job.out / CONFIG} is missing, which says how the run was made; restore it, or "
            "remove the folder, and the run is made anew"
        )
    for name, value in kept_values(run_options(options, job, stages)).items():
        if name not in every or every[name].facts.on_resume != "same":
            continue
        before = was.get(name, every[name].default)
        # What lies behind a path is known by its digest: `Stages.check_begun`.
        if before == value or (every[name].facts.reads and _may_be_moved(before, value)):
            continue
        raise UserError(
            f"row {job.row.name}: {flag(name)} {as_given(value)}: {job.out} was made with {as_given(before)}; "
            "name the row anew, or use another --out"
        )


def _may_be_moved(before: Any, now: Any) -> bool:
    """Whether two paths may be those of one thing: neither is none, nor are they labels of two kinds made here."""
    return before is not None and now is not None and _made_kind(Path(before)) == _made_kind(Path(now))


def _made_kind(folder: Path) -> str | None:
    return folder.name if folder.parent.name == "labels" and folder.name in PART_KINDS else None


def relocate(job: Job, options: PretrainOptions) -> None:
    """Note in a run's config.yaml where things lie now; for a run that was found to be the same, in a moved folder."""
    was, every = saved_options(job.out), options_of(PretrainOptions)
    now = kept_values(options).items()
    if any(was.get(name, value) != value and name in every and every[name].facts.reads for name, value in now):
        write_text(job.out / CONFIG, to_yaml(options))
