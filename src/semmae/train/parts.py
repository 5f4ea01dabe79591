"""Stage 1: the part learner, trained on stored tokens of a frozen encoder."""

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from semmae.losses import rebuild_loss, total_variation_loss
from semmae.models.parts import PartLearner, PartTokens, as_grid
from semmae.options.parts import PartsRecipe
from semmae.sizes import Grid
from semmae.train.meter import step_figures
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse

BETAS = (0.9, 0.99)  # ours: the paper names no optimiser


class PartsTask(pl.LightningModule):
    """Trains a `PartLearner`, started from clusters, on batches of `PartTokens` as a dictionary.

    `grid`: rows and columns of an image's patches; None: a square.
    """

    def __init__(self, learner: PartLearner, recipe: PartsRecipe, grid: Grid | None = None) -> None:
        super().__init__()
        self.learner = learner
        self.recipe = recipe
        self._grid = grid

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        return step_figures(self, parts_losses(self.learner, self.recipe, PartTokens(**batch), self._grid))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return recipe_optimizer(self.learner, self.recipe, self.trainer)


def recipe_optimizer(learner: nn.Module, recipe: PartsRecipe, trainer: pl.Trainer) -> OptimizerLRScheduler:
    """AdamW; warm-up, then cosine to zero: of either learner."""
    total = int(trainer.estimated_stepping_batches)
    return adamw_warmup_cosine(
        learner,
        lr=recipe.lr,
        betas=BETAS,
        weight_decay=recipe.weight_decay,
        total_steps=total,
        warmup_steps=round(recipe.warmup_share * total),
        fused=can_fuse(trainer),
    )


def parts_losses(
    learner: PartLearner, recipe: PartsRecipe, tokens: PartTokens, grid: Grid | None = None
) -> dict[str, Tensor]:
    """Tokens rebuilt and variation of the maps, of object and background and of the parts, and "loss", their sum.

    The parts see the object as it is drawn at this step, and do not change it. Plain PyTorch, for a loop of one's own.
    `grid`: rows and columns of an image's patches; None: a square.
    """
    shares, parts = learner(tokens)
    inside = shares[:, :, 1].detach()
    losses = {
        "object": rebuild_loss(shares, torch.ones_like(inside), tokens.last.float()),
        "object_variation": recipe.total_variation * total_variation_loss(as_grid(shares, grid)),
        **_within(parts, inside, recipe, tokens, grid),
    }
    return {"loss": _sum(losses), **{f"loss_{name}": loss for name, loss in losses.items()}}


def _within(
    parts: Tensor, inside: Tensor, recipe: PartsRecipe, tokens: PartTokens, grid: Grid | None
) -> dict[str, Tensor]:
    """The terms of parts (B, L, K) within an object (B, L)."""
    variation = total_variation_loss(as_grid(parts * inside[:, :, None], grid))
    return {
        "parts": rebuild_loss(parts, inside, tokens.values.float()),
        "parts_variation": recipe.total_variation * variation,
    }


def _sum(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
