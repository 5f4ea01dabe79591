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
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from semmae.data.kept import KeptImages
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore, read_meta
from semmae.data.sources import splits_of
from semmae.data.splits import side_by_side
from semmae.errors import UserError
from semmae.evaluation.parts import Truth, read_truth, score
from semmae.files import make_folder, read_json, remove, write_json, write_text
from semmae.formats.open import load_encoder
from semmae.labels.kinds import annotated_parts, cluster_parts, grid_parts, shuffled_parts
from semmae.labels.labelling import teacher_of
from semmae.models.vit import Encoder
from semmae.names import shown, user_path
from semmae.options.compare import CompareOptions
from semmae.options.fields import flag, is_given, options_of, shared
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER
from semmae.options.values import check_given
from semmae.reporting.comparison import write_end
from semmae.reporting.page import FIGURES
from semmae.reporting.run_page import write_report
from semmae.run.config import CONFIG, kept_values, saved_options
from semmae.run.folder import claimed, run_folder, turn
from semmae.shell import command
from semmae.train.batches import Training
from semmae.verbs.measures import Measures, check_measures, minutes_in, open_measures, timed
from semmae.verbs.parts import shown_size
from semmae.verbs.pretrain import (
    load_init,
    own_teacher,
    part_labels,
    store_tokens,
    teacher_of_parts,
    teacher_sees_crops,
    train_autoencoder,
    with_teacher,
)
from semmae.verbs.rows import Row, rows_of
from semmae.verbs.stages import parts_stage

_log = logging.getLogger("semmae")

RECORD = "comparison.json"  # in the folder of a run: what was found of it
_QUALITY = ("nmi", "ari", "foreground_iou")  # of part labels, where true parts are known


class Job(NamedTuple):
    """A run: a row, and the seed that it is trained with."""

    row: Row
    seed: int
    out: Path


def compare(options: CompareOptions) -> Path:
    """Compare maskings: the same weights, crops and budget for each, several seeds, one table with intervals."""
    index, count = share_of(options.part)
    check_measures(options)
    options = with_annotations(options)
    rows = rows_of(options)
    shared(Training, options).check()
    images = KeptImages(training_images(options))
    options.check_images(len(images))
    stages, options = open_stages(options, rows, images)
    measures = open_measures(options)
    jobs = jobs_of(options, rows)
    with run_folder(options, lambda: not unfinished(jobs, measures.names)):
        mine = jobs[index::count]
        stages.make([job.row for job in unfinished(mine, measures.names)])
        for number, job in enumerate(mine, 1):
            if unfinished([job], measures.names):
                _log.info("run %d of %d: %s, seed %d", number, len(mine), job.row.name, job.seed)
                make_run(options, job, stages, measures)
            else:
                check_alike(options, job, stages)
            gather(options.out, jobs)
        left = unfinished(jobs, measures.names)
        if left:
            _log.info("%d of %d runs are not there yet: other parts make them", len(left), len(jobs))
        else:
            remove(options.out / "teacher_tokens")
            write_end(options.out, records(jobs), about(options, images, measures))
            write_report(options.out)
    return options.out


def share_of(part: str | None) -> tuple[int, int]:
    """Which of how many shares of the runs are made here, from 0 on."""
    if part is None:
        return 0, 1
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= 10**6):
        raise UserError(f"--part {shown(part)}: must be which of how many, such as 2/4")
    return int(index) - 1, int(count)


def with_annotations(options: CompareOptions) -> CompareOptions:
    """Where --data holds images and annotations side by side, these two as --data and --masks."""
    if options.masks is not None or not isinstance(options.data, str | Path):
        return options
    found = side_by_side(user_path(options.data, "--data"))
    if found is None:
        return options
    # To measure on, the whole of it, in which annotations are looked for as well.
    return dataclasses.replace(options, data=str(found[0]), masks=found[1])


def training_images(options: CompareOptions) -> ImageSet:
    """The images to train on: those of --data, of which has splits the first."""
    split = splits_of(options.data)[0]
    return open_images(options.data, split=split, limit=options.limit, seed=options.seed, workers=options.workers)


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
    return read_json(path) if path.is_file() else {}


def gather(out: Path, jobs: Iterable[Job]) -> None:
    """Write results.jsonl anew, a line a finished run; one process at a time."""
    with turn(out / "gathering"):
        write_text(out / "results.jsonl", "".join(f"{json.dumps(record)}\n" for record in records(jobs)))


# What all runs read


