"""Stage 1: the part learner, trained on stored tokens of a frozen encoder."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.losses import rebuild_loss, total_variation_loss
from semmae.models.parts import PartLearner, PartTokens, as_grid
from semmae.options.parts import PartsRecipe
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse

BETAS = (0.9, 0.99)


class PartsTask(pl.LightningModule):
    """Trains a `PartLearner`, started from clusters, on batches of `PartTokens` as a dictionary."""

    def __init__(self, learner: PartLearner, recipe: PartsRecipe) -> None:
        super().__init__()
        self.learner = learner
        self.recipe = recipe

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        losses = parts_losses(self.learner, self.recipe, PartTokens(**batch))
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


def parts_losses(learner: PartLearner, recipe: PartsRecipe, tokens: PartTokens) -> dict[str, Tensor]:
    """Tokens rebuilt and variation of the maps, of object and background and of the parts, and "loss", their sum.

    The parts see the object as it is drawn at this step, and do not change it. Plain PyTorch, for a loop of one's own.
    """
    last, values = tokens.last.float(), tokens.values.float()
    shares, parts = learner(tokens)
    inside = shares[:, :, 1].detach()
    losses = {
        "object": rebuild_loss(shares, torch.ones_like(inside), last),
        "object_variation": recipe.total_variation * total_variation_loss(as_grid(shares)),
        "parts": rebuild_loss(parts, inside, values),
        "parts_variation": recipe.total_variation * total_variation_loss(as_grid(parts * inside[:, :, None])),
    }
    return {"loss": torch.stack(list(losses.values())).sum(), **{f"loss_{name}": loss for name, loss in losses.items()}}
