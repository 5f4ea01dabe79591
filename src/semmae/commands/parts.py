"""`semmae parts`: learn parts from a frozen encoder, label every image, measure, draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from semmae.checkpoint import read_learner, save_learner
from semmae.commands.labelling import LabelOptions, label_images
from semmae.commands.measuring import measure
from semmae.commands.options import check_image_size
from semmae.commands.run import checked, run_folder
from semmae.commands.training import fit_options, open_training_images, summarised, training_loader
from semmae.data.loaders import CropDataset, WholeDataset
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.evaluation.quality import read_masks
from semmae.loading import load_encoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder
from semmae.reporting import parts_picture, write_report
from semmae.tasks.parts import PartsRecipe, PartsTask
from semmae.tasks.trainer import fit, is_rank_zero

_PICTURED = 24  # images in parts.png


@dataclass(frozen=True, kw_only=True)
class PartsOptions(LabelOptions):
    """Options of `semmae parts`."""

    epochs: int = 20
    """Passes over the images."""
    num_parts: int = 6
    """Parts to learn, besides the background."""
    background: bool = True
    """One more label for what belongs to no part."""
    start: Literal["heads", "random"] = "heads"
    """Where part tokens start: the heads of the encoder's last block, or random."""
    diversity: float = 0.1
    """Weight of the diversity loss, λ_d."""
    lr: float = 1e-3
    """Learning rate at its highest."""
    masks: Path | None = None
    """Folder of PNG labels of true parts (same names, 0 = background), to measure against."""


def parts(options: PartsOptions) -> Path:
    """Learn semantic parts from a frozen encoder and label every image with them."""
    options = checked(options)
    encoder = load_encoder(options.teacher, num_heads=options.num_heads)
    check_image_size(options.image_size or encoder.spec.image_size, encoder.patch_size)
    images = open_training_images(options)
    if options.masks is not None:
        read_masks(images.names, options.masks)
    with run_folder(options):
        learn_parts(options, images, encoder)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def learn_parts(options: PartsOptions, images: ImageSet, encoder: Encoder) -> None:
    """Stage 1 in `options.out`, begun or gone on with: learner, labels, quality, picture."""
    out, size = options.out, options.image_size or encoder.spec.image_size
    encoder.eval().requires_grad_(False)
    with summarised(out, "parts", images, epochs=options.epochs, image_size=size):
        if not (out / "learner" / "config.json").exists():
            learner = train_learner(options, images, encoder, size)
            if is_rank_zero():
                save_learner(learner, out / "learner")
        if not is_rank_zero():
            return
        learner = read_learner(out / "learner")
        store = label_images(options, images, encoder, learner, size)
        if options.masks is not None:
            measure(store, images, options.masks, out / "quality.json")
        draw_parts(store, images, out / "parts.png")


def train_learner(options: PartsOptions, images: ImageSet, encoder: Encoder, size: int) -> PartLearner:
    """Train the part learner on random crops of the images."""
    torch.manual_seed(options.seed)
    spec = PartsSpec(
        width=encoder.width,
        patch_size=encoder.patch_size,
        num_parts=options.num_parts,
        background=options.background,
        head_dim=encoder.width // encoder.spec.num_heads,
    )
    generator = torch.Generator().manual_seed(options.seed)
    try:
        learner = PartLearner(spec, encoder if options.start == "heads" else None, generator)
    except ValueError as error:
        raise UserError(f"--start heads: {error} with --start random") from error
    task = PartsTask(encoder, learner, PartsRecipe(lr=options.lr, diversity=options.diversity))
    loader = training_loader(CropDataset(images, size, scale=(0.5, 1.0), seed=options.seed), options)
    fit(task, loader, fit_options(options, options.out, "parts", options.epochs), options.resume)
    return learner


def draw_parts(store: PartStore, images: ImageSet, path: Path) -> None:
    """parts.png: images spread over the data set, each beside its parts."""
    rows = pictured_rows(len(images), _PICTURED)
    whole = WholeDataset(images, 224)
    parts_picture(torch.stack([whole[row]["image"] for row in rows]), store.labels[rows], store.label_names, path)


def pictured_rows(count: int, most: int) -> list[int]:
    """At most `most` rows, spread evenly, so that every class of a sorted folder is seen."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return chosen
