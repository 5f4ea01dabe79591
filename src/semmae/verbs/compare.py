"""`semmae compare`: maskings trained alike, each with several seeds, and measured alike.

Notable here:
- rows of one seed begin with the same weights and see the same crops in the same order: both depend on the seed alone;
- what all of them read is made once: the teacher and its tokens, part labels of every kind, the data to measure on;
- each run is one of `semmae pretrain`, in `runs/ROW/seed-N`; what was found of it stands there in comparison.json,
  written last. A comparison that was stopped goes on with the run that it was at, as `--resume` of pretrain does;
- processes that share a comparison out (--part) wait for each other where something is made for all, and write each
  its own runs: whichever finds all runs there writes the end.
"""

import dataclasses
import functools
import json
import logging
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from semmae.data.kept import KeptImages
from semmae.data.manifest import ImageSet, open_images
from semmae.data.sources import splits_of
from semmae.data.splits import TRAIN, side_by_side
from semmae.data.token_store import FILE
from semmae.errors import UserError
from semmae.files import Fields, discard, read_json, remove, write_json, write_text
from semmae.names import user_path
from semmae.options.compare import CompareOptions, share_of
from semmae.options.fields import flag, is_given, options_of, shared
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import OWN_TEACHER
from semmae.options.values import as_given, check_given
from semmae.reporting.comparison import check_record, write_end
from semmae.reporting.page import FIGURES
from semmae.reporting.run_page import write_report
from semmae.run.config import CONFIG, kept_values, saved_options
from semmae.run.folder import claimed, run_folder, turn
from semmae.shell import command
from semmae.train.batches import Training
from semmae.verbs.channels import as_asked
from semmae.verbs.measures import Measures, check_measures, open_measures
from semmae.verbs.pretrain import TOKENS, load_init, train_autoencoder
from semmae.verbs.rows import Row, rows_of
from semmae.verbs.shared_stages import Stages, open_stages

_log = logging.getLogger("semmae")

RECORD = "comparison.json"  # in the folder of a run: what was found of it
# What first weights, crops and budget depend on: rows that set it themselves have them alike no more.
_ALIKE = {
    *("model", "image_size", "patch_size", "statistics", "init", "decoder_width", "decoder_depth", "decoder_heads"),
    *("crop_scale", "epochs", "batch_size", "accumulate", "target", "token_subset"),
}


class Job(NamedTuple):
    """A run: a row, and the seed that it is trained with."""

    row: Row
    seed: int
    out: Path


def compare(options: CompareOptions) -> Path:
    """Compare maskings: the same weights, crops and budget for each, several seeds, one table with intervals."""
    index, count = share_of(options.part)
    check_measures(options)
    preset_options("parts", options.parts_preset, "--parts-preset")
    both = with_annotations(options)
    rows = rows_of(both)
    check_seeds(options)
    shared(Training, options).check()
    images, own = training_images(both)
    options.check_images(len(images))
    stages, own = open_stages(own, rows, images)
    with as_asked():
        measures = open_measures(both)
    jobs = jobs_of(options, rows)
    check_same_options(own, jobs, stages)
    measures.check_begun(job.out for job in jobs)
    with run_folder(dataclasses.replace(options, teacher=own.teacher), lambda: not unfinished(jobs, measures.names)):
        mine = jobs[index::count]
        stages.check_begun(job.out for job in jobs)
        stages.make([job.row for job in unfinished(mine, measures.names)])
        for number, job in enumerate(mine, 1):
            if unfinished([job], measures.names):
                _log.info("run %d of %d: %s, seed %d", number, len(mine), job.row.name, job.seed)
                make_run(own, job, stages, measures)
                gather(options.out, jobs)
        left = unfinished(jobs, measures.names)
        if left:
            _log.info("%d of %d runs are not there yet: other parts make them", len(left), len(jobs))
        else:
            check_same_options(own, jobs, stages)  # those that others have made meanwhile too
            note_quality(jobs, rows, stages)
            gather(options.out, jobs)
            stages.discard_tokens()
            write_end(options.out, records(jobs), about(own, rows, images, measures))
            write_report(options.out)
    return options.out


def with_annotations(options: CompareOptions) -> CompareOptions:
    """Where --data holds images and annotations side by side, these two as --data and --masks."""
    if options.masks is not None or not isinstance(options.data, str | Path):
        return options
    found = side_by_side(user_path(options.data, "--data"))
    return options if found is None else dataclasses.replace(options, data=str(found[0]), masks=found[1])


def training_images(options: CompareOptions) -> tuple[KeptImages, CompareOptions]:
    """The images to train on, the first split where the data has some, and the options with that split as --data, if it
    is a place by itself: so anybody makes a run again. With it goes --masks, where that has a folder of the same name.
    """
    data: Any = options.data
    masks = options.masks
    split = splits_of(data)[0]
    if split is not None and isinstance(data, str | Path):
        root = user_path(data, "--data")
        places = [place for name in TRAIN for place in (root / name, *root.glob(f"{name}*.parquet")) if place.exists()]
        if len(places) == 1:
            data, split = str(places[0]), None
            if masks is not None and (masks / places[0].name).is_dir():
                masks = masks / places[0].name
    with as_asked():
        images = open_images(
            data, split=split, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
            channels=options.channels,
        )  # fmt: skip
    return KeptImages(images), dataclasses.replace(options, data=data, masks=masks)


def check_seeds(options: CompareOptions) -> None:
    """Refuse seeds of which the last is none, before the first is trained."""
    highest, last = options_of(CompareOptions)["seed"].facts.high, options.seed + options.seeds - 1
    if last > highest:
        raise UserError(
            f"--seed {options.seed} --seeds {options.seeds}: the last seed would be {last}, above {highest:.0f}; "
            "begin with a lower one, or take fewer"
        )


