"""`semmae pretrain`: the masked autoencoder with semantic-guided masking; alone, or the whole way."""

import copy
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semmae.data.kept import KeptImages
from semmae.data.loaders import IMAGE_TOKEN, CropDataset
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.data.statistics import Colours, colours_of
from semmae.data.token_store import TokenStore
from semmae.errors import UserError, listed
from semmae.evaluation.parts import measured_against
from semmae.evaluation.quality import read_annotations
from semmae.formats.folders import LEARNER, digest, kind, save_autoencoder, save_encoder
from semmae.formats.init import init_autoencoder
from semmae.formats.open import load_encoder
from semmae.formats.public import public_teacher
from semmae.labels.labelling import load_recorded, teacher_of
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import IMAGENET, MODELS, Encoder, EncoderSpec
from semmae.options.fields import shared
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions, PretrainRecipe
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.options.values import check_image_size
from semmae.reporting.mask_pictures import draw_masks
from semmae.reporting.run_page import write_report
from semmae.run.config import UNFINISHED, kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero, started
from semmae.sizes import Size, patch_grid
from semmae.train.batches import Training
from semmae.train.compiling import check_compile, compiled, resolve_compile
from semmae.train.frozen import one_thread_an_operation, usual_device
from semmae.train.fsdp import whole_state
from semmae.train.mask_checks import check_masking, patches_taking_part, try_mask
from semmae.train.precision import resolve_precision
from semmae.train.pretrain import PretrainTask
from semmae.train.stage import FitOptions
from semmae.train.summary import check_same_inputs, colour_facts, summarised
from semmae.train.teacher_tokens import check_first, class_tokens, fill_store, token_store, usual_size, whitening
from semmae.train.together import barrier
from semmae.train.trainer import fit
from semmae.verbs.channels import as_asked
from semmae.verbs.parts import check_tokens_fit, learn_parts, true_parts
from semmae.verbs.stages import parts_stage, teacher_stage
from semmae.verbs.teacher import check_teacher, train_teacher

TOKENS = "teacher_tokens"  # stored in --out until the autoencoder is trained
# Width from which threads share the operations of a step. Those of a narrower network are too short for that: beside
# other work on two cores the demo, 96 wide, took 10.6 minutes of processor time with two threads, and 5.1 with one.
_SHARED_FROM = 128


def pretrain(options: PretrainOptions) -> Path:
    """Pre-train a masked autoencoder with semantic-guided masking, learning the parts first if need be."""
    check_recipe(options)
    shared(Training, options).check()
    with as_asked():
        images = open_images(
            options.data, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
            channels=options.channels,
        )  # fmt: skip
    options.check_images(len(images))
    options = with_teacher(options)
    teacher = load_teacher(options)
    if options.parts is not None:
        given = PartStore.open(options.parts, manifest_digest=images.digest)
        # A store that lacks what is needed is refused before anything is written.
        if "attention" in options.needs:
            _ = given.attention
        if options.keep_background and options.hides_whole_parts and not given.has_background:
            raise UserError(
                f"--keep-background: {given.path} has no background, its labels are {listed(given.label_names)}; "
                "leave it out, or give labels of semmae parts"
            )
        if options.predicts_tokens and not options.needs_teacher:
            teacher = teacher_of_parts(given)
    if teacher is not None and teacher.spec.channels != options.channels:
        raise UserError(
            f"--channels {options.channels}: the teacher {teacher.source} sees images of {teacher.spec.channels} "
            "channels; train one on these images: --teacher own"
        )
    if options.teacher_image_size is not None and teacher is not None:
        check_image_size(options.teacher_image_size, teacher.patch_size, "teacher_image_size")
    init = load_init(options, teacher)
    if options.masks is not None:
        read_annotations(images.names, options.masks)
    if options.resume:
        check_begun(options, images, teacher)
    elif teacher is not None:
        check_stored(options, images, teacher)
    with run_folder(options):
        tokens = None
        if options.predicts_tokens:
            teacher = teacher or load_encoder(str(own_teacher(options, images)))
            tokens = begin_tokens(options, images, teacher)
        store = part_labels(options, images, teacher, tokens) if options.parts or options.learns_parts else None
        if teacher is not None and tokens is not None:
            size, precision = teacher_size(options, teacher), options.precision
            fill_store(tokens, images, teacher, size=size, precision=precision, workers=options.num_workers)
        barrier("stages")  # all processes read what the first one has stored
        train_autoencoder(options, images, store, init, teacher if options.predicts_tokens else None)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def check_recipe(options: PretrainOptions) -> None:
    """Refuse sizes that do not divide, a mask ratio that leaves nothing, and options that contradict each other."""
    check_image_size(options.image_size, options.patch_size)
    decoder_spec(options)
    check_compile(options.compile)
    if options.residual == "bf16" and (arithmetic := resolve_precision(options.precision)) != "bf16":
        raise UserError(
            f"--residual bf16: --precision {options.precision} computes in {arithmetic} here; add --precision bf16, or "
            "leave it out"
        )
    masking, subset, ratio = options.masking, options.token_subset, options.mask_ratio
    patches = patches_taking_part(masking, options.image_size, options.patch_size, subset)
    check_masking(masking, patches=patches, ratio=ratio, hint=options.attention_hint, part_hints=options.hints)
    if not (options.is_own_masking or options.needs) and options.parts:
        raise UserError(f"--masking {masking} reads no parts; leave out --parts, or choose semantic")
    if options.masks and not options.learns_parts:
        raise UserError("--masks measures parts learned here, and none are; give it to semmae parts, or leave it out")
    if options.needs_teacher and options.teacher == OWN_TEACHER:
        check_own_teacher(options)
    preset_options("parts", options.parts_preset, "--parts-preset")
    if options.is_own_masking:
        try_mask(
            masking, grid=patch_grid(options.image_size, options.patch_size), ratio=ratio, token_subset=subset,
            labels=options.num_parts + 1, seed=options.seed, has_parts=bool(options.parts) or options.learns_parts,
        )  # fmt: skip