class Stages:
    """The teacher, its tokens and part labels, each made once, by the first process that needs it."""

    def __init__(
        self,
        base: PretrainOptions,
        images: ImageSet,
        given: PartStore | None,
        teacher: Encoder | None,
        truth: Truth | None,
    ) -> None:
        """`base`: options of pretrain for what is made, in the folder of the comparison; `given`: --parts."""
        self.base, self.images, self.given, self.teacher, self.truth = base, images, given, teacher, truth
        self._labels = base.out / "labels"

    def make(self, rows: Sequence[Row]) -> None:
        """Whatever these rows read."""
        with turn(self.base.out / "stages"):
            if any(self.predicts_tokens(row) for row in rows):
                self._make_tokens()
            for kind in sorted({row.kind for row in rows if row.kind is not None}):
                self._make_labels(kind)

    def predicts_tokens(self, row: Row) -> bool:
        """Whether a row predicts the teacher's tokens."""
        return str(row.given.get("target", self.base.target)) == "tokens"

    def folder(self, row: Row) -> Path | None:
        """Where the part labels of a row lie, made or not."""
        if row.parts is None:
            return None
        if row.kind is None:
            return user_path(row.parts, "--parts")
        if row.kind == "learned":
            return self.base.out / "parts" if self.given is None else self.given.path
        return self._labels / row.kind

    def store(self, row: Row) -> PartStore | None:
        """The part labels of a row."""
        folder = self.folder(row)
        return None if folder is None else PartStore.open(folder, manifest_digest=self.images.digest)

    def minutes(self, row: Row) -> dict[str, float]:
        """What was spent on what this row reads, by stage; of a row alone it would be as much."""
        known, needed = minutes_in(self.base.out), set()
        if row.kind is not None:
            needed |= {"learned" if row.kind == "shuffled" else row.kind, row.kind}
        if self.predicts_tokens(row):
            needed.add("tokens")
        if needed & {"learned", "kmeans", "tokens"}:
            needed.add("teacher")
        return {name: known[name] for name in sorted(needed) if name in known}

    def quality(self, row: Row) -> dict[str, float]:
        """How well the part labels of a row agree with true parts, where some are known."""
        store = self.store(row)
        if store is None or self.truth is None:
            return {}
        figures = score(store.labels[self.truth.rows], self.truth)
        return {f"parts_{name}": round(figures[name], 2) for name in _QUALITY if name in figures}

    def open_teacher(self) -> Encoder:
        """The teacher; one's own is trained first."""
        if self.teacher is None:
            with timed(self.base.out, "teacher"):
                self.teacher = load_encoder(str(own_teacher(self.base, self.images)))
        return self.teacher

    def _make_tokens(self) -> None:
        teacher = self.open_teacher()
        with timed(self.base.out, "tokens"):
            store_tokens(self.base, self.images, teacher)

    def link_tokens(self, run: Path) -> None:
        """Give a run the stored tokens of all images as its own; it removes them when it is trained."""
        source, place = (folder / "teacher_tokens" / "tokens.safetensors" for folder in (self.base.out, run))
        if teacher_sees_crops() or place.exists():
            return
        make_folder(place.parent)
        try:
            os.link(source, place)
        except OSError:  # a file system without hard links
            place.symlink_to(source.resolve())

    def _make_labels(self, kind: str) -> None:
        folder = self._labels / kind
        if kind == "learned":
            if self.given is None and not _is_labelled(self.base.out / "parts"):
                if self.base.teacher == OWN_TEACHER:
                    self.open_teacher()
                with timed(self.base.out, kind):
                    part_labels(self.base, self.images, self.teacher)
            return
        if _is_labelled(folder):
            return
        learned = None
        if kind == "shuffled":
            self._make_labels("learned")
            learned = PartStore.open(
                self.given.path if self.given else self.base.out / "parts", manifest_digest=self.images.digest
            )
        if kind == "kmeans":
            self.open_teacher()
        with timed(self.base.out, kind):
            self._label(kind, folder, learned)

    def _label(self, kind: str, folder: Path, learned: PartStore | None) -> None:
        base = self.base
        stage = parts_stage(base, base.teacher)
        labels, grid = stage.num_parts + 1, stage.grid
        if self.given is not None:
            labels, grid = self.given.num_labels, self.given.grid
        if kind == "shuffled":
            assert learned is not None, "it was made first"
            shuffled_parts(folder, self.images, learned, seed=base.seed)
        elif kind == "grid":
            grid_parts(folder, self.images, labels=labels, grid=grid)
        elif kind == "annotations":
            assert base.masks is not None, "rows of annotations without were refused"
            annotated_parts(folder, self.images, base.masks, grid=grid)
        else:
            teacher = self.open_teacher()
            cluster_parts(
                folder, self.images, teacher, teacher=base.teacher, labels=labels, size=shown_size(stage, teacher),
                grid=grid, batch_size=stage.batch_size, precision=stage.precision, workers=stage.workers,
                seed=base.seed,
            )  # fmt: skip


