"""Part labels and attention of every image, in the part-map store: begun or resumed, by one process or several.

Labels are computed in blocks of rows that are always the same, each by one thread on a CPU: what a block's
labels are depends neither on where an earlier run was killed nor on how many processes, of how many nodes, share the
work.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from semmae.data.attention import stored_side
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.errors import UserError
from semmae.files import Fields
from semmae.formats.folders import (
    CONFIG,
    LEARNER,
    AnyPartLearner,
    digest,
    kind,
    read_extra,
    read_learner,
    save_learner,
)
from semmae.formats.open import load_encoder
from semmae.labels.blocks import Job, keep
from semmae.labels.tokens import label_from_tokens
from semmae.models.parts import PartLearner
from semmae.models.vit import Encoder
from semmae.names import short, user_path
from semmae.objects import described, recordable
from semmae.options.shared import Precision
from semmae.progress import Progress
from semmae.run.places import is_path
from semmae.sizes import Size, patch_grid
from semmae.train.frozen import most_rows
from semmae.train.precision import resolve_precision
from semmae.train.shares import shared_out, take_part
from semmae.train.teacher_tokens import same_look

_NAME = "labelling"


def teacher_of(learner: Path) -> dict[str, Any]:
    """`teacher`, `num_heads` and `image_size`: the encoder of a learner, as its run recorded it; None: not recorded."""
    folder = learner_folder(learner)
    facts = Fields(folder / CONFIG, read_extra(folder))
    return {
        "teacher": facts.get("teacher", str | None),
        "num_heads": facts.get("num_heads", int | None),
        "image_size": facts.size("image_size"),
    }


def load_recorded(option: str, run: Path, teacher: str, **how: Any) -> Encoder:
    """The encoder that a run, given by `option`, has recorded as its teacher; `how` as `load_encoder` takes it."""
    try:
        return load_encoder(teacher, **how)
    except UserError as error:  # of a place that the user has not named
        if is_path(teacher) and not os.path.lexists(teacher):
            fault = f"its teacher {teacher} is gone; restore it, or say by --teacher where it is now"
            raise UserError(f"{option} {run}: {fault}") from error
        raise UserError(f"{option} {run}: its teacher: {error}") from error


def learner_folder(run: Path) -> Path:
    """The folder of the learner of a run of `semmae parts`, or the folder itself."""
    for folder in (run, run / LEARNER):
        if kind(folder) == LEARNER:
            return folder
    nested = f" (did you mean {run / 'parts'}?)" if kind(run / "parts" / LEARNER) == LEARNER else ""
    raise UserError(f"{run}: holds no part learner{nested}; give the --out of a `semmae parts` that has learned")


def learner_facts(teacher: object, encoder: Encoder, size: Size) -> dict[str, Any]:
    """What is kept beside a learner, so that `--learner` needs nothing else; of a teacher that is an object its digest.

    `teacher` is what `load_encoder` made the encoder of, `size` the pixels a side of the images learned from.
    """
    spec = recordable(teacher)
    if isinstance(spec, str) and is_path(spec):
        spec = str(user_path(spec, "--teacher").resolve())
    heads = encoder.spec.num_heads
    return {"teacher": spec, "num_heads": heads, "image_size": size, "teacher_digest": digest(encoder)}


def check_learner(out: Path, learner: Path | None, encoder: Encoder, teacher: object, *, needed: bool = False) -> None:
    """Refuse the learner in `out`, or else in the run `learner`, of another encoder; --labels-only needs one."""
    folder = out / LEARNER
    if kind(folder) != LEARNER:
        if learner is None:
            if needed:
                raise UserError(
                    f"--labels-only: {out} has not learned parts yet; use --resume, or label by the learner of "
                    "another run: --learner RUN"
                )
            return
        folder = learner_folder(learner)
    spec, trained_on = read_learner(folder).spec, read_extra(folder).get("teacher_digest")
    if trained_on is not None and trained_on != digest(encoder):
        raise UserError(
            f"{folder}: learned from the encoder {short(str(trained_on))}, and {described(teacher)} is "
            f"{short(digest(encoder))}; restore that encoder, or learn anew in another --out"
        )
    if (spec.width, spec.patch_size) != (encoder.width, encoder.patch_size):
        raise UserError(
            f"{folder}: learned from an encoder {spec.width} wide with patches of {spec.patch_size}, and "
            f"{described(teacher)} is {encoder.width} wide with patches of {encoder.patch_size}; give the same encoder"
        )


def copy_learner(run: Path, out: Path) -> None:
    """Copy the learner of another run to `out`, which then is whole in itself."""
    source = learner_folder(run)
    save_learner(read_learner(source), out / LEARNER, read_extra(source))


def labelling_job(
    images: ImageSet,
    encoder: Encoder,
    learner: AnyPartLearner,
    *,
    size: Size,
    grid: int,
    batch_size: int,
    precision: Precision = "auto",
    workers: int = 0,
) -> Job:
    """How every process labels images, whole and stretched to a square of `size` pixels, in `grid` cells a side."""
    block = min(batch_size, most_rows())
    return Job(images, encoder, learner, size, grid, block, resolve_precision(precision), workers)


def label_images(
    out: Path,
    job: Job,
    *,
    teacher: object,
    devices: int = 1,
    tokens: TokenStore | None = None,
    targets: TokenStore | None = None,
) -> PartStore:
    """Label every image that has no labels or no attention yet; `out` is the folder of the store.

    By `devices`, and by all other processes that were started with this one: these `help_to_label`. `teacher` is what
    the encoder was loaded from. With the `tokens` of all images, labels come from these, and no image is looked at
    again. `targets`, as `collect_tokens` has them, get what the encoder says of images that are looked at, where the
    learner lets it speak.
    """
    images, encoder, learner = job.images, job.encoder, job.learner
    store = PartStore.create(
        out,
        images=len(images),
        grid=job.grid,
        label_names=learner.spec.label_names,
        teacher_digest=digest(encoder),
        learner_digest=digest(learner),
        manifest_digest=images.digest,
        attention_grid=stored_side(patch_grid(job.size, encoder.patch_size)),
        extra={"teacher": described(teacher)},
    )
    if tokens is not None and isinstance(learner, PartLearner):
        label_from_tokens(store, tokens, learner, patch_grid(job.size, encoder.patch_size))
    wanted = same_look(targets, images, encoder, job.size, job.precision)
    job = replace(job, tells=wanted is not None)
    blocks = job.unfinished(store)
    with Progress(sum(len(job.rows(block)) for block in blocks), "images", "labelling") as progress:
        for made, waited in shared_out(_NAME, job, blocks, devices):
            progress.waited(waited)
            progress.update(keep(store, made, wanted))
    store.finish()
    return store


def help_to_label(job: Callable[[], Job], devices: int) -> None:
    """What other processes than the first do while that labels images; `job` is asked for when the learner is there."""
    take_part(_NAME, job, devices)
