"""Stage 1: the part learner, trained to rebuild images from part maps of a frozen encoder."""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.losses import diversity_loss, reconstruction_loss
from semmae.models.parts import PartLearner
from semmae.models.vit import Encoder
from semmae.tasks.optimizer import adamw_warmup_cosine


@dataclass(frozen=True)
class PartsRecipe:
    """The optimisation of stage 1. The paper gives none: every value is ours."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_share: float = 0.05
    diversity: float = 0.1  # λ_d


class PartsTask(pl.LightningModule):
    """Trains a `PartLearner` on batches {"images": uint8 (B, 1, 3, S, S)} with L = L_r + λ_d·L_d."""

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
        """Rebuild the batch from its part maps."""
        encoder = self._frozen[0]
        images = normalise(batch["images"][:, 0], encoder.spec.mean, encoder.spec.std)
        with torch.no_grad():
            features = encoder.last_block_features(images)
        output = self.learner(features)
        reconstruction = reconstruction_loss(output.reconstruction, images)
        diversity = diversity_loss(output.maps)
        loss = reconstruction + self.recipe.diversity * diversity
        self.log_dict(
            {
                "loss": loss.detach(),
                "loss_reconstruction": reconstruction.detach(),
                "loss_diversity": diversity.detach(),
            }
        )
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up, cosine to zero."""
        total = int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self.learner,
            lr=self.recipe.lr,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(self.recipe.warmup_share * total),
        )
