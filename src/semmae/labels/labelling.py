"""Part labels and attention of every image, in the part-map store: begun or gone on with, by one process or several.

Labels are computed in blocks of rows that are always the same, each by one thread on a CPU: what a block's
labels are depends neither on where an earlier run was killed nor on how many processes share the work.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, TypeVar

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
from semmae.options.parts import LabelOptions
from semmae.progress import Progress
from semmae.run.ranks import is_rank_zero
from semmae.train.precision import resolve_precision

_log = logging.getLogger("semmae")


LabelT = TypeVar("LabelT", bound=LabelOptions)


def with_encoder(options: LabelT) -> LabelT:
    """The options with the encoder told, which --learner brings along.

    Raises:
        UserError: no encoder is given.
    """
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