def _is_labelled(folder: Path) -> bool:
    return (folder / "parts.json").is_file() and bool(read_meta(folder)["complete"])


def open_stages(options: CompareOptions, rows: Sequence[Row], images: ImageSet) -> tuple[Stages, CompareOptions]:
    """What is to be made for all runs, checked, and the options with what --teacher auto becomes."""
    given = None if options.parts is None else PartStore.open(options.parts, manifest_digest=images.digest)
    for row in rows:
        if row.parts is not None and row.kind is None:
            PartStore.open(user_path(row.parts), manifest_digest=images.digest)
    base = shared(
        PretrainOptions, options, masking="semantic", masks=options.masks, resume=True, overwrite=False, config=None
    )
    wanted = any(
        row.given.get("target", options.target) == "tokens"
        or row.kind == "kmeans"
        or (row.kind in ("learned", "shuffled") and given is None)
        for row in rows
    )
    teacher = None
    if wanted and given is not None and base.teacher == AUTO_TEACHER:
        teacher = teacher_of_parts(given)
        base = dataclasses.replace(base, teacher=str(teacher_of(given.path)["teacher"]))
    elif wanted:
        base = dataclasses.replace(with_teacher(dataclasses.replace(base, target="tokens")), target=base.target)
        if base.teacher != OWN_TEACHER:
            heads = base.num_heads if base.names_a_teacher else None
            teacher = load_encoder(base.teacher, num_heads=heads)
    load_init(base, teacher)  # to refuse one that does not fit
    truth = None if options.masks is None else read_truth(images, masks=options.masks, seed=options.seed)
    return Stages(base, images, given, teacher, truth), dataclasses.replace(options, teacher=base.teacher)


# A run


def run_options(options: CompareOptions, job: Job, stages: Stages) -> PretrainOptions:
    """Options of pretrain for a run, whose folder may hold its beginning."""
    if options.teacher == OWN_TEACHER:
        options = dataclasses.replace(options, teacher=str(options.out / "teacher"))
    own = job.row.options(options, job.out, job.seed, stages.folder(job.row))
    return dataclasses.replace(own, resume=(job.out / CONFIG).is_file())


def check_alike(options: CompareOptions, job: Job, stages: Stages) -> None:
    """Refuse a run that was made with other options than its row has now; where things lie does not matter."""
    every, was = options_of(PretrainOptions), saved_options(job.out)
    for name, value in kept_values(run_options(options, job, stages)).items():
        if name not in every or every[name].facts.on_resume != "same" or every[name].facts.reads:
            continue
        if was.get(name) == value:
            continue
        raise UserError(
            f"row {job.row.name}: {flag(name)} {shown(value)}: {job.out} was made with {shown(was.get(name))}; "
            "name the row anew, or use another --out"
        )


def make_run(options: CompareOptions, job: Job, stages: Stages, measures: Measures) -> None:
    """Train, measure, and write what was found; gone on with after a stop."""
    with claimed(run_options(options, job, stages)) as own, run_folder(own):
        teacher = None
        if not _is_trained(own.out):
            if own.predicts_tokens:
                teacher = stages.open_teacher()
                stages.link_tokens(own.out)
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
        for name in ("checkpoints", "teacher_tokens"):
            remove(own.out / name)
        write_json(own.out / RECORD, record)


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
    return f"{torch.get_num_threads()} threads, {names[0] if names else platform.processor() or platform.machine()}"


def about(options: CompareOptions, images: ImageSet, measures: Measures) -> dict[str, Any]:
    """How the comparison was made, for results.json."""
    found = measures.evaluate
    return {
        "method": "runs of the same seed have the same first weights and crops; differences are within seeds",
        "data": str(options.data), "images": len(images), "epochs": options.epochs, "model": options.model,
        "image_size": options.image_size, "patch_size": options.patch_size, "seeds": options.seeds,
        "first_seed": options.seed, "measured_on": str(found.data), "measured": ", ".join(measures.names),
        "interval": "95 %, Student's t over seeds",
    }  # fmt: skip