def check_own_teacher(options: PretrainOptions) -> None:
    """Refuse sizes that do not divide, and masks that hide nothing, of the teacher that is trained here."""
    if options.teacher_image_size is not None:
        check_image_size(options.teacher_image_size, options.patch_size, "teacher_image_size")
    check_teacher(teacher_stage(options))


def load_init(options: PretrainOptions, teacher: Encoder | None = None) -> MaskedAutoencoder | None:
    """The autoencoder that --init begins with, to predict what is asked for; None where none is asked for."""
    if options.init is None:
        return None
    torch.manual_seed(options.seed)  # of a decoder that is new
    return init_autoencoder(
        options.init, decoder_spec(options, teacher), options.norm_pix_loss,
        model=options.model, image_size=options.image_size, patch_size=options.patch_size,
        num_heads=None if options.names_a_teacher else options.num_heads, channels=options.channels,
    )  # fmt: skip


def with_teacher(options: PretrainOptions) -> PretrainOptions:
    """The options with what --teacher auto becomes, where it is needed; resumed, it is known already.

    Processes that were started together would each find it out for itself, and might differ: they train no teacher of
    their own unless asked to.
    """
    if not wants_teacher(options) or options.teacher not in (AUTO_TEACHER, PUBLIC_TEACHER):
        return options
    if options.channels != 3 and options.teacher == AUTO_TEACHER:  # the public one sees colours alone
        options = dataclasses.replace(options, teacher=OWN_TEACHER)
    else:
        alone = options.nodes == 1 and started()[1] == 1
        remedy = "" if alone else "let the teacher be trained here (--teacher own), "
        options = dataclasses.replace(options, teacher=public_teacher(options.teacher, or_own=alone, remedy=remedy))
    if options.teacher == OWN_TEACHER:
        check_own_teacher(options)
    return options


def load_teacher(options: PretrainOptions) -> Encoder | None:
    """The encoder of --teacher; None where none is given or needed any more."""
    if not wants_teacher(options) or options.teacher == OWN_TEACHER:
        return None
    return load_encoder(options.teacher, num_heads=options.num_heads if options.names_a_teacher else None)


def wants_teacher(options: PretrainOptions) -> bool:
    """Whether an encoder is needed still: labels that are there already need none."""
    return options.predicts_tokens if has_parts(options) else options.needs_teacher


def teacher_of_parts(store: PartStore) -> Encoder:
    """The encoder that part labels were learned from, as their learner recorded it."""
    facts = teacher_of(store.path) if kind(store.path / LEARNER) == LEARNER else {"teacher": None}
    if facts["teacher"] is None:
        raise UserError(f"--target tokens: {store.path} does not say what encoder its parts are of; add --teacher")
    encoder = load_recorded("--parts", store.path, facts["teacher"], num_heads=facts["num_heads"])
    if digest(encoder) != store.teacher_digest:
        raise UserError(
            f"--target tokens: {facts['teacher']} is another encoder than the one that the parts in {store.path} were "
            "learned from; restore it, or give another by --teacher"
        )
    return encoder


