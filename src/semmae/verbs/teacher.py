"""`semmae teacher`: an encoder from one's own images, to learn parts from."""

from pathlib import Path

import torch

from semmae.data.classes import class_indices
from semmae.data.colour import GLOBAL_CHANCES
from semmae.data.kept import KeptImages
from semmae.data.loaders import CropDataset, LocalCrops, WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images, sample_rows
from semmae.data.statistics import Colours, colours_of
from semmae.errors import UserError
from semmae.evaluation.features import extract
from semmae.evaluation.knn import knn_accuracy
from semmae.formats.folders import save_encoder
from semmae.formats.init import init_encoder
from semmae.masking import num_hidden
from semmae.models.vit import IMAGENET, Encoder, EncoderSpec, build_vit, init_as_dino
from semmae.options.fields import shared
from semmae.options.teacher import TeacherOptions, TeacherRecipe
from semmae.options.values import check_image_size
from semmae.reporting.run_page import write_report
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.sizes import Size, as_size, num_patches, sides
from semmae.train.batches import Training
from semmae.train.compiling import check_compile, compiled, resolve_compile
from semmae.train.stage import Evaluation, FitOptions
from semmae.train.summary import colour_facts, summarised
from semmae.train.teacher import TeacherTask
from semmae.train.trainer import fit
from semmae.verbs.channels import as_asked

_KNN_IMAGES = 2000  # at most, so that measuring stays short beside training
_SMALLEST_LOCAL = 0.05  # share of an image's area: DINO's, iBOT's and DINOv2's


def teacher(options: TeacherOptions) -> Path:
    """Train an encoder on your own images, without labels (DINO and iBOT self-distillation)."""
    check_teacher(options)
    check_compile(options.compile)
    init = load_init(options)
    shared(Training, options).check()
    with as_asked():
        images = open_images(
            options.data, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
            channels=options.channels,
        )  # fmt: skip
    options.check_images(len(images))
    with run_folder(options):
        train_teacher(options, images, init)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def check_teacher(options: TeacherOptions) -> None:
    """Refuse sizes that do not divide into patches, and masks that hide nothing or everything."""
    check_image_size(options.image_size, options.patch_size)
    if options.local_crops:
        check_image_size(local_size(options), options.patch_size, "local_size")
    if options.ibot:
        ratio, spread = options.mask_ratio, options.mask_spread
        if not spread < ratio < 1 - spread:
            raise UserError(f"--mask-ratio {ratio} ± --mask-spread {spread}: must stay between 0 and 1; change one")
        for extreme in (ratio - spread, ratio + spread):
            try:
                num_hidden(num_patches(options.image_size, options.patch_size), round(extreme, 6))
            except UserError as error:
                raise UserError(f"--mask-ratio {ratio} ± --mask-spread {spread}: {error}, or --ibot 0") from error


def local_size(options: TeacherOptions) -> Size:
    """Of local crops: as asked, else 3/7 of the image size, in whole patches."""
    patch = options.patch_size
    usual = as_size(*(max(1, round(side * 3 / 7 / patch)) * patch for side in sides(options.image_size)))
    return options.local_size or usual


def load_init(options: TeacherOptions) -> Encoder | None:
    """The encoder of --init, its positions resampled to this run's image size; None where none is asked for."""
    if options.init is None:
        return None
    return init_encoder(
        options.init, model=options.model, image_size=options.image_size, patch_size=options.patch_size,
        num_heads=options.num_heads, channels=options.channels,
    )  # fmt: skip


def train_teacher(options: TeacherOptions, images: ImageSet, init: Encoder | None = None) -> None:
    """Stage 0 in `options.out`, begun (with a new encoder or `init`) or resumed: writes `encoder/`."""
    out = options.out
    torch.manual_seed(options.seed)
    encoder = init or new_encoder(options, colours_of(images, options.statistics))
    training = shared(Training, options, hyperparameters=kept_values(options))
    rate = training.scaled_rate(options.blr, len(images))
    task = TeacherTask(encoder, shared(TeacherRecipe, options), lr=rate)
    facts = {"epochs": options.epochs, "image_size": options.image_size, "model": options.model}
    facts |= colour_facts(encoder.spec)
    with summarised(out, "teacher", images, **facts) as summary:
        loader = training.loader(crops_of(options, images), rate)
        how = FitOptions(training, out, "teacher", options.epochs, options.clip, clip_each=True)  # as DINO and iBOT do
        compiling = resolve_compile(options.compile, training.optimiser_steps(len(images), options.epochs))
        with compiled(task, compiling):
            summary.trained(fit(task, loader, how, knn_evaluation(options, images, task.teacher)))
        if is_rank_zero():
            save_encoder(task.teacher, out / "encoder", {"stage": "teacher", "images": len(images)})


def new_encoder(options: TeacherOptions, colours: Colours = IMAGENET) -> Encoder:
    """An encoder that has learned nothing, of the sizes that were asked for, as DINO and iBOT begin."""
    spec = EncoderSpec.named(options.model, options.image_size, options.patch_size, colours)
    vit = build_vit(spec)
    init_as_dino(vit, options.learned_positions)
    return Encoder(spec, vit)


def crops_of(options: TeacherOptions, images: ImageSet) -> CropDataset:
    """Two global crops of every image, changed as DINO's and iBOT's, and local ones where asked for."""
    scale = (_SMALLEST_LOCAL, options.crop_scale)
    local = LocalCrops(options.local_crops, local_size(options), scale) if options.local_crops else None
    large = (options.crop_scale, 1.0)
    return CropDataset(
        KeptImages(images), options.image_size, views=2, scale=large, seed=options.seed, colour=True, local=local,
        chances=GLOBAL_CHANCES,
    )  # fmt: skip


def knn_evaluation(options: TeacherOptions, images: ImageSet, encoder: Encoder) -> Evaluation | None:
    """Leave-one-out k-NN of the encoder's class token among the images; None where they have no classes."""
    if not options.knn_every or images.labels is None or len(set(images.labels)) < 2:
        return None
    rows = sample_rows(len(images), _KNN_IMAGES, options.seed)
    (targets,), names = class_indices([images])
    whole = WholeDataset(images, options.image_size, fit="centre")

    def measure() -> dict[str, float]:
        loader = make_loader(whole, options.batch_size, sampler=rows, workers=options.num_workers)
        device = next(encoder.parameters()).device
        vectors = extract(encoder, loader, mean=encoder.spec.mean, std=encoder.spec.std, device=device, label="k-NN")
        classes = targets[rows]
        found = knn_accuracy(vectors, classes, vectors, classes, num_classes=len(names), leave_one_out=True)
        return {"knn_top1": found["top1"]}

    return Evaluation(measure, options.knn_every)
