"""`semmae parts`: learn parts from a frozen encoder, label every image, measure, draw."""

import dataclasses
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from semmae.data.loaders import CropDataset, make_loader
from semmae.data.manifest import ImageSet, open_images, sample_rows
from semmae.data.part_store import PartStore
from semmae.data.samplers import StepSampler
from semmae.data.token_store import FILE, TokenDataset, TokenStore
from semmae.errors import UserError
from semmae.evaluation.parts import Truth, measure, read_truth
from semmae.files import discard
from semmae.formats.folders import LEARNER, digest, kind, read_learner, save_learner
from semmae.formats.open import load_encoder
from semmae.formats.public import public_teacher
from semmae.labels import labelling
from semmae.labels.blocks import Job
from semmae.labels.pictures import draw_parts
from semmae.labels.png import check_folder, export_labels
from semmae.labels.release import check_tokens, import_tokens
from semmae.labels.tokens import REDUCTIONS, Looking, collect_tokens, parts_store, tokens_of
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.vit import Encoder
from semmae.options.fields import is_given, shared
from semmae.options.parts import PartsOptions, PartsRecipe
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.reporting.page import quality_text
from semmae.reporting.part_samples import FILE as SAMPLES
from semmae.reporting.parts_page import write_parts_page
from semmae.reporting.run_page import write_report
from semmae.run.config import continues, kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.sizes import Size, patch_grid, whole_patches
from semmae.train.batches import Training
from semmae.train.parts import PartsTask
from semmae.train.published_parts import PublishedPartsTask
from semmae.train.stage import FitOptions
from semmae.train.summary import Summary, Trained, summarised
from semmae.train.teacher_tokens import check_first
from semmae.train.trainer import fit
from semmae.verbs.channels import seen_by

_log = logging.getLogger("semmae")

TOKENS = "tokens"  # stored in --out until all images are labelled
_MOST = 224  # pixels a side, unless more are asked for
_TRAIN = "train one (semmae teacher --data DATA --out RUN)"
_SCALE = (0.5, 1.0)  # share of an image's area that a crop to learn pixels from shows


def parts(options: PartsOptions) -> Path:
    """Learn semantic parts from a frozen encoder and label every image with them."""
    options = with_public(options)
    own = with_learner(options)  # config.yaml keeps what was given
    encoder = None
    if own.tokens is None:
        encoder = load_given(options, own)
        labelling.check_learner(own.out, own.learner, encoder, own.teacher, needed=own.labels_only)
    shared(Training, options).check()
    with nullcontext() if encoder is None else seen_by(encoder, own.teacher):
        images = open_images(
            options.data, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
            channels=3 if encoder is None else encoder.spec.channels,
        )  # fmt: skip
    options.check_images(len(images))
    check_parts(own, images)
    truth = true_parts(own, images)
    if encoder is not None and not continues(options):
        check_tokens_fit(own, images, encoder, "fewer images (--sample)")
    with run_folder(options):
        learn_parts(own, images, encoder, truth)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def with_public(options: PartsOptions) -> PartsOptions:
    """The options with what --teacher auto becomes, unless --learner or --tokens take its place."""
    if options.teacher == OWN_TEACHER:
        raise UserError(f"--teacher own: parts trains none; {_TRAIN}, then give --teacher RUN")
    if options.tokens is not None or options.teacher not in (AUTO_TEACHER, PUBLIC_TEACHER):
        return options
    if options.learner is not None and options.teacher == AUTO_TEACHER:
        return options
    return dataclasses.replace(options, teacher=public_teacher(options.teacher, or_own=False, remedy=f"{_TRAIN}, "))


def with_learner(options: PartsOptions) -> PartsOptions:
    """The options with the encoder that --learner brings along; beside it --teacher says where that lies now."""
    if options.learner is None:
        return options
    known = labelling.teacher_of(options.learner)
    own = {name: getattr(options, name) if is_given(options, name) else known[name] for name in known}
    if own["teacher"] is None:
        raise UserError(f"--learner {options.learner}: does not say what its encoder is; add --teacher")
    return dataclasses.replace(options, **own)


def load_given(options: PartsOptions, own: PartsOptions) -> Encoder:
    """The encoder of the options as given, or that of --learner, which are `own`."""
    how: dict[str, Any] = {"num_heads": own.num_heads, "image_size": own.image_size}
    if options.learner is None or is_given(options, "teacher"):
        return load_encoder(own.teacher, **how)
    return labelling.load_recorded("--learner", options.learner, own.teacher, **how)


def check_parts(options: PartsOptions, images: ImageSet) -> None:
    """Refuse what would fail only after minutes of work."""
    if options.blur % 2 == 0:
        raise UserError(f"--blur {options.blur}: must be odd, so that a patch is its middle; use {options.blur + 1}")
    if options.quality_only:
        if options.masks is None and options.keypoints is None:
            raise UserError("--quality-only: nothing to measure against; give --masks DIR or --keypoints FILE")
        PartStore.open(options.out, manifest_digest=images.digest)
    if options.tokens is not None:
        check_tokens(options.tokens, images, subset=options.limit is not None)
    if options.export_png is not None:
        check_folder(options.export_png)
    if options.nodes > 1 and (options.quality_only or options.tokens is not None):
        raise UserError(f"--nodes {options.nodes}: nodes share what an encoder looks at, and here none does; use 1")


