"""`semmae parts`: learn parts from a frozen encoder, label every image, measure, draw."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import CropDataset, WholeDataset, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.evaluation.parts import Truth, measure, read_truth
from semmae.formats.folders import LEARNER, digest, read_learner, save_learner
from semmae.formats.open import load_encoder
from semmae.labels.png import check_folder, export_labels
from semmae.labels.release import check_tokens, import_tokens
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder
from semmae.options.parts import PartsOptions
from semmae.reporting.page import quality_text
from semmae.reporting.part_samples import FILE as SAMPLES, collect, spread
from semmae.reporting.parts_page import write_parts_page
from semmae.reporting.run_page import parts_picture, write_report
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.part_losses import PartsRecipe
from semmae.train.parts import PartsTask
from semmae.train.trainer import fit
from semmae.verbs.labelling import check_learner, has_learner, label_images, learner_facts, with_encoder
from semmae.verbs.training import fit_options, open_training_images, summarised, training_loader

_log = logging.getLogger("semmae")

_PICTURED = 24  # images in parts.png
_SCALE = (0.5, 1.0)  # share of an image's area that a crop to learn from shows


def parts(options: PartsOptions) -> Path:
    """Learn semantic parts from a frozen encoder and label every image with them."""
    told = with_encoder(options)
    encoder = None
    if told.teacher is not None:
        encoder = load_encoder(told.teacher, num_heads=told.num_heads, image_size=told.image_size)
        check_learner(told, encoder)
    images = open_training_images(options)
    check_parts(told, images)
    truth = true_parts(told, images)
    with run_folder(options):
        learn_parts(told, images, encoder, truth)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def check_parts(options: PartsOptions, images: ImageSet) -> None:
    """Refuse what would fail only after minutes of work, or be ignored without a word.

    Raises:
        UserError: an even blur, nothing to measure, options of a training that does not take place, token files
            that are not those of the images, PNGs in the way.
    """
    if options.blur % 2 == 0:
        raise UserError(f"--blur {options.blur}: must be odd, so that a patch is its middle; use {options.blur + 1}")
    if options.quality_only:
        if options.masks is None and options.keypoints is None:
            raise UserError("--quality-only: nothing to measure against; give --masks DIR or --keypoints FILE")
        PartStore.open(options.out, manifest_digest=images.digest)
    source = "--learner" if options.learner is not None else "--tokens" if options.tokens is not None else None
    if options.tokens is not None:
        check_tokens(options.tokens, images, subset=options.limit is not None)
    if options.export_png is not None:
        check_folder(options.export_png)
    if options.nodes > 1 and (source is not None or options.labels_only or options.quality_only):
        raise UserError(
            f"--nodes {options.nodes}: only training is shared by several nodes; use --nodes 1, --devices N"
        )


def true_parts(options: PartsOptions, images: ImageSet) -> Truth | None:
    """What --masks and --keypoints tell, read and checked; None without them."""
    if options.masks is None and options.keypoints is None:
        return None
    return read_truth(
        images, masks=options.masks, keypoints=options.keypoints, limit=options.quality_images, seed=options.seed
    )


def learn_parts(options: PartsOptions, images: ImageSet, encoder: Encoder | None, truth: Truth | None) -> None:
    """Stage 1 in `options.out`, begun or gone on with: learner, labels, quality, pictures.

    The encoder is None where the labels come from --tokens, the truth where nothing is to be measured.
    """
    out = options.out
    if options.quality_only:
        assert truth is not None, "check_parts asks for it"
        _measure(options, PartStore.open(out), images, encoder, truth)
        if (out / SAMPLES).exists():
            write_parts_page(out)
        return
    facts: dict[str, Any] = {}
    if encoder is not None:
        encoder.eval().requires_grad_(False)
        facts = {"teacher_digest": digest(encoder), "image_size": _size(options, encoder)}
        if options.learner is None:
            facts["epochs"] = options.epochs
    with summarised(out, "parts", images, **facts):
        if encoder is not None and not has_learner(options):
            learner = train_learner(options, images, encoder)
            if is_rank_zero():
                save_learner(learner, out / LEARNER, learner_facts(options, encoder, _size(options, encoder)))
        if not is_rank_zero():
            return
        store = part_labels(options, images, encoder)
        if truth is not None:
            _measure(options, store, images, encoder, truth)
        draw_parts(options, store, images, encoder)
        if options.export_png is not None:
            export_labels(store, images, options.export_png, options.export_size, options.workers)
    if (out / SAMPLES).exists():
        write_parts_page(out)  # after the summary, which it tells


def train_learner(options: PartsOptions, images: ImageSet, encoder: Encoder) -> PartLearner:
    """Train the part learner on random crops of the images, or of a sample of them."""
    torch.manual_seed(options.seed)
    spec = PartsSpec(
        width=encoder.width,
        patch_size=encoder.patch_size,
        num_parts=options.num_parts,
        background=options.background,
        head_dim=encoder.width // encoder.spec.num_heads,
        blur=options.blur,
        normalise=options.normalise,
        decoder_width=options.decoder_width,
        output=options.output,
        target="features" if options.reconstruction == "features" else "pixels",
    )
    generator = torch.Generator().manual_seed(options.seed)
    try:
        learner = PartLearner(spec, encoder if options.start == "heads" else None, generator)
    except ValueError as error:
        raise UserError(f"--start heads: {error} with --start random") from error
    recipe = _recipe(options)
    if options.sample is not None:
        images = ImageSet(images.source, images.manifest.subset(options.sample, options.seed))
    crops = CropDataset(
        images, _size(options, encoder), views=recipe.views, scale=_SCALE, seed=options.seed,
        colour=recipe.views > 1, hue=options.hue,
    )  # fmt: skip
    task = PartsTask(encoder, learner, recipe)
    fit(
        task,
        training_loader(crops, options),
        fit_options(options, options.out, "parts", options.epochs),
        options.resume,
    )
    return learner


def _recipe(options: PartsOptions) -> PartsRecipe:
    return PartsRecipe(
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        schedule=options.schedule,
        pixel_loss="l1" if options.reconstruction == "l1" else "mse",
        diversity=options.diversity,
        agreement=options.agreement,
        concentration=options.concentration,
        total_variation=options.total_variation,
    )


def part_labels(options: PartsOptions, images: ImageSet, encoder: Encoder | None) -> PartStore:
    """The labels of all images: read from token files, or computed."""
    out = options.out
    if encoder is None:
        assert options.tokens is not None, "with_encoder asks for one of the two"
        return import_tokens(options.tokens, images, out, subset=options.limit is not None, workers=options.workers)
    return label_images(options, images, encoder, read_learner(out / LEARNER), _size(options, encoder))


def draw_parts(options: PartsOptions, store: PartStore, images: ImageSet, encoder: Encoder | None) -> None:
    """parts.png: images spread over the data set, each beside its parts; and what parts.html shows."""
    rows = spread(len(images), _PICTURED)
    whole = WholeDataset(images, 224)
    picture = options.out / "parts.png"
    parts_picture(torch.stack([whole[row]["image"] for row in rows]), store.labels[rows], store.label_names, picture)
    if encoder is None:
        return
    learner = read_learner(options.out / LEARNER)
    device = next(encoder.parameters()).device
    learner.to(device)

    @torch.inference_mode()
    def soft_maps(pixels: Tensor) -> Tensor:
        seen = normalise(pixels.to(device), encoder.spec.mean, encoder.spec.std)
        return learner.part_maps(encoder.last_block_features(seen))

    collect(images, store, soft_maps, _size(options, encoder), options.out / SAMPLES)


def _size(options: PartsOptions, encoder: Encoder | None) -> int:
    """Pixels a side of the images that are learned from and labelled; without an encoder none are."""
    return options.image_size or (encoder.spec.image_size if encoder else 0)


def _measure(options: PartsOptions, store: PartStore, images: ImageSet, encoder: Encoder | None, truth: Truth) -> None:
    scores = measure(
        store, images, encoder, truth, options.out / "quality.json",
        size=_size(options, encoder), batch_size=options.batch_size, workers=options.workers, seed=options.seed,
    )  # fmt: skip
    _log.info("%s", quality_text(scores, len(truth.rows)))
