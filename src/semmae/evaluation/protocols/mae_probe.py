"""MAE's linear probe: a linear head on random crops that a frozen encoder looks at, trained for hours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from semmae.data.classes import TrainVal
from semmae.data.kept import KeptImages
from semmae.data.loaders import CropDataset
from semmae.errors import UserError
from semmae.evaluation.features import View
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.probe import measure_head
from semmae.evaluation.protocols.shape import Measured, Protocol
from semmae.files import make_folder
from semmae.formats.folders import digest
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.vit import Encoder
from semmae.options.probe import MaeProbeRecipe
from semmae.run.ranks import is_rank_zero
from semmae.train.batches import Training
from semmae.train.probe import ProbeTask
from semmae.train.stage import FitOptions
from semmae.train.summary import summarised
from semmae.train.trainer import fit


@dataclass(frozen=True)
class MaeProbe(Protocol[TrainVal]):
    """A linear head trained by LARS; its figures do not compare with those of `Probe`."""

    name = "probe-mae"

    view: View  # of the images that are measured on
    training: Training
    epochs: int
    recipe: MaeProbeRecipe = MaeProbeRecipe()

    def check(self, data: TrainVal) -> None:
        training, images = self.training, len(data.train)
        if training.effective(images) < 2 * training.batches:
            raise UserError(
                f"--batch-size {training.batch_size}: of {images} images, in {training.batches} batches a step, each "
                "has a single one, and BatchNorm needs two; use a larger batch, fewer of them, or more images"
            )

    def run(self, encoder: Encoder, data: TrainVal, out: Path, name: str = OWN) -> Measured | None:
        head, length = self.train(encoder, data, out)
        return replace(measure_head(head, encoder, data, self.view), length=length) if is_rank_zero() else None

    def train(self, encoder: Encoder, data: TrainVal, out: Path) -> tuple[LinearHead, Mapping[str, float]]:
        """The head, begun in `out` or gone on with; and how long it was trained."""
        torch.manual_seed(self.training.seed)
        head = LinearHead(HeadSpec(encoder.width, tuple(data.classes), self.view.pooling))
        size = self.view.image_size
        dataset = CropDataset(
            KeptImages(data.train), size, scale=(self.recipe.crop_scale, 1.0), seed=self.training.seed
        )
        rate = self.training.scaled_rate(self.recipe.blr, len(data.train))
        loader = self.training.loader(dataset, rate)
        task = ProbeTask(encoder, head, data.train_targets, self.recipe, lr=rate)
        make_folder(out)
        facts = {"epochs": self.epochs, "image_size": size, "encoder_digest": digest(encoder)}
        with summarised(out, "probe", data.train, [data.val], **facts) as summary:
            summary.trained(fit(task, loader, FitOptions(self.training, out, "probe", self.epochs, clip=0.0)))
        return head, summary.length

    def describe(self, data: TrainVal) -> dict[str, Any]:
        return {
            "method": "linear probe as in MAE: BatchNorm without affine, linear, LARS, random crops and flips",
            "epochs": self.epochs,
            "batch_size": self.training.effective(len(data.train)),
            "blr": self.recipe.blr,
            "warmup_share": self.recipe.warmup_share,
            "crop_scale": self.recipe.crop_scale,
            **self.view.describe(),
            "interval": "95 %, Wilson",
            "split": data.split,
        }