def has_parts(options: PretrainOptions) -> bool:
    """Whether an earlier start of this run has made its part labels, and measured them against --masks, if given."""
    parts = options.out / "parts"
    made = options.resume and (parts / "parts.json").exists() and not (parts / UNFINISHED).exists()
    return made and (options.masks is None or measured_against(parts / "quality.json", options.masks))


def part_labels(
    options: PretrainOptions, images: ImageSet, teacher: Encoder | None, tokens: TokenStore | None
) -> PartStore:
    """The part labels to mask by: given, or learned inside `out` from --teacher or from one's own.

    Where the teacher then sees just what is stored of it, its `tokens` to predict are kept.
    """
    if options.parts is not None:
        return PartStore.open(options.parts, manifest_digest=images.digest)
    if has_parts(options):
        return PartStore.open(options.out / "parts", manifest_digest=images.digest)
    spec = str(own_teacher(options, images)) if options.teacher == OWN_TEACHER else options.teacher
    stage = parts_stage(options, spec)
    with run_folder(stage):
        learn_parts(stage, images, teacher or load_encoder(spec), true_parts(stage, images), tokens)
        barrier("parts")
    return PartStore.open(stage.out, manifest_digest=images.digest)


def begin_tokens(options: PretrainOptions, images: ImageSet, teacher: Encoder) -> TokenStore | None:
    """The store inside `out` that this process is to fill with the teacher's tokens of every image.

    None in other processes than the first, and where a GPU is there to compute those of every crop. UserError, and
    nothing is stored, where an earlier start learned from another teacher.
    """
    check_begun(options, images, teacher)
    if teacher_sees_crops() or not is_rank_zero():
        return None
    store = tokens_within(options, images, teacher)
    store.begin()
    return store


def check_begun(options: PretrainOptions, images: ImageSet, teacher: Encoder | None) -> None:
    """Refuse to resume a run that was begun with other images, or has learned from another teacher."""
    known = {} if teacher is None else {"teacher_digest": digest(teacher)}
    for stage in (options.out, options.out / "parts"):
        check_same_inputs(stage, images, **known)


def check_stored(options: PretrainOptions, images: ImageSet, teacher: Encoder) -> None:
    """Refuse, before the run is begun, tokens of a teacher that the disk cannot hold, or half precision."""
    if not is_rank_zero():
        return
    reserved = 0
    if options.predicts_tokens and not teacher_sees_crops():
        store = tokens_within(options, images, teacher)
        store.check_room("use a smaller --teacher-image-size, fewer images (--limit) or a GPU, which needs no room")
        check_first(images, teacher, teacher_size(options, teacher))
        reserved = store.to_come()
    if options.learns_parts:
        fewer = "fewer images (--limit) or a smaller --teacher-image-size"
        check_tokens_fit(parts_stage(options, options.teacher), images, teacher, fewer, reserved)


def teacher_sees_crops() -> bool:
    """Whether the teacher is shown every crop while the autoencoder is trained, for which a CPU is too slow."""
    return torch.cuda.is_available()


def teacher_size(options: PretrainOptions, teacher: Encoder) -> Size:
    """Pixels of what a teacher is shown whose tokens are predicted."""
    return options.teacher_image_size or usual_size(teacher)


def tokens_within(options: PretrainOptions, images: ImageSet, teacher: Encoder) -> TokenStore:
    """The store of the teacher's tokens inside `out`."""
    size = teacher_size(options, teacher)
    return token_store(options.out / TOKENS, images, teacher, size, options.precision)


def own_teacher(options: PretrainOptions, images: ImageSet) -> Path:
    """Train an encoder on the images themselves inside `out`, unless an earlier start of this run has."""
    stage = teacher_stage(options)
    if not (stage.out / "encoder" / "config.json").exists():
        with run_folder(stage):
            train_teacher(stage, images)
            barrier("teacher")
    return stage.out


