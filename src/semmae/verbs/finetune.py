"""`semmae finetune`: an encoder trained on, with a head, to classify; and how well it then does."""

from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN

from semmae.data.augment import augmentation
from semmae.data.classes import open_sets, train_val
from semmae.evaluation.classifier import (
    CentreCrops,
    crop_share,
    measure_classifier,
    open_unlearned,
    target_indices,
)
from semmae.evaluation.features import encoder_facts
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.finetune import Finetune
from semmae.evaluation.protocols.shape import measure
from semmae.formats.folders import CONFIG, read_classifier, read_extra, read_learned
from semmae.formats.open import find_classifier, load_encoder
from semmae.models.classifier import without_head
from semmae.objects import described
from semmae.options.fields import shared
from semmae.options.finetune import FinetuneOptions, FinetuneRecipe
from semmae.options.values import check_image_size
from semmae.reporting.results import write_measured
from semmae.reporting.run_page import write_report
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.batches import Training
from semmae.train.compiling import check_compile


def finetune(options: FinetuneOptions) -> Path:
    """Fine-tune an encoder to classify (the first folders, or the label column), and measure it."""
    if options.eval_only:
        return measure_only(options)
    check_finetune(options)
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    facts = encoder_facts(options.encoder, encoder)
    protocol = shared(
        Finetune,
        options,
        image_size=options.image_size or encoder.spec.image_size,
        recipe=shared(FinetuneRecipe, options),
        training=shared(Training, options, config=kept_values(options)),
    )
    protocol.check_encoder(encoder)
    protocol.prepare(encoder)
    sets = open_sets(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    data = train_val(options.data, sets, val_share=options.val_share, limit=options.limit, seed=options.seed)
    protocol.check(data)
    with run_folder(options) as out:
        untrained = options.seed if options.untrained else None
        methods = measure(protocol, encoder, data, out, untrained_seed=untrained)
        if is_rank_zero():
            about = {**protocol.describe(data), **facts, "data": described(options.data), "seed": options.seed}
            write_measured(out, about, methods, data.sets)
            write_report(out)
    return options.out


def check_finetune(options: FinetuneOptions) -> None:
    """Refuse what contradicts itself or cannot be had here."""
    shared(Training, options, config=kept_values(options)).check()
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
    crops = CentreCrops(size, options.crop_pct or measured_on, batch, options.workers)
    images, split = open_unlearned(
        options.data,
        read_learned(folder),
        whose,
        limit=options.limit,
        seed=options.seed,
        workers=options.workers,
    )
    targets = target_indices(options.data, images, classes, whose)
    with run_folder(options) as out:
        measured = measure_classifier(classifier, images, targets, classes, crops)
        about = {
            "method": "a fine-tuned classifier, measured without training",
            "image_size": size,
            "crop_pct": crops.crop_pct,
            "data": described(options.data),
            "seed": options.seed,
            "split": split,
            **encoder_facts(options.encoder, without_head(classifier)),
        }
        write_measured(out, about, {OWN: measured}, [images])
        write_report(out)
    return options.out
