"""Semantic segmentation: AdamW with layer decay, cross-entropy of pixels, a rate that falls linearly.

Notable here:
- what is random in the networks (drop path, dropout) is seeded anew for every batch of every step, so that a resumed
  run ends bit for bit as one that was never stopped;
- pixels without a class count neither in the sum nor in its divisor.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from semmae.data.coding import IGNORED
from semmae.losses import in_float32
from semmae.models.segmenter import Segmenter
from semmae.options.segment import SegmentRecipe
from semmae.train.masks import batch_seed
from semmae.train.meter import step_figures
from semmae.train.optimizer import can_fuse, layer_decay_groups
from semmae.train.pixels import Pixels
from semmae.train.schedules import warmup_poly

BETAS = (0.9, 0.999)  # BEiT's UPerNet on ADE20K


class SegmentTask(pl.LightningModule):
    """Trains a `Segmenter` on batches {"images": uint8 (B, 3, S, S), "labels": uint8 (B, S, S)}."""

    def __init__(self, segmenter: Segmenter, recipe: SegmentRecipe, *, lr: float) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.pixels = Pixels(segmenter.encoder.spec)
        self.recipe, self.lr = recipe, lr

    def setup(self, stage: str) -> None:
        """On several GPUs norms look at the images of all: one sees only a few of a step's."""
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            self.segmenter = nn.SyncBatchNorm.convert_sync_batchnorm(self.segmenter)  # type: ignore[no-untyped-call]

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        torch.manual_seed(batch_seed(self, self.recipe.seed, batch_index))
        scores = self.segmenter.scores(self.pixels(batch["images"]))
        loss = of_pixels = pixel_loss(scores.main, batch["labels"])
        if scores.auxiliary is not None:
            loss = loss + self.recipe.aux_weight * pixel_loss(scores.auxiliary, batch["labels"])
        return step_figures(self, {"pixel_loss": of_pixels, "loss": loss})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer decay; warm-up, then a straight line to zero."""
        recipe, total = self.recipe, int(self.trainer.estimated_stepping_batches)
        warmup = round(recipe.warmup_share * total)
        groups = layer_decay_groups(
            self.segmenter, lr=self.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=BETAS, fused=can_fuse(self.trainer))
        rate = LambdaLR(optimizer, lambda step: warmup_poly(step, total=total, warmup=warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


@in_float32
def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that have a class; 0 where none has.

    Logits (B, K, h, w) are brought to the size of the labels, integers (B, S, S), `IGNORED` where there is no class.
    """
    resized = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    wanted = labels.long()
    total = functional.cross_entropy(resized, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp_min(1)
