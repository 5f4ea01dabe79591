"""Part labels and attention of every image, in the part-map store: begun or gone on with, by one process or several.

Labels are computed in blocks of rows that are always the same, each by one thread on a CPU: what a block's
labels are depends neither on where an earlier run was killed nor on how many processes share the work.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from semmae.data.attention import stored_side
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.files import Fields, short, user_path
from semmae.formats.folders import CONFIG, LEARNER, digest, kind, read_extra, read_learner, save_learner
from semmae.labels.blocks import Job, label_blocks, most_rows
from semmae.labels.processes import label_in_processes
from semmae.models.parts import PartLearner
from semmae.models.vit import Encoder
from semmae.progress import Progress
from semmae.train.precision import resolve_precision
from semmae.train.trainer import is_rank_zero
from semmae.verbs.options import TrainOptions

_log = logging.getLogger("semmae")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TrainOptions):
    """What labelling needs to know."""

    teacher: str | None = None
    """Frozen encoder to learn from: timm:NAME, a run of semmae, or a checkpoint file."""
    num_heads: int | None = None
    """Heads of the encoder, where its file does not tell."""
    image_size: int | None = None
    """Pixels a side; default: as the encoder was trained."""
    grid: int = 28
    """Cells a side of the stored part labels."""
    learner: Path | None = None
    """Run of `semmae parts` whose learner labels the images, with its own encoder: nothing is trained."""
    tokens: Path | None = None
    """Folder of the SemMAE authors' .npy token files to take the labels from: nothing is trained or labelled."""
    labels_only: bool = False
    """Label what the run in --out has not labelled yet, by its own learner; train nothing."""
    quality_only: bool = False
    """Measure the labels of the run in --out again; train and label nothing."""
    export_png: Path | None = None
    """Folder to write the labels to as well: one PNG with a palette an image, under its name."""
    export_size: Literal["grid", "image"] = "grid"
    """Pixels of these PNGs: the stored cells, or the image's own, by nearest neighbour."""


LabelT = TypeVar("LabelT", bound=LabelOptions)


def with_encoder(options: LabelT) -> LabelT:
    """The options with the encoder told, which --learner brings along.

    Raises:
        UserError: no encoder is told, or options exclude each other.
    """
    _check_exclusive(options)
    if options.learner is None:
        if options.teacher is None and options.tokens is None:
            raise UserError("parts needs --teacher, or --learner or --tokens in its place; see semmae parts --help")
        return options
    folder = learner_folder(options.learner)
    facts = Fields(folder / CONFIG, read_extra(folder))
    # --teacher beside --learner: the encoder has moved. That it is the same is checked by its digest.
    teacher = options.teacher or facts.get("teacher", str)
    if teacher is None:
        raise UserError(f"--learner {options.learner}: does not tell its encoder; add --teacher")
    return dataclasses.replace(
        options,
        teacher=teacher,
        num_heads=options.num_heads or facts.get("num_heads", int | None),
        image_size=options.image_size or facts.get("image_size", int | None),
    )


def _check_exclusive(options: LabelOptions) -> None:
    sources = [name for name in ("learner", "tokens") if getattr(options, name) is not None]
    if len(sources) > 1 or (options.tokens is not None and options.teacher is not None):
        other = "--learner" if options.learner is not None else "--teacher"
        raise UserError(f"--tokens and {other} exclude each other: labels are read, or computed; give one of them")
    if options.labels_only and options.quality_only:
        raise UserError("--labels-only and --quality-only exclude each other; --resume does all that is left to do")


def learner_folder(run: Path) -> Path:
    """The folder of the learner of a run of `semmae parts`, or the folder itself."""
    for folder in (run, run / LEARNER):
        if kind(folder) == LEARNER:
            return folder
    nested = f" (did you mean {run / 'parts'}?)" if kind(run / "parts" / LEARNER) == LEARNER else ""
    raise UserError(f"{run}: holds no part learner{nested}; give the --out of a `semmae parts` that has learned")


def learner_facts(options: LabelOptions, encoder: Encoder, size: int) -> dict[str, Any]:
    """What is kept beside a learner, so that `--learner` needs nothing else."""
    teacher = options.teacher or ""
    if not teacher.startswith("timm:"):
        teacher = str(user_path(teacher, "--teacher").resolve())
    heads = encoder.spec.num_heads
    return {"teacher": teacher, "num_heads": heads, "image_size": size, "teacher_digest": digest(encoder)}


def check_learner(options: LabelOptions, encoder: Encoder) -> None:
    """Refuse a learner that is not there, or was trained on another encoder; nothing is written.

    Raises:
        UserError: names what is missing, or both digests.
    """
    own = options.out / LEARNER
    if options.labels_only and options.learner is None and kind(own) != LEARNER:
        raise UserError(
            f"--labels-only: {options.out} has not learned parts yet; go on with --resume, or label by the learner of "
            "another run: --learner RUN"
        )
    if kind(own) == LEARNER:
        folder = own
    elif options.learner is not None:
        folder = learner_folder(options.learner)
    else:
        return
    spec, trained_on = read_learner(folder).spec, read_extra(folder).get("teacher_digest")
    if trained_on is not None and trained_on != digest(encoder):
        raise UserError(
            f"{folder}: learned from the encoder {short(str(trained_on))}, and {options.teacher} is "
            f"{short(digest(encoder))}; "
            "restore that encoder, or learn anew in another --out"
        )
    if (spec.width, spec.patch_size) != (encoder.width, encoder.patch_size):
        raise UserError(
            f"{folder}: learned from an encoder {spec.width} wide with patches of {spec.patch_size}, and "
            f"{options.teacher} is {encoder.width} wide with patches of {encoder.patch_size}; give the same encoder"
        )


def has_learner(options: LabelOptions) -> bool:
    """Whether `out` holds a learner, so that nothing is to be trained; that of --learner is copied there first."""
    own = options.out / LEARNER
    if kind(own) == LEARNER:
        return True
    if options.learner is None:
        return False
    if is_rank_zero():
        source = learner_folder(options.learner)
        save_learner(read_learner(source), own, read_extra(source))
    return True


def label_images(
    options: LabelOptions, images: ImageSet, encoder: Encoder, learner: PartLearner, size: int
) -> PartStore:
    """Label every image that has no labels or no attention yet, whole and stretched to a square.

    Returns the finished store.

    With `options.devices` > 1 so many processes share the work, and load encoder and learner themselves:
    the learner from `options.out`.

    Raises:
        UserError: labels are there already that other images, another encoder, learner or grid gave.
    """
    store = PartStore.create(
        options.out,
        images=len(images),
        grid=options.grid,
        label_names=learner.spec.label_names,
        teacher_digest=digest(encoder),
        learner_digest=digest(learner),
        manifest_digest=images.digest,
        attention_grid=stored_side(size // encoder.patch_size),
        extra={"teacher": options.teacher},
    )
    job = Job(
        store=store,
        images=images,
        size=size,
        block=min(options.batch_size, most_rows()),
        precision=resolve_precision(options.precision),
        workers=options.workers,
    )
    blocks = job.unfinished()
    processes = min(options.devices, len(blocks))
    with Progress(sum(len(job.rows(block)) for block in blocks), "images", "labelling") as progress:
        if processes > 1:
            told = label_in_processes(job, blocks, processes, (str(options.teacher), options.num_heads, options.out))
        else:
            told = label_blocks(job, blocks, encoder, learner, threads=torch.get_num_threads())
        for rows, waited in told:
            progress.waited(waited)
            progress.update(rows)
    store.finish()
    return store
