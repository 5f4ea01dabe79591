"""`semmae pretrain`: the masked autoencoder with semantic-guided masking; alone, or the whole way."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from semmae.data.loaders import CropDataset
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.evaluation.quality import read_masks
from semmae.formats.folders import save_autoencoder, save_encoder
from semmae.formats.open import load_encoder
from semmae.masking import num_hidden
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.fields import shared
from semmae.options.parts import PartsOptions
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import SizeOptions, TrainOptions
from semmae.options.teacher import TeacherOptions
from semmae.options.values import check_image_size
from semmae.reporting.mask_pictures import draw_masks
from semmae.reporting.run_page import write_report
from semmae.run.config import CONFIG, UNFINISHED
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.compiling import check_compile, resolve_compile
from semmae.train.masks import MASKINGS
from semmae.train.pretrain import PretrainRecipe, PretrainTask
from semmae.train.trainer import barrier, fit
from semmae.verbs.init import init_autoencoder
from semmae.verbs.mask_options import (
    WITHOUT_LABELS,
    check_masking,
    learns_parts,
    mask_source,
    patches_taking_part,
    reads_attention,
    try_own_mask,
)
from semmae.verbs.parts import learn_parts, true_parts
from semmae.verbs.teacher import check_teacher, train_teacher
from semmae.verbs.training import (
    fit_options,
    open_training_images,
    optimiser_steps,
    scaled_rate,
    summarised,
    training_loader,
)

StageT = TypeVar("StageT", bound=TrainOptions)


def pretrain(options: PretrainOptions) -> Path:
    """Pre-train a masked autoencoder with semantic-guided masking, learning the parts first if need be."""
    check_recipe(options)
    images = open_training_images(options)
    init = load_init(options)
    teacher = load_teacher(options)
    if options.parts is not None:
        given = PartStore.open(options.parts, manifest_digest=images.digest)
        if reads_attention(options):
            _ = given.attention  # a store that holds none is refused before anything is written
    if options.masks is not None:
        read_masks(images.names, options.masks)
    with run_folder(options):
        store = part_labels(options, images, teacher) if options.parts or learns_parts(options) else None
        train_autoencoder(options, images, store, init)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def check_recipe(options: PretrainOptions) -> None:
    """Refuse sizes that do not divide, a mask ratio that leaves nothing, and options that contradict each other."""
    check_image_size(options.image_size, options.patch_size)
    check_image_size(options.teacher_image_size or options.image_size, options.patch_size)
    num_hidden(patches_taking_part(options), options.mask_ratio)
    decoder_spec(options)
    check_compile(options.compile)
    check_masking(options)
    if options.masks and not learns_parts(options):
        raise UserError("--masks measures parts learned here, and none are; give it to semmae parts, or leave it out")
    if learns_parts(options) and not options.teacher:
        check_teacher(teacher_stage(options))
    preset_options("parts", options.parts_preset, "--parts-preset")
    try_own_mask(options, options.num_parts + 1)


def load_init(options: PretrainOptions) -> MaskedAutoencoder | None:
    """The autoencoder that --init begins with; None where none is asked for."""
    if options.init is None:
        return None
    torch.manual_seed(options.seed)  # of a decoder that is new
    heads = options.num_heads if options.teacher is None else None
    return init_autoencoder(options.init, options, decoder_spec(options), options.norm_pix_loss, heads)


def load_teacher(options: PretrainOptions) -> Encoder | None:
    """The encoder of --teacher, checked against the image size."""
    if options.teacher is None:
        return None
    encoder = load_encoder(options.teacher, num_heads=options.num_heads)
    check_image_size(options.image_size, encoder.patch_size)
    return encoder


def part_labels(options: PretrainOptions, images: ImageSet, teacher: Encoder | None) -> PartStore:
    """The part labels to mask by: given, or learned inside `out` from the given teacher or from one's own."""
    if options.parts is not None:
        return PartStore.open(options.parts, manifest_digest=images.digest)
    spec = options.teacher or str(own_teacher(options, images))
    stage = parts_stage(options, spec)
    if not (stage.resume and _is_complete(stage.out)):
        with run_folder(stage):
            learn_parts(stage, images, teacher or load_encoder(spec), true_parts(stage, images))
            barrier()
    return PartStore.open(stage.out, manifest_digest=images.digest)


