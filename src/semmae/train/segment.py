"""Semantic segmentation: AdamW with layer decay, cross-entropy of pixels, a rate that falls linearly.

Notable here:
- what is random in the networks (drop path, dropout) is seeded anew for every batch of every step, so that a resumed
  run ends bit for bit as one that was never stopped;
- pixels without a class count neither in the sum nor in its divisor.
"""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from semmae.data.loaders import normalise
from semmae.losses import in_float32
from semmae.models.segmenter import Segmenter
from semmae.train.masks import mask_seed
from semmae.train.optimizer import can_fuse, layer_decay_groups
from semmae.train.schedules import warmup_poly


@dataclass(frozen=True)
class SegmentRecipe:
    """The optimisation; the defaults are those of BEiT's and MAE's UPerNet on ADE20K."""

    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.65
    warmup_share: float = 1500 / 160_000  # of the steps
    power: float = 1.0  # of the polynomial by which the rate falls to 0
    auxiliary_weight: float = 0.4
    ignored: int = 255  # label of pixels without a class
    seed: int = 0


class SegmentTask(pl.LightningModule):
    """Trains a `Segmenter` on batches {"images": uint8 (B, 3, S, S), "labels": uint8 (B, S, S)}."""

    def __init__(self, segmenter: Segmenter, recipe: SegmentRecipe) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.recipe = recipe

    def setup(self, stage: str) -> None:
        """On several GPUs norms look at the images of all: one sees only a few of a step's."""
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            self.segmenter = nn.SyncBatchNorm.convert_sync_batchnorm(self.segmenter)  # type: ignore[no-untyped-call]

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One batch of crops."""
        part = batch_index % self.trainer.accumulate_grad_batches
        place = self.global_rank + part * self.trainer.world_size
        torch.manual_seed(mask_seed(self.recipe.seed, self.global_step, place))
        spec = self.segmenter.encoder.spec
        scores = self.segmenter.scores(normalise(batch["images"], spec.mean, spec.std))
        loss = pixel_loss(scores.main, batch["labels"], self.recipe.ignored)
        self.log("pixel_loss", loss.detach())
        if scores.auxiliary is not None:
            loss = loss + self.recipe.auxiliary_weight * pixel_loss(
                scores.auxiliary, batch["labels"], self.recipe.ignored
            )
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer decay; warm-up, then a polynomial to zero."""
        recipe, total = self.recipe, int(self.trainer.estimated_stepping_batches)
        warmup = round(recipe.warmup_share * total)
        groups = layer_decay_groups(
            self.segmenter, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=can_fuse(self.trainer))
        rate = LambdaLR(optimizer, lambda step: warmup_poly(step, total=total, warmup=warmup, power=recipe.power))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


@in_float32
def pixel_loss(logits: Tensor, labels: Tensor, ignored: int = 255) -> Tensor:
    """Mean cross-entropy of the pixels that have a class; 0 where none has.

    Args:
        logits: (B, K, h, w), brought to the size of the labels.
        labels: integers (B, S, S), `ignored` where there is no class.
        ignored: the label of no class.
    """
    resized = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    wanted = labels.long()
    total = functional.cross_entropy(resized, wanted, ignore_index=ignored, reduction="sum")
    return total / (wanted != ignored).sum().clamp_min(1)
