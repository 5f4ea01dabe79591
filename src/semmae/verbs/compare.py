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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from semmae.data.kept import KeptImages
from semmae.data.manifest import ImageSet, open_images
from semmae.data.sources import splits_of
from semmae.data.splits import TRAIN, side_by_side
from semmae.data.token_store import FILE
from semmae.errors import UserError
from semmae.files import discard, read_json, remove, write_json, write_text
from semmae.names import user_path
from semmae.options.compare import MEASURES, CompareOptions, share_of
from semmae.options.fields import is_given, options_of, shared
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.values import check_given
from semmae.reporting.comparison import write_end
from semmae.reporting.page import FIGURES
from semmae.reporting.run_page import write_report
from semmae.run.finished import what_is_compared
from semmae.run.folder import claimed, run_folder, turn
from semmae.shell import command
from semmae.train.batches import Training
from semmae.verbs.channels import as_asked
from semmae.verbs.jobs import (
    RECORD,
    Job,
    check_same_options,
    jobs_of,
    record_of,
    records,
    relocate,
    run_options,
    say_left_out,
    unfinished,
)
from semmae.verbs.measures import Measures, check_measures, open_measures
from semmae.verbs.pretrain import TOKENS, load_init, train_autoencoder
from semmae.verbs.rows import Row, check_images, rows_of
from semmae.verbs.shared_stages import Stages, open_stages

_log = logging.getLogger("semmae")

# What first weights, crops and budget depend on: rows that set it themselves have them alike no more.
_ALIKE = {
    *("model", "image_size", "patch_size", "statistics", "init", "decoder_width", "decoder_depth", "decoder_heads"),
    *("crop_scale", "epochs", "batch_size", "accumulate", "target", "token_subset"),
}


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
    check_images(rows, options, len(images))
    stages, own = open_stages(own, rows, images)
    with as_asked():
        measures = open_measures(both)
    jobs = jobs_of(options, rows)
    check_same_options(own, jobs, stages)
    stages.check_begun((job.row, job.out) for job in jobs)
    measures.check_begun(job.out for job in jobs)
    with run_folder(dataclasses.replace(options, teacher=own.teacher), lambda: not unfinished(jobs, measures.names)):
        mine = jobs[index::count]
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
            stages.check_begun((job.row, job.out) for job in jobs)
            note_quality(jobs, rows, stages)
            gather(options.out, jobs)
            stages.discard_tokens()
            say_left_out(options.out, jobs)
            write_end(options.out, records(jobs), about(own, rows, images, measures), what_is_compared(options))
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


def gather(out: Path, jobs: Iterable[Job]) -> None:
    """Write results.jsonl anew, a line a finished run; one process at a time."""
    with turn(out, "gathering"):
        write_text(out / "results.jsonl", "".join(f"{json.dumps(record)}\n" for record in records(jobs)))


def note_quality(jobs: Iterable[Job], rows: Iterable[Row], stages: Stages) -> None:
    """Write how good part labels are into what was found of runs that were finished without --masks, or with others."""
    quality = {row.name: stages.quality(row) for row in rows}
    for job in jobs:
        record, found = record_of(job), quality[job.row.name]
        if not found.items() <= record.items():
            write_json(job.out / RECORD, record | found)


# A run


def make_run(options: CompareOptions, job: Job, stages: Stages, measures: Measures) -> None:
    """Train, measure, and write what was found; gone on with after a stop."""
    try:
        _make_run(options, job, stages, measures)
    except UserError as error:
        raise UserError(f"row {job.row.name}, seed {job.seed}: {error}") from error


def _make_run(options: CompareOptions, job: Job, stages: Stages, measures: Measures) -> None:
    given = run_options(options, job, stages)
    if given.resume:
        relocate(job, given)
    with claimed(given) as own:
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
    measured = [name for name in MEASURES if name in {*measures.names, *record_of(job).get("measured", ())}]
    spent = {
        **stages.minutes(job.row),
        "pretrain": read_json(own.out / "summary.json").get("minutes", 0.0),
        **{name: minutes[name] for name in measured if name in minutes},
    }
    record = {
        **described_row(job.row, own.target),
        "seed": job.seed,
        **{name: round(value, 3) for name, value in figures.items() if name in FIGURES and value is not None},
        **stages.quality(job.row),
        "minutes": {**spent, "total": round(sum(spent.values()), 3)},
        "measured": measured,
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
    return isinstance(getattr(own, name), str | int | float | Path | tuple)


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
