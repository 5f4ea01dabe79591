"""`semmae teacher`: an encoder from one's own images, to learn parts from."""

from dataclasses import dataclass
from pathlib import Path

import torch

from semmae.checkpoint import save_encoder
from semmae.commands.options import SizeOptions, check_image_size
from semmae.commands.run import checked, run_folder
from semmae.commands.training import fit_options, open_training_images, summarised, training_loader
from semmae.data.loaders import CropDataset
from semmae.data.manifest import ImageSet
from semmae.models.vit import Encoder, EncoderSpec
from semmae.reporting import write_report
from semmae.tasks.teacher import TeacherRecipe, TeacherTask
from semmae.tasks.trainer import fit, is_rank_zero


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(SizeOptions):
    """Options of `semmae teacher`."""

    epochs: int = 100
    """Passes over the images."""
    blr: float = 4e-3
    """Base learning rate: multiplied by batch size / 256."""
    momentum: float = 0.97
    """Momentum of the averaged encoder at the start; it ends at 1. Long runs on large data want 0.996."""


def teacher(options: TeacherOptions) -> Path:
    """Train an encoder on your own images, without labels (DINO self-distillation)."""
    options = checked(options)
    check_image_size(options.image_size, options.patch_size)
    images = open_training_images(options)
    with run_folder(options):
        train_teacher(options, images)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def train_teacher(options: TeacherOptions, images: ImageSet) -> None:
    """Stage 0 in `options.out`, begun or gone on with: writes `encoder/`."""
    out = options.out
    torch.manual_seed(options.seed)
    encoder = Encoder(EncoderSpec.named(options.model, options.image_size, options.patch_size))
    task = TeacherTask(encoder, TeacherRecipe(lr=options.blr * options.batch_size / 256, momentum=options.momentum))
    dataset = CropDataset(images, options.image_size, views=2, scale=(0.25, 1.0), seed=options.seed, colour=True)
    facts = {"epochs": options.epochs, "image_size": options.image_size, "model": options.model}
    with summarised(out, "teacher", images, **facts):
        loader = training_loader(dataset, options)
        fit(task, loader, fit_options(options, out, "teacher", options.epochs, task.recipe.clip), options.resume)
        if is_rank_zero():
            save_encoder(task.teacher, out / "encoder", {"stage": "teacher", "images": len(images)})