def check_tokens_fit(options: PartsOptions, images: ImageSet, encoder: Encoder, fewer: str, reserved: int = 0) -> None:
    """Refuse, before a run is begun, tokens to learn from that the disk cannot hold, or half precision.

    `fewer` says how to choose less; of the disk some bytes may be reserved.
    """
    if options.rebuild != "tokens" or options.learner is not None or not is_rank_zero():
        return
    spec, how = PartsSpec.of(encoder, options.num_parts, options.refine), looking_as(options, encoder)
    store = parts_store(options.out / TOKENS, learned_from(options, images), spec, how)
    store.check_room(f"learn from {fewer}, or write to another disk", reserved)
    check_first(images, encoder, how.size, views=True)


def learned_from(options: PartsOptions, images: ImageSet) -> ImageSet:
    """The images that parts are learned from: all, or some by --sample."""
    if options.sample is None:
        return images
    return images.select(sample_rows(len(images), options.sample, options.seed))


def true_parts(options: PartsOptions, images: ImageSet) -> Truth | None:
    """The parts in --masks or --keypoints, read and checked; None without them."""
    if options.masks is None and options.keypoints is None:
        return None
    return read_truth(
        images, masks=options.masks, keypoints=options.keypoints, limit=options.quality_images, seed=options.seed
    )


def learn_parts(
    options: PartsOptions,
    images: ImageSet,
    encoder: Encoder | None,
    truth: Truth | None,
    targets: TokenStore | None = None,
) -> None:
    """Stage 1 in `options.out`, begun or resumed: learner, labels, quality, pictures.

    The encoder is None where the labels come from --tokens, the truth where nothing is to be measured. `targets`: as
    `collect_tokens` has them.
    """
    out = options.out
    facts: dict[str, Any] = {}
    if encoder is not None:
        encoder.eval().requires_grad_(False)
        facts = {"teacher_digest": digest(encoder), "image_size": shown_size(options, encoder)}
        if options.learner is None:
            facts |= {"steps": options.steps} if options.rebuild == "tokens" else {"epochs": options.epochs}
    if options.quality_only:
        assert truth is not None, "check_parts asks for it"
        if is_rank_zero():
            _measure(options, PartStore.open(out), images, encoder, truth)
    else:
        tokens = None
        with summarised(out, "parts", images, **facts) as summary:
            if encoder is not None:
                tokens = bring_learner(options, images, encoder, summary, targets)
            if not is_rank_zero():
                if encoder is not None:
                    labelling.help_to_label(lambda: label_job(options, images, encoder), options.devices)
                return
            store = label_all(options, images, encoder, tokens, targets)
            if truth is not None:
                _measure(options, store, images, encoder, truth)
            draw_parts(out, store, images, encoder, shown_size(options, encoder), tokens)
            discard(out / TOKENS, FILE, REDUCTIONS)  # all that they were for is done
            if options.export_png is not None:
                export_labels(store, images, options.export_png, options.export_size, options.num_workers)
    if (out / SAMPLES).exists():
        write_parts_page(out)  # after the summary, which stands there


def bring_learner(
    options: PartsOptions, images: ImageSet, encoder: Encoder, summary: Summary, targets: TokenStore | None
) -> TokenStore | None:
    """Make `learner/` in --out, unless it is there: a copy of that of --learner, or trained, which `summary` notes.

    Returns the stored tokens of all images, where they were learned from, here or before the run was resumed.
    """
    some = learned_from(options, images)
    if kind(options.out / LEARNER) == LEARNER:
        learner = read_learner(options.out / LEARNER)
        kept = (options.out / TOKENS).is_dir() and len(some) == len(images) and is_rank_zero()
        if kept and isinstance(learner, PartLearner):
            return store_tokens(options, images, encoder, learner, fit=False)
        return None
    if options.learner is not None:
        if is_rank_zero():
            labelling.copy_learner(options.learner, options.out)
        return None
    tokens = None
    if options.rebuild == "tokens":
        if not is_rank_zero():
            return None  # seconds of work, of the first process alone
        learner, trained, tokens = learn_from_tokens(options, some, encoder, targets)
    else:
        learner, trained = learn_from_pixels(options, some, encoder)
    summary.trained(trained)
    if is_rank_zero():
        facts = labelling.learner_facts(options.teacher, encoder, shown_size(options, encoder))
        save_learner(learner, options.out / LEARNER, facts)
    return tokens if len(some) == len(images) else None


