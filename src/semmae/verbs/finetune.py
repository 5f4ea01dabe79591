"""`semmae finetune`: an encoder trained on, with a head, to tell classes; and how well it then does."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.models.vision_transformer import VisionTransformer

from semmae.data.augment import LabelledCrops, augmentation
from semmae.errors import UserError
from semmae.formats.folders import CLASSIFIER, CONFIG, classifier_config, digest, save_classifier
from semmae.formats.open import load_classifier, load_encoder
from semmae.models.classifier import Classifier, set_drop_path
from semmae.models.vit import Encoder
from semmae.models.weights import NORM_EPS, set_norm_eps
from semmae.options.finetune import FinetuneOptions
from semmae.reporting.results import write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.compiling import check_compile, resolve_compile
from semmae.train.finetune import FinetuneRecipe, FinetuneTask
from semmae.train.trainer import Evaluation, barrier, fit
from semmae.verbs.classes import eval_crop, evaluate_only, measure_classifier, validate
from semmae.verbs.features import TrainVal, image_keys, open_train_val, told_encoder, untrained_like
from semmae.verbs.training import (
    check_batches,
    check_count,
    effective_batch,
    fit_options,
    optimiser_steps,
    scaled_rate,
    summarised,
    training_loader,
)

STAGE = "finetune"
UNTRAINED = "untrained"  # the same from new weights: a stage, and its folder inside the run


def finetune(options: FinetuneOptions) -> Path:
    """Fine-tune an encoder to tell classes (the first folders, or the label column), and measure it."""
    if options.eval_only:
        return evaluate_only(options)
    check_finetune(options)
    encoder = open_trainable(options)
    measured = told_encoder(options, encoder)
    if options.image_size is not None:
        encoder.set_image_size(options.image_size)
    sets = open_train_val(options, options.val_share)
    check_count(len(sets.train), options)
    check_rate(options, len(sets.train))
    scratch = untrained_like(encoder, options.seed) if options.untrained else None
    classifier = new_classifier(options, encoder, sets.classes)
    with run_folder(options) as out:
        figures = train_and_measure(options, classifier, sets, STAGE)
        others = {}
        if scratch is not None:
            others[UNTRAINED] = train_untrained(options, scratch, sets)
        if is_rank_zero():
            write_results(out, protocol_of(options, classifier, sets) | measured, figures, others)
            write_report(out)
    return options.out


def check_finetune(options: FinetuneOptions) -> None:
    """Refuse what contradicts itself or cannot be had here."""
    check_batches(options)
    check_compile(options.compile)
    augmentation(options.augment, 224, IMAGENET_DEFAULT_MEAN)  # only to learn whether timm knows it


def check_rate(options: FinetuneOptions, images: int) -> None:
    """Refuse a rate that would rise in the end."""
    rate = scaled_rate(options.blr, images, options)
    if options.min_lr > rate:
        raise UserError(
            f"--min-lr {options.min_lr} is above the learning rate {rate:.3g} (--blr {options.blr} · "
            f"batch size {effective_batch(images, options)} / 256); lower it, or raise --blr"
        )


def open_trainable(options: FinetuneOptions) -> Encoder:
    """The encoder of --encoder, its image size checked, with norms that a saved classifier can describe.

    Raises:
        UserError: it is of a family that could not be saved afterwards.
    """
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    if not isinstance(encoder.vit, VisionTransformer):
        raise UserError(
            f"{options.encoder}: of timm's class {type(encoder.vit).__name__} (DINOv3, EVA), which cannot be "
            "fine-tuned here, for it could not be saved; choose a VisionTransformer, such as DINO's or MAE's"
        )
    if any(layer.eps < NORM_EPS for layer in encoder.modules() if isinstance(layer, torch.nn.LayerNorm)):
        # Of Hugging Face's ViTs, 1e-12: timm has no word for it, and training on evens the difference out.
        set_norm_eps(encoder, NORM_EPS)
    return encoder


def new_classifier(options: FinetuneOptions, encoder: Encoder, classes: list[str]) -> Classifier:
    """The encoder with a new head, made ready for training; refused if it could not be saved afterwards."""
    torch.manual_seed(options.seed)
    classifier = Classifier(encoder, len(classes), options.pooling)
    classifier_config(classifier, classes)
    set_drop_path(classifier.vit, options.drop_path)
    classifier.checkpointing = options.checkpointing
    return classifier


def train_and_measure(options: FinetuneOptions, classifier: Classifier, sets: TrainVal, stage: str) -> dict[str, Any]:
    """Train, begun anew or gone on with, write `classifier/` and what it gets right; returns the figures."""
    trained = train_classifier(options, classifier, sets, stage)
    figures = {}
    if is_rank_zero():
        figures = measure_classifier(options, trained, sets.val, sets.val_targets, sets.classes)
    barrier()
    return figures


def train_untrained(options: FinetuneOptions, encoder: Encoder, sets: TrainVal) -> dict[str, Any]:
    """The same from new weights, in a folder inside the run; returns its figures.

    No options are written there: with them one would train the encoder, not new weights.
    """
    own = dataclasses.replace(options, out=options.out / UNTRAINED, untrained=False)
    own.out.mkdir(exist_ok=True)
    return train_and_measure(own, new_classifier(own, encoder, sets.classes), sets, UNTRAINED)


def train_classifier(options: FinetuneOptions, classifier: Classifier, sets: TrainVal, stage: str) -> Classifier:
    """Train in `options.out` and write `classifier/`; one that lies there already is read."""
    folder = options.out / CLASSIFIER
    encoder = classifier.encoder
    facts = {
        "epochs": options.epochs,
        "image_size": encoder.spec.image_size,
        "classes": len(sets.classes),
        "encoder_digest": digest(classifier),
        "validation_digest": sets.val.digest,
    }
    with summarised(options.out, stage, sets.train, [sets.val], **facts):
        if options.resume and (folder / CONFIG).is_file():
            return load_classifier(folder)[0]
        compiled = resolve_compile(options.compile, optimiser_steps(len(sets.train), options, options.epochs))
        task = FinetuneTask(classifier, recipe_of(options, len(sets.train)), compiled)
        classes = sets.train_targets.tolist() if options.balanced else None
        loader = training_loader(crops_of(options, encoder, sets), options, classes, task.recipe.lr)
        how = fit_options(options, options.out, stage, options.epochs, options.clip)
        fit(task, loader, how, options.resume, validation(options, task, sets))
        if is_rank_zero():
            crop_pct = eval_crop(options, classifier)
            learned = image_keys(sets.train)
            save_classifier(task.result, folder, sets.classes, crop_pct, about(options, sets, crop_pct), learned)
        return task.result


def recipe_of(options: FinetuneOptions, images: int) -> FinetuneRecipe:
    """The options as the task wants them: those of the same name, and the learning rate of a step's images."""
    names = {field.name for field in dataclasses.fields(FinetuneRecipe)}
    same: dict[str, Any] = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name in names
    }
    return FinetuneRecipe(lr=scaled_rate(options.blr, images, options), **same)


