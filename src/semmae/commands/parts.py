"""`semmae parts`: learn parts from a frozen encoder, label every image, measure, draw."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from semmae.checkpoint import digest, read_learner, save_learner
from semmae.commands.options import TrainOptions, check_image_size
from semmae.commands.run import checked, run_folder, write_text
from semmae.commands.training import fit_options, open_training_images, summarised, training_loader
from semmae.data.loaders import CropDataset, WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.evaluation.quality import compare, fixed_grid, read_masks
from semmae.loading import load_encoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder
from semmae.progress import Progress
from semmae.reporting import parts_picture, write_report
from semmae.tasks.parts import PartsRecipe, PartsTask
from semmae.tasks.trainer import fit, is_rank_zero

_log = logging.getLogger("semmae")
_PICTURED = 24  # images in parts.png


@dataclass(frozen=True, kw_only=True)
class PartsOptions(TrainOptions):
    """Options of `semmae parts`."""

    teacher: str
    """Frozen encoder to learn from: timm:NAME, a run of semmae, or a checkpoint file."""
    num_heads: int | None = None
    """Heads of the encoder, where its file does not tell."""
    image_size: int | None = None
    """Pixels a side; default: as the encoder was trained."""
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
    grid: int = 28
    """Cells a side of the stored part labels."""
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


@torch.inference_mode()
def label_images(
    options: PartsOptions, images: ImageSet, encoder: Encoder, learner: PartLearner, size: int
) -> PartStore:
    """Label every image that has no labels yet, whole and stretched to a square; returns the finished store."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, learner = encoder.to(device), learner.to(device).eval()
    store = PartStore.create(
        options.out,
        images=len(images),
        grid=options.grid,
        label_names=learner.spec.label_names,
        teacher_digest=digest(encoder),
        manifest_digest=images.digest,
        extra={"teacher": options.teacher, "learner_digest": digest(learner)},
    )
    rows = store.missing().tolist()
    loader = make_loader(WholeDataset(images, size), options.batch_size, sampler=rows, workers=options.workers)
    with Progress(len(rows), "images", "labelling") as progress:
        for batch in progress.iterate(loader):
            pixels = normalise(batch["image"].to(device), encoder.spec.mean, encoder.spec.std)
            labels = learner.labels(encoder.last_block_features(pixels), options.grid)
            store.write(batch["row"], labels.cpu())
            progress.update(len(labels))
    store.finish()
    return store


def measure(store: PartStore, images: ImageSet, masks_dir: Path, path: Path) -> dict[str, dict[str, float]]:
    """Part quality against true parts, beside a fixed grid and bands of as many cells; writes quality.json."""
    rows, masks = read_masks(images.names, masks_dir)
    grid = fixed_grid(store.num_labels, store.grid)
    bands = fixed_grid(store.num_labels, store.grid, rows=store.num_labels)
    table = compare({"learned": store.labels[rows], "grid": grid, "bands": bands}, masks)
    rounded = {name: {key: round(value, 2) for key, value in row.items()} for name, row in table.items()}
    write_text(path, json.dumps(rounded, indent=1) + "\n")
    for name, row in rounded.items():
        scores = f"NMI {row['nmi']:.1f}, ARI {row['ari']:.1f}, foreground IoU {row['foreground_iou']:.1f}"
        _log.info("%s: %s (%d images with masks)", name, scores, len(masks))
    return rounded


def draw_parts(store: PartStore, images: ImageSet, path: Path) -> None:
    """parts.png: images spread over the data set, each beside its parts."""
    rows = pictured_rows(len(images), _PICTURED)
    whole = WholeDataset(images, 224)
    parts_picture(torch.stack([whole[row]["image"] for row in rows]), store.labels[rows], store.label_names, path)


def pictured_rows(count: int, most: int) -> list[int]:
    """At most `most` rows, spread evenly, so that every class of a sorted folder is seen."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return chosen