def store_tokens(
    options: PartsOptions,
    images: ImageSet,
    encoder: Encoder,
    learner: PartLearner,
    *,
    fit: bool,
    targets: TokenStore | None = None,
) -> TokenStore:
    """The encoder's tokens of all these images, as the learner reduces them."""
    looking = looking_as(options, encoder)
    return collect_tokens(options.out / TOKENS, images, learner, looking, fit=fit, targets=targets)


def looking_as(options: PartsOptions, encoder: Encoder) -> Looking:
    """How the encoder looks at images."""
    return Looking(
        encoder, shown_size(options, encoder), options.grid, options.batch_size, options.num_workers, options.precision
    )


def learn_from_tokens(
    options: PartsOptions, images: ImageSet, encoder: Encoder, targets: TokenStore | None
) -> tuple[PartLearner, Trained, TokenStore]:
    """Store the encoder's tokens, and train the part learner on them; how far that came, and the tokens."""
    torch.manual_seed(options.seed)
    learner = PartLearner(PartsSpec.of(encoder, options.num_parts, options.refine))
    store = store_tokens(options, images, encoder, learner, fit=True, targets=targets)
    tokens = tokens_of(store, slice(None))
    recipe = shared(PartsRecipe, options)
    patches = patch_grid(shown_size(options, encoder), encoder.patch_size)
    learner.cpu().start_from_clusters(tokens, options.seed, mapped=options.map_keys, grid=patches)
    # Seconds in all: one process takes these steps, whose data is in memory.
    training = Training.alone(options, hyperparameters=kept_values(options))
    how = FitOptions(training, options.out, "parts", 1, clip=0.0, in_steps=True)
    size = training.images_of_a_step(len(images))
    alone = {"num_replicas": 1, "rank": 0}  # whoever else has met before, as to train a teacher
    sampler = StepSampler(len(images), options.seed, steps=options.steps, batch_size=size, **alone)
    loader = make_loader(TokenDataset(tokens._asdict()), size // options.accumulate, sampler=sampler)
    return learner, fit(PartsTask(learner, recipe, patches), loader, how), store


def learn_from_pixels(
    options: PartsOptions, images: ImageSet, encoder: Encoder
) -> tuple[PublishedPartLearner, Trained]:
    """Train SemMAE's part learner on random crops; and how far that came."""
    torch.manual_seed(options.seed)
    spec = PublishedPartsSpec(
        width=encoder.width, patch_size=encoder.patch_size, head_dim=encoder.width // encoder.spec.num_heads,
        num_parts=options.num_parts, background=options.background, blur=options.blur,
        decoder_width=options.decoder_width, channels=encoder.spec.channels,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(options.seed)
    try:
        learner = PublishedPartLearner(spec, encoder if options.start == "heads" else None, generator)
    except ValueError as error:
        raise UserError(f"--start heads: {error} with --start random") from error
    crops = CropDataset(images, shown_size(options, encoder), scale=_SCALE, seed=options.seed)
    training = shared(Training, options, hyperparameters=kept_values(options))
    how = FitOptions(training, options.out, "parts", options.epochs, clip=0.0)
    task = PublishedPartsTask(encoder, learner, shared(PartsRecipe, options))
    return learner, fit(task, training.loader(crops), how)


def label_all(
    options: PartsOptions,
    images: ImageSet,
    encoder: Encoder | None,
    tokens: TokenStore | None = None,
    targets: TokenStore | None = None,
) -> PartStore:
    """The labels of all images: read from token files of the authors', or computed, from stored tokens if given."""
    if encoder is None:
        assert options.tokens is not None, "in place of an encoder"
        subset = options.limit is not None
        return import_tokens(options.tokens, images, options.out, subset=subset, workers=options.num_workers)
    job = label_job(options, images, encoder)
    teacher, devices = options.teacher, options.devices
    return labelling.label_images(options.out, job, teacher=teacher, devices=devices, tokens=tokens, targets=targets)


def label_job(options: PartsOptions, images: ImageSet, encoder: Encoder) -> Job:
    """How every process labels images, by the learner in --out."""
    return labelling.labelling_job(
        images, encoder, read_learner(options.out / LEARNER), size=shown_size(options, encoder), grid=options.grid,
        batch_size=options.batch_size, precision=options.precision, workers=options.num_workers,
    )  # fmt: skip


def shown_size(options: PartsOptions, encoder: Encoder | None) -> Size:
    """Pixels of the images that are learned from and labelled; without an encoder none are.

    By default those that the encoder was trained at, but at most 224, in whole patches: at DINOv2's 518
    an image has five times as many patches, for labels that are stored in 32 cells a side.
    """
    if options.image_size or encoder is None:
        return options.image_size or 0
    return whole_patches(encoder.spec.image_size, encoder.patch_size, _MOST)


def _measure(options: PartsOptions, store: PartStore, images: ImageSet, encoder: Encoder | None, truth: Truth) -> None:
    scores = measure(
        store, images, encoder, truth, options.out / "quality.json",
        size=shown_size(options, encoder), batch_size=options.batch_size, workers=options.num_workers,
        seed=options.seed,
    )  # fmt: skip
    _log.info("%s", quality_text(scores, len(truth.rows)))