def jobs_of(options: CompareOptions, rows: Iterable[Row]) -> list[Job]:
    """All runs, a seed after the other, so that pairs are whole early."""
    seeds = range(options.seed, options.seed + options.seeds)
    return [Job(row, seed, options.out / "runs" / row.name / f"seed-{seed}") for seed in seeds for row in rows]


def unfinished(jobs: Iterable[Job], names: Sequence[str]) -> list[Job]:
    """The runs of which not everything is known yet that is to be measured."""
    return [job for job in jobs if not {*names} <= {*_record(job).get("measured", ())}]


def records(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """What was found of the runs that are finished."""
    return [found for job in jobs if (found := _record(job))]


def _record(job: Job) -> dict[str, Any]:
    path = job.out / RECORD
    if not path.is_file():
        return {}
    found = read_json(path)
    check_record(Fields(path, found))
    return found


def gather(out: Path, jobs: Iterable[Job]) -> None:
    """Write results.jsonl anew, a line a finished run; one process at a time."""
    with turn(out, "gathering"):
        write_text(out / "results.jsonl", "".join(f"{json.dumps(record)}\n" for record in records(jobs)))


def note_quality(jobs: Iterable[Job], rows: Iterable[Row], stages: Stages) -> None:
    """Write how good part labels are into what was found of runs that were finished without --masks, or with others."""
    quality = {row.name: stages.quality(row) for row in rows}
    for job in jobs:
        record, found = _record(job), quality[job.row.name]
        if not found.items() <= record.items():
            write_json(job.out / RECORD, record | found)


# A run


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
        if name not in every or every[name].facts.on_resume != "same" or every[name].facts.reads:
            continue
        if was.get(name) == value:
            continue
        raise UserError(
            f"row {job.row.name}: {flag(name)} {as_given(value)}: {job.out} was made with {as_given(was.get(name))}; "
            "name the row anew, or use another --out"
        )


def make_run(options: CompareOptions, job: Job, stages: Stages, measures: Measures) -> None:
    """Train, measure, and write what was found; gone on with after a stop."""
    with claimed(run_options(options, job, stages)) as own:
        with run_folder(own):
            record = _trained_and_measured(own, job, stages, measures)
        # Last of all: a run that has it is not opened again, and what marks it as unfinished must be gone.
        write_json(own.out / RECORD, record)


def _trained_and_measured(own: PretrainOptions, job: Job, stages: Stages, measures: Measures) -> dict[str, Any]:
    """What was found of a run; nothing is left in it that was needed for that alone."""
    teacher = None
    if not _is_trained(own.out):
        if own.predicts_tokens:
            teacher = stages.open_teacher()
            stages.give_tokens(job.row, own.out)
        train_autoencoder(own, stages.images, stages.store(job.row), load_init(own, teacher), teacher)
    figures, minutes = measures.run(own.out, job.seed)
    spent = {
        **stages.minutes(job.row),
        "pretrain": read_json(own.out / "summary.json").get("minutes", 0.0),
        **{name: minutes[name] for name in measures.names},
    }
    record = {
        **described_row(job.row, own.target),
        "seed": job.seed,
        **{name: round(value, 3) for name, value in figures.items() if name in FIGURES and value is not None},
        **stages.quality(job.row),
        "minutes": {**spent, "total": round(sum(spent.values()), 3)},
        "measured": list(measures.names),
        "command": _command(own),
        "machine": machine(),
    }
    write_report(own.out)
    remove(own.out / "checkpoints")
    discard(own.out / TOKENS, FILE)
    return record


def _is_trained(run: Path) -> bool:
    """Whether the autoencoder of a run is whole."""
    summary = run / "summary.json"
    return summary.is_file() and bool(read_json(summary).get("finished"))


def described_row(row: Row, target: str) -> dict[str, Any]:
    """What a row is, for tables."""
    variant = " ".join(f"{name}={value}" for name, value in row.variant.items())
    return {"name": row.name, "masking": row.masking, "variant": variant, "parts": row.parts, "target": target}


def _command(own: PretrainOptions) -> str:
    """The command of pretrain that makes this run."""
    names = [name for name, each in options_of(PretrainOptions).items() if not each.facts.control]
    given = {name: getattr(own, name) for name in names if is_given(own, name) and _has_effect(own, name)}
    return command("pretrain", **{name: value for name, value in given.items() if name != "preset"})


def _has_effect(own: PretrainOptions, name: str) -> bool:
    """Whether an option that all rows share is one of this run's masking."""
    try:
        check_given(own, [name])
    except UserError:
        return False
    return isinstance(getattr(own, name), str | int | float | Path)


@functools.cache
def machine() -> str:
    """What computes here, in words."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"


def about(options: CompareOptions, rows: Iterable[Row], images: ImageSet, measures: Measures) -> dict[str, Any]:
    """How the comparison was made, for results.json."""
    found = measures.evaluate
    own = sorted({name for row in rows for name in row.given} & _ALIKE)
    but = f", but for what rows set themselves ({', '.join(own)})" if own else ""
    return {
        "method": f"runs of the same seed have the same first weights and crops{but}; differences are within seeds",
        "data": str(options.data), "images": len(images), "epochs": options.epochs, "model": options.model,
        "image_size": options.image_size, "patch_size": options.patch_size, "seeds": options.seeds,
        "first_seed": options.seed, "measured_on": str(found.data), "measured_images": measures.images,
        "measured": ", ".join(measures.names), "interval": "95 %, Student's t over seeds",
    }  # fmt: skip