def train_autoencoder(
    options: PretrainOptions,
    images: ImageSet,
    store: PartStore | None,
    init: MaskedAutoencoder | None = None,
    teacher: Encoder | None = None,
) -> None:
    """Stage 2 in `options.out`, begun (anew or with `init`) or resumed: writes the networks and pictures.

    `teacher`: whose tokens are predicted, None of pixels; unless it sees every crop, they have been stored.
    """
    tokens = None if teacher is None or teacher_sees_crops() else tokens_within(options, images, teacher)
    torch.manual_seed(options.seed)
    mae = init or new_autoencoder(options, teacher, colours_of(images, options.statistics))
    training = shared(Training, options, hyperparameters=kept_values(options))
    rate = training.scaled_rate(options.blr, len(images))
    recipe = shared(PretrainRecipe, options)
    side = patch_grid(options.image_size, options.patch_size)
    # One's own function gets what there is.
    attention = "attention" in options.needs or (
        store is not None and options.is_own_masking and store.attention_grid > 0
    )
    scale = (options.crop_scale, 1.0)
    cells = None if teacher is None else patch_grid(teacher_size(options, teacher), teacher.patch_size)
    dataset = CropDataset(
        KeptImages.of(images), options.image_size, scale=scale, seed=options.seed, parts=store, side=side,
        attention=attention, tokens=tokens, cells=cells,
    )  # fmt: skip
    facts = facts_of_run(options, mae, store, init, teacher)
    with summarised(options.out, "pretrain", images, **facts) as summary:
        loader = training.loader(dataset, rate)
        how = FitOptions(training, options.out, "pretrain", options.epochs, options.clip, static=True)
        compiling = resolve_compile(options.compile, training.optimiser_steps(len(images), options.epochs))
        labels = store.label_names if store else ()
        mae.checkpointing, mae.bf16_residual = options.checkpointing, options.residual == "bf16"
        seen = teacher if tokens is None else None
        whiten = None if teacher is None else whitening(image_tokens(options, images, teacher, tokens))
        size = 0 if teacher is None else teacher_size(options, teacher)
        task = PretrainTask(mae, recipe, lr=rate, label_names=labels, teacher=seen, teacher_size=size, whiten=whiten)
        threads = one_thread_an_operation() if mae.encoder.width < _SHARED_FROM else nullcontext()
        whole = copy.deepcopy(mae) if training.strategy == "fsdp" and is_rank_zero() else mae
        with threads, compiled(mae, compiling):
            summary.trained(fit(task, loader, how))
        if training.strategy == "fsdp":
            state = whole_state(mae)  # by all processes at once
            mae = whole
            if is_rank_zero():
                mae.load_state_dict(state)
        if is_rank_zero():
            about = {"stage": "pretrain", "masking": options.masking, "images": len(images)}
            save_encoder(mae.encoder, options.out / "encoder", about)
            save_autoencoder(mae, options.out / "autoencoder")
            draw_masks(options.out / "pictures", images, store, mae, recipe)
            if tokens is not None:
                tokens.remove()


def facts_of_run(
    options: PretrainOptions,
    mae: MaskedAutoencoder,
    store: PartStore | None,
    init: MaskedAutoencoder | None,
    teacher: Encoder | None,
) -> dict[str, Any]:
    """For summary.json: what is trained, and digests of what by; a run that goes on must have the same ones."""
    facts = {name: getattr(options, name) for name in ("epochs", "image_size", "model", "masking")}
    facts |= colour_facts(mae.encoder.spec)
    if teacher is not None:
        facts["teacher_digest"] = digest(teacher)
    if store is not None:
        facts["parts_digest"] = store.labels_digest
    if init is not None:
        facts["init_digest"] = digest(init.encoder)
    return facts


def image_tokens(options: PretrainOptions, images: ImageSet, teacher: Encoder, stored: TokenStore | None) -> Tensor:
    """Class tokens (N, D) to be whitened by: those that are stored, or those of some whole images."""
    if stored is not None:
        return torch.from_numpy(stored.read(IMAGE_TOKEN).astype(np.float32))
    size = teacher_size(options, teacher)
    return class_tokens(images, teacher, options.image_size, size, usual_device(), options.num_workers)


def new_autoencoder(
    options: PretrainOptions, teacher: Encoder | None, colours: Colours = IMAGENET
) -> MaskedAutoencoder:
    """An untrained one of the sizes that were asked for, to predict the teacher's tokens where there is one."""
    encoder = Encoder(EncoderSpec.named(options.model, options.image_size, options.patch_size, colours))
    return MaskedAutoencoder(encoder, decoder_spec(options, teacher), options.norm_pix_loss)


def decoder_spec(options: PretrainOptions, teacher: Encoder | None = None) -> DecoderSpec:
    """The decoder that fits the encoder, with the sizes that were asked for, and what it predicts.

    Without a teacher at hand tokens have the width of one that is trained here.
    """
    usual = DecoderSpec.named(options.model)
    width, heads = options.decoder_width or usual.width, options.decoder_heads or usual.num_heads
    if width % heads or width % 4:
        raise UserError(f"--decoder-width {width} is not divisible by 4 and by --decoder-heads {heads}; change one")
    tokens = teacher.width if teacher is not None else MODELS[options.model][0]
    return DecoderSpec(width, options.decoder_depth or usual.depth, heads, tokens if options.predicts_tokens else 0)
