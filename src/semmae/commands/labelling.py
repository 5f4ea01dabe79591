"""Part labels of every image, in the part-map store: begun or gone on with."""

from dataclasses import dataclass

import torch

from semmae.checkpoint import digest
from semmae.commands.options import TrainOptions
from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.models.parts import PartLearner
from semmae.models.vit import Encoder
from semmae.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TrainOptions):
    """What labelling needs to know."""

    teacher: str
    """Frozen encoder to learn from: timm:NAME, a run of semmae, or a checkpoint file."""
    num_heads: int | None = None
    """Heads of the encoder, where its file does not tell."""
    image_size: int | None = None
    """Pixels a side; default: as the encoder was trained."""
    grid: int = 28
    """Cells a side of the stored part labels."""


@torch.inference_mode()
def label_images(
    options: LabelOptions, images: ImageSet, encoder: Encoder, learner: PartLearner, size: int
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
