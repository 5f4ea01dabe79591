"""Stage 2: the masked autoencoder, whose mask moves from a share of every part to whole parts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.masking import num_hidden
from semmae.models.mae import MaskedAutoencoder
from semmae.train.masks import (
    BY_PARTS,
    CheckedMask,
    MaskContext,
    MaskFunction,
    Masking,
    MaskMeter,
    draw_mask,
    mask_seed,
)
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse

_COUNTED = "mask_meter"  # what it has counted, in a checkpoint


@dataclass(frozen=True)
class PretrainRecipe:
    """The optimisation of stage 2; the defaults are MAE's, for which SemMAE changes the mask alone."""

    lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_share: float = 0.05  # 40 of 800 epochs
    masking: Masking | MaskFunction = "semantic"
    mask_ratio: float = 0.75
    gamma: float = 2.0  # of the schedule α(t) = (t/T)^γ
    blend: float | None = None  # α throughout, in place of the schedule
    attention_hint: float = 0.0  # share of the most attended patches that masking by attention leaves visible
    token_subset: int | None = None  # only so many patches of an image take part, the most attended
    num_labels: int = 7  # part labels, background among them
    seed: int = 0

    @property
    def blends(self) -> bool:
        """Whether a blend of whole parts and shares of parts is hidden."""
        return self.masking in BY_PARTS

    def blend_at(self, progress: float) -> float:
        """The share of inter-part masking when `progress` (0 to 1) of the steps are done: α = (t/T)^γ."""
        if self.masking == "semantic":
            return float(min(1.0, progress) ** self.gamma) if self.blend is None else self.blend
        return 1.0 if self.masking == "inter" else 0.0

    def mask(self, context: MaskContext) -> Tensor:
        """What to hide of a batch: bool (B, L)."""
        if callable(self.masking):
            return self.masking(context)
        return draw_mask(self.masking, context, self.blend_at(context.progress), self.attention_hint)


class PretrainTask(pl.LightningModule):
    """Trains a `MaskedAutoencoder`.

    Batches are {"images": uint8 (B, 1, 3, S, S)}, beside them "parts" int64 (B, L) and "attention" float (B, L) where
    the masking reads them. One's own mask function (`semmae.train.masks`) reads what there is.

    Args:
        mae: the autoencoder.
        recipe: masking and optimisation.
        label_names: names of the part labels in the metrics; by default their numbers.
        compiled: train through torch.compile. `mae` itself stays as it is, and so do names in checkpoints.
    """

    def __init__(
        self, mae: MaskedAutoencoder, recipe: PretrainRecipe, label_names: Sequence[str] = (), compiled: bool = False
    ) -> None:
        super().__init__()
        self.mae = mae
        # Every batch has the same shape: the last, short one of an epoch is left out.
        self._forward = torch.compile(mae.forward, dynamic=False) if compiled else mae.forward
        if callable(recipe.masking):
            recipe = dataclasses.replace(recipe, masking=CheckedMask(recipe.masking))
        self.recipe = recipe
        self._meter = MaskMeter(label_names or [str(label) for label in range(recipe.num_labels)])

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One masked reconstruction: a step, or one batch of several that make it."""
        spec = self.mae.encoder.spec
        images = normalise(batch["images"][:, 0], spec.mean, spec.std)
        patches = (images.shape[-1] // spec.patch_size) ** 2
        part = batch_index % self.trainer.accumulate_grad_batches
        mask, subset = self._mask(batch, (len(images), patches), part)
        # How many one's own function hides is counted; that waits for the device.
        count = None if callable(self.recipe.masking) else num_hidden(mask.shape[1], self.recipe.mask_ratio)
        loss: Tensor = self._forward(images, mask, subset, count).loss
        self.log("loss", loss.detach())
        return loss

    def interval_metrics(self) -> dict[str, float]:
        """Blend and hidden share of each part, averaged since the last call; waits for the device."""
        return self._meter.read()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was counted and not told yet."""
        checkpoint[_COUNTED] = self._meter.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Older checkpoints, of an epoch's end, have nothing left to tell."""
        if _COUNTED in checkpoint:
            self._meter.restore(checkpoint[_COUNTED])

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
            fused=can_fuse(self.trainer),
        )

    def _mask(self, batch: dict[str, Tensor], shape: tuple[int, int], part: int) -> tuple[Tensor, Tensor | None]:
        """The batch's mask, bool of `shape` (B, L), with the noise of this part of the step; and None.

        Where only a subset of the patches takes part: the mask (B, N) over these, and their indices, int64 (B, N).
        """
        generator = torch.Generator(device=self.device)
        place = self.global_rank + part * self.trainer.world_size
        generator.manual_seed(mask_seed(self.recipe.seed, self.global_step, place))
        context = MaskContext(
            shape,
            self.recipe.mask_ratio,
            progress=self.global_step / int(self.trainer.estimated_stepping_batches),
            generator=generator,
            num_labels=self.recipe.num_labels,
            parts=batch.get("parts"),
            attention=batch.get("attention"),
        )
        if self.recipe.token_subset is not None:
            context = context.most_attended(self.recipe.token_subset)
        mask = self.recipe.mask(context)
        blend = self.recipe.blend_at(context.progress) if self.recipe.blends else None
        self._meter.add(mask, context.parts, blend)
        return mask, context.subset
