"""`semmae finetune`: an encoder trained on, with a head, to classify; and how well it then does."""

import copy
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN

from semmae.data.augment import augmentation
from semmae.evaluation.classifier import (
    CentreCrops,
    crop_share,
    measure_classifier,
    open_unlearned,
    target_indices,
    usual_crop,
)
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.finetune import Finetune
from semmae.formats.folders import CONFIG, read_classifier, read_extra, read_learned
from semmae.formats.open import find_classifier, load_encoder
from semmae.models.classifier import without_head
from semmae.objects import described
from semmae.options.fields import shared
from semmae.options.finetune import FinetuneOptions, FinetuneRecipe
from semmae.options.values import check_image_size
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.train.batches import Training
from semmae.train.compiling import check_compile
from semmae.verbs.channels import seen_by
from semmae.verbs.measuring import divided, facts_of, measure_encoder, open_class_sets, write_figures


def finetune(options: FinetuneOptions) -> Path:
    """Fine-tune an encoder to classify (the first folders, or the label column), and measure it."""
    if options.eval_only:
        return measure_only(options)
    check_finetune(options)
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    size = options.image_size or encoder.spec.image_size
    crop_pct = options.crop_pct or usual_crop(size)
    training = shared(Training, options, hyperparameters=kept_values(options))
    return measure_encoder(
        run_folder(options),
        Finetune(shared(FinetuneRecipe, options), training, size, crop_pct, options.val_share),
        encoder,
        lambda: divided(options, open_class_sets(options, encoder.spec.channels)),
        facts_of(options, encoder),
        untrained=options.untrained,
    )


def check_finetune(options: FinetuneOptions) -> None:
    """Refuse what contradicts itself or cannot be had here."""
    shared(Training, options).check()
    check_compile(options.compile)
    augmentation(options.augment, 224, IMAGENET_DEFAULT_MEAN)  # only to learn whether timm knows it


def measure_only(options: FinetuneOptions) -> Path:
    """Measure the classifier of the finished run --encoder on --data, without training."""
    whose = described(options.encoder)
    folder = find_classifier(options.encoder)
    classifier, classes = read_classifier(folder)
    measured_on = crop_share(folder / CONFIG, read_extra(folder))
    size = options.image_size or classifier.encoder.spec.image_size
    check_image_size(size, classifier.encoder.patch_size)
    batch = max(1, options.batch_size // options.batches)  # what fits while training
    crops = CentreCrops(size, options.crop_pct or measured_on, batch, workers=options.num_workers)
    with seen_by(classifier.encoder, options.encoder):
        images, split = open_unlearned(
            options.data,
            read_learned(folder),
            whose,
            limit=options.limit,
            seed=options.seed,
            workers=options.num_workers,
            check=options.check,
            channels=classifier.encoder.spec.channels,
        )
    targets = target_indices(options.data, images, classes, whose)
    about = {
        "method": "a fine-tuned classifier, measured without training",
        "image_size": size,
        "crop_pct": crops.crop_pct,
        "split": split,
        **facts_of(options, without_head(copy.deepcopy(classifier))),
    }
    return write_figures(
        run_folder(options),
        lambda out: {OWN: measure_classifier(classifier, images, targets, classes, crops)},
        about,
        [images],
    )