def parts_stage(options: PretrainOptions, teacher: str) -> PartsOptions:
    """Options of the part learner that is trained inside `out`, from the encoder `teacher`.

    Raises:
        UserError: `semmae parts` has no such preset.
    """
    recipe = preset_options("parts", options.parts_preset, "--parts-preset")
    unread = options.masking in WITHOUT_LABELS  # the labels, for which alone parts are learned
    # The learner's rate does not follow its batch: a step takes no more images than it was found with.
    most = recipe.get("batch_size", PartsOptions.batch_size)
    own = {
        "preset": options.parts_preset,
        "epochs": options.parts_epochs or (1 if unread else max(5, options.epochs // 8)),
        "batch_size": min(options.batch_size, -(-most // options.batches) * options.batches),
        "teacher": teacher,
        "num_heads": options.num_heads if options.teacher else None,
        "num_parts": options.num_parts,
        "masks": options.masks,
    }
    return stage_options(options, PartsOptions, "parts", **{**recipe, **own})


def own_teacher(options: PretrainOptions, images: ImageSet) -> Path:
    """Train an encoder on the images themselves inside `out`, unless an earlier start of this run has."""
    stage = teacher_stage(options)
    if not (stage.out / "encoder" / "config.json").exists():
        with run_folder(stage):
            train_teacher(stage, images)
            barrier()
    return stage.out


def teacher_stage(options: PretrainOptions) -> TeacherOptions:
    """Options of the teacher that is trained inside `out`."""
    epochs = options.teacher_epochs or max(1, options.epochs // 4)
    size = options.teacher_image_size or options.image_size
    return stage_options(options, TeacherOptions, "teacher", epochs=epochs, image_size=size)


def stage_options(options: PretrainOptions, kind: type[StageT], name: str, **own: Any) -> StageT:
    """Options of a stage that runs inside this one.

    What every training takes is handed down. Beyond that verbs have a rate, a decay, a mask, each a meaning of
    its own: of these a stage keeps its defaults. `own` wins over both.
    """
    out = options.out / name
    begun = options.resume and (out / CONFIG).exists()
    handed = shared(SizeOptions, options, out=out, resume=begun, overwrite=False, config=None)
    return shared(kind, handed, **own)


def _is_complete(parts: Path) -> bool:
    return (parts / "parts.json").exists() and not (parts / UNFINISHED).exists()


def train_autoencoder(
    options: PretrainOptions, images: ImageSet, store: PartStore | None, init: MaskedAutoencoder | None = None
) -> None:
    """Stage 2 in `options.out`, begun (anew or with `init`) or gone on with: writes the networks and pictures."""
    torch.manual_seed(options.seed)
    mae = init or new_autoencoder(options)
    recipe = PretrainRecipe(
        lr=scaled_rate(options.blr, len(images), options),
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        masking=mask_source(options),
        mask_ratio=options.mask_ratio,
        gamma=options.gamma,
        blend=options.blend,
        attention_hint=options.attention_hint,
        token_subset=options.token_subset,
        num_labels=store.num_labels if store else 0,
        seed=options.seed,
    )
    side = options.image_size // options.patch_size
    # One's own function gets what there is.
    attention = reads_attention(options) or (
        store is not None and options.masking not in MASKINGS and store.attention_grid > 0
    )
    scale = (options.crop_scale, 1.0)
    dataset = CropDataset(
        images, options.image_size, scale=scale, seed=options.seed, parts=store, side=side, attention=attention
    )
    facts = {
        "epochs": options.epochs,
        "image_size": options.image_size,
        "model": options.model,
        "masking": options.masking,
    }
    with summarised(options.out, "pretrain", images, **facts):
        loader = training_loader(dataset, options, rate=recipe.lr)
        how = fit_options(options, options.out, "pretrain", options.epochs, options.clip)
        compiled = resolve_compile(options.compile, optimiser_steps(len(images), options, options.epochs))
        names = store.label_names if store else ()
        mae.checkpointing = options.checkpointing
        fit(PretrainTask(mae, recipe, names, compiled), loader, how, options.resume)
        if is_rank_zero():
            about = {"stage": "pretrain", "masking": options.masking, "images": len(images)}
            save_encoder(mae.encoder, options.out / "encoder", about)
            save_autoencoder(mae, options.out / "autoencoder")
            draw_masks(options.out / "pictures", images, store, mae, recipe)


def new_autoencoder(options: PretrainOptions) -> MaskedAutoencoder:
    """An untrained one of the sizes that were asked for."""
    encoder = Encoder(EncoderSpec.named(options.model, options.image_size, options.patch_size))
    return MaskedAutoencoder(encoder, decoder_spec(options), options.norm_pix_loss)


def decoder_spec(options: PretrainOptions) -> DecoderSpec:
    """The decoder that fits the encoder, with the sizes that were asked for."""
    usual = DecoderSpec.named(options.model)
    width, heads = options.decoder_width or usual.width, options.decoder_heads or usual.num_heads
    if width % heads or width % 4:
        raise UserError(f"--decoder-width {width} is not divisible by 4 and by --decoder-heads {heads}; change one")
    return DecoderSpec(width, options.decoder_depth or usual.depth, heads)