def crops_of(options: FinetuneOptions, encoder: Encoder, sets: TrainVal) -> LabelledCrops:
    """The training images' crops."""
    size = encoder.spec.image_size
    return LabelledCrops(
        sets.train,
        sets.train_targets,
        size,
        scale=(options.crop_scale, 1.0),
        seed=options.seed,
        policy=augmentation(options.augment, size, encoder.spec.mean),
    )


def validation(options: FinetuneOptions, task: FinetuneTask, sets: TrainVal) -> Evaluation | None:
    """What is measured while training goes on; None where nothing is asked for."""
    if not options.val_every:
        return None
    return Evaluation(lambda: validate(options, task.result, sets.val, sets.val_targets), options.val_every)


def about(options: FinetuneOptions, sets: TrainVal, crop_pct: float) -> dict[str, Any]:
    """What the saved classifier tells of itself: how it was trained and measured."""
    return {
        "stage": STAGE,
        "images": len(sets.train),
        "crop_pct": crop_pct,
        "val_share": options.val_share,
        "seed": options.seed,
    }


def protocol_of(options: FinetuneOptions, classifier: Classifier, sets: TrainVal) -> dict[str, Any]:
    """How it was trained and measured."""
    told_options = (
        *("preset", "epochs", "batch_size", "blr", "min_lr", "warmup_share", "layer_decay", "weight_decay", "clip"),
        *("pooling", "drop_path", "augment", "crop_scale", "mixup", "cutmix", "erasing", "label_smoothing", "ema"),
        *("balanced", "precision", "encoder", "data", "seed"),
    )
    return {
        "method": "fine-tuning, all weights; the last epoch is measured",
        "image_size": classifier.encoder.spec.image_size,
        "crop_pct": eval_crop(options, classifier),
        "split": sets.split,
        **{name: getattr(options, name) for name in told_options},
        "batch_size": effective_batch(len(sets.train), options),
    }
