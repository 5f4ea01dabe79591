"""Stage 2: the masked autoencoder, whose mask moves from a share of every part to whole parts."""

from dataclasses import dataclass
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.masking import random_mask, semantic_mask
from semmae.models.mae import MaskedAutoencoder
from semmae.tasks.optimizer import adamw_warmup_cosine

Masking = Literal["semantic", "intra", "inter", "random"]


@dataclass(frozen=True)
class PretrainRecipe:
    """The optimisation of stage 2; the defaults are MAE's, for which SemMAE changes the mask alone."""

    lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_share: float = 0.05  # 40 of 800 epochs
    masking: Masking = "semantic"
    mask_ratio: float = 0.75
    gamma: float = 2.0  # of the schedule α(t) = (t/T)^γ
    num_labels: int = 7  # part labels, background among them
    seed: int = 0

    def blend_at(self, progress: float) -> float:
        """The share of inter-part masking when `progress` (0 to 1) of the steps are done: α = (t/T)^γ."""
        if self.masking == "semantic":
            return float(min(1.0, progress) ** self.gamma)
        return 1.0 if self.masking == "inter" else 0.0


class PretrainTask(pl.LightningModule):
    """Trains a `MaskedAutoencoder` on batches {"images": uint8 (B, 1, 3, S, S), "parts": (B, L)}."""

    def __init__(self, mae: MaskedAutoencoder, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.mae = mae
        self.recipe = recipe

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One masked reconstruction; logs the loss and the mask's blend."""
        spec = self.mae.encoder.spec
        images = normalise(batch["images"][:, 0], spec.mean, spec.std)
        blend = self.recipe.blend_at(self.global_step / int(self.trainer.estimated_stepping_batches))
        generator = torch.Generator(device=self.device)
        generator.manual_seed(mask_seed(self.recipe.seed, self.global_step, self.global_rank))
        shape = (len(images), (images.shape[-1] // spec.patch_size) ** 2)
        mask = draw_mask(self.recipe, shape, batch.get("parts"), blend, generator)
        loss: Tensor = self.mae(images, mask).loss
        self.log("loss", loss.detach())
        if self.recipe.masking != "random":
            self.log("blend", blend)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up, cosine to zero."""
        recipe, total = self.recipe, int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self.mae,
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(recipe.warmup_share * total),
        )


def mask_seed(seed: int, step: int, rank: int) -> int:
    """One seed per (seed, step, rank): a resumed run draws the masks it would have drawn."""
    return (seed * 1_000_003 + step) * 4_099 + rank


def draw_mask(
    recipe: PretrainRecipe,
    shape: tuple[int, int],
    parts: Tensor | None,
    blend: float,
    generator: torch.Generator,
) -> Tensor:
    """A mask of the recipe's kind, bool of `shape` (B, L), with the generator's noise, on its device."""
    noise = torch.rand(shape, generator=generator, device=generator.device)
    if recipe.masking == "random":
        return random_mask(noise, recipe.mask_ratio)
    if parts is None:
        raise ValueError(f"masking {recipe.masking} reads part labels, but the batch has none")
    order_noise = torch.rand(shape[0], recipe.num_labels, generator=generator, device=generator.device)
    return semantic_mask(parts, noise, order_noise, recipe.mask_ratio, blend)
