"""Options of the stages that run inside a run of pretrain, each in a folder of its own there."""

from typing import Any, TypeVar

from semmae.options.fields import shared
from semmae.options.parts import PartsOptions
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import OWN_TEACHER, SizeOptions, TrainOptions
from semmae.options.teacher import TeacherOptions
from semmae.run.config import CONFIG

StageT = TypeVar("StageT", bound=TrainOptions)


def parts_stage(options: PretrainOptions, teacher: Any) -> PartsOptions:
    """Options of the part learner that is trained inside `out`, from the encoder `teacher`, a name or an object."""
    recipe = preset_options("parts", options.parts_preset, "--parts-preset")
    # The labels, for which alone parts are learned.
    unread = not options.is_own_masking and "parts" not in options.needs
    # The learner's rate does not follow its batch: a step takes no more images than it was found with.
    most = recipe.get("batch_size", PartsOptions.batch_size)
    if recipe.get("rebuild") == "pixels":
        length = {"epochs": options.parts_epochs or (1 if unread else max(5, options.epochs // 8))}
    else:
        length = {"steps": 1} if unread else {}
    own = {
        "preset": options.parts_preset,
        **length,
        "batch_size": min(options.batch_size, -(-most // options.batches) * options.batches),
        "teacher": teacher,
        "num_heads": options.num_heads if options.names_a_teacher else None,
        # A given encoder sees images of its own size; one trained here has the autoencoder's patches, and its images.
        "image_size": options.image_size if options.teacher == OWN_TEACHER else options.teacher_image_size,
        "num_parts": options.num_parts,
        "masks": options.masks,
    }
    return _stage(options, PartsOptions, "parts", **{**recipe, **own})


def teacher_stage(options: PretrainOptions) -> TeacherOptions:
    """Options of the teacher that is trained inside `out`."""
    epochs = options.teacher_epochs or max(1, options.epochs // 4)
    size = options.teacher_image_size or options.image_size
    return _stage(options, TeacherOptions, "teacher", epochs=epochs, image_size=size)


def _stage(options: PretrainOptions, kind: type[StageT], name: str, **own: Any) -> StageT:
    """Options of a stage that runs inside this one.

    What every training takes is handed down, but for callbacks: what one has seen of a training (the best loss, the
    time) counts for no other. Beyond that verbs have a rate, a decay, a mask, each a meaning of its own: of these a
    stage keeps its defaults. `own` wins over both.
    """
    out = options.out / name
    begun = options.resume and (out / CONFIG).exists()
    handed = shared(SizeOptions, options, out=out, resume=begun, overwrite=False, config=None, callbacks=())
    return shared(kind, handed, **own)
