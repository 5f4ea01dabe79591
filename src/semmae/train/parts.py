"""Stage 1: the part learner, trained to rebuild images from part maps of a frozen encoder."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.models.parts import PartLearner
from semmae.models.vit import Encoder, Features
from semmae.options.parts import PartsRecipe
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse
from semmae.train.part_losses import parts_losses

BETAS = (0.9, 0.99)  # ours: the paper names no optimiser


class PartsTask(pl.LightningModule):
    """Trains a `PartLearner` on batches {"images": uint8 (B, views, 3, S, S), "crops": (B, views, 5)}."""

    def __init__(self, encoder: Encoder, learner: PartLearner, recipe: PartsRecipe) -> None:
        super().__init__()
        # In a tuple, so that the frozen encoder is neither trained nor saved with every checkpoint.
        self._frozen = (encoder.eval().requires_grad_(False),)
        self.learner = learner
        self.recipe = recipe

    def setup(self, stage: str) -> None:
        """Move the frozen encoder, which Lightning does not see, to the device."""
        self._frozen[0].to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Rebuild the first view of every image from its part maps, which the second view confirms."""
        encoder = self._frozen[0]
        views = batch["images"].shape[1]
        images = normalise(batch["images"].transpose(0, 1).flatten(0, 1), encoder.spec.mean, encoder.spec.std)
        with torch.no_grad():
            seen = encoder.last_block_features(images)
        features = [Features(*view) for view in zip(seen.cls.chunk(views), seen.patches.chunk(views), strict=True)]
        losses = parts_losses(self.learner, self.recipe, images.chunk(views)[0], features, batch["crops"])
        self.log_dict({name: value.detach() for name, value in losses.items()}, logger=False)
        return losses["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; warm-up, then cosine to zero."""
        total = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self.learner,
            lr=self.recipe.lr,
            betas=BETAS,
            weight_decay=self.recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(self.recipe.warmup_share * total),
            fused=can_fuse(self.trainer),
        )
