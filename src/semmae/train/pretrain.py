"""Stage 2: the masked autoencoder, whose mask moves from a share of every part to whole parts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import IMAGE_TOKEN, TOKENS
from semmae.masking import num_hidden
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainRecipe
from semmae.sizes import Grid, Size
from semmae.train.fsdp import ShardingStrategy, shard
from semmae.train.masks import MaskContext, MaskMeter, Step, batch_seed, mask_function, mask_seed, step_of
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse
from semmae.train.teacher_tokens import tokens_of

BETAS = (0.9, 0.95)  # MAE, main_pretrain.py
_COUNTED = "mask_meter"  # what it has counted, in a checkpoint


def blend_at(recipe: PretrainRecipe, progress: float) -> float | None:
    """The share of whole parts when `progress` (0 to 1) of the steps are done, α = end·(t/T)^γ; None of other masks."""
    known = MASKINGS.get(recipe.masking)
    if known is None or not known.scheduled:
        return known.blend if known else None
    return float(recipe.blend_end * min(1.0, progress) ** recipe.gamma) if recipe.blend is None else recipe.blend


def mask_context(
    recipe: PretrainRecipe,
    batch: Mapping[str, Tensor],
    shape: tuple[int, int],
    *,
    progress: float,
    generator: torch.Generator,
    num_labels: int,
    step: Step | None = None,
    grid: Grid | None = None,
) -> MaskContext:
    """What the mask of a batch of that shape (B, L) is made from, with the batch's "parts" and "attention" (B, L).

    Where only a subset of the patches takes part, of these alone. `grid`: rows and columns of the L; None: a square.
    """
    context = MaskContext(
        shape,
        recipe.mask_ratio,
        progress=progress,
        generator=generator,
        num_labels=num_labels,
        parts=batch.get("parts"),
        attention=batch.get("attention"),
        blend=blend_at(recipe, progress) or 0.0,
        hint=recipe.attention_hint,
        part_hints=recipe.hints,
        keep_background=recipe.keep_background,
        step=step,
        whole=grid,
    )
    return context if recipe.token_subset is None else context.most_attended(recipe.token_subset)


class PretrainTask(pl.LightningModule):
    """Trains a `MaskedAutoencoder`.

    Batches are {"images": uint8 (B, 1, 3, H, W)}, beside them "parts" int64 (B, L) and "attention" float (B, L) where
    the masking reads them. One's own mask function (`semmae.train.masks`) reads what there is. Where the autoencoder
    predicts tokens, these are "tokens" (B, L, D) and "image_token" (B, D) of the batch, or what the frozen `teacher`
    says of its images, shown at `teacher_size` pixels; the latter are whitened by the mean and matrix of
    `whiten` (`whitening`), or else left out.

    `lr` is the highest rate; `label_names` are those of the part labels in the batches.
    """

    def __init__(
        self,
        mae: MaskedAutoencoder,
        recipe: PretrainRecipe,
        *,
        lr: float,
        label_names: Sequence[str] = (),
        teacher: Encoder | None = None,
        teacher_size: Size = 0,
        whiten: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        # In a tuple, so that the frozen encoder is neither trained nor saved with every checkpoint.
        self._frozen = () if teacher is None else (teacher.eval().requires_grad_(False),)
        self.mae, self.recipe, self.lr, self._teacher_size = mae, recipe, lr, teacher_size
        self.token_mean: Tensor | None
        self.token_matrix: Tensor | None
        for name, own in zip(("token_mean", "token_matrix"), whiten or (None, None), strict=True):
            self.register_buffer(name, own)  # in checkpoints, for a resumed run to predict the very same
        self._draw = mask_function(recipe.masking)
        self._meter = MaskMeter(label_names)

    def setup(self, stage: str) -> None:
        """Move the frozen encoder, which Lightning does not see, to the device."""
        for teacher in self._frozen:
            teacher.to(self.device)

    def configure_model(self) -> None:
        """Deal the network out over the devices, where the strategy is to do so."""
        if isinstance(self.trainer.strategy, ShardingStrategy):
            shard(
                self.mae,
                self.trainer.strategy.device_mesh["data_parallel"],
                bf16=self.trainer.precision == "bf16-mixed",
            )

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One masked reconstruction: a step, or one batch of several that make it."""
        images = batch["images"][:, 0]
        grid = self.mae.encoder.grid_of(images)
        mask, subset = self._mask(batch, len(images), grid, batch_index)
        # How many one's own function hides is counted; that waits for the device.
        count = num_hidden(mask.shape[1], self.recipe.mask_ratio) if self.recipe.masking in MASKINGS else None
        tokens, image_token = self._tokens(batch, grid)
        loss: Tensor = self.mae(images, mask, subset, count, tokens, image_token).loss
        self.log("loss", loss.detach(), logger=False)
        return loss

    def _tokens(self, batch: Mapping[str, Tensor], grid: Grid) -> tuple[Tensor | None, Tensor | None]:
        """What is to be predicted where that is tokens: of patches, and of the image."""
        patches, image = batch.get(TOKENS), batch.get(IMAGE_TOKEN)
        if self._frozen:
            image, patches = tokens_of(self._frozen[0], batch["images"][:, 0], self._teacher_size, grid)
        if image is None or self.token_mean is None or self.token_matrix is None:
            return patches, None
        with torch.autocast(self.device.type, enabled=False):
            return patches, (image.float() - self.token_mean) @ self.token_matrix

    def interval_metrics(self) -> dict[str, float]:
        """Blend and hidden share of each part, averaged since the last call; waits for the device."""
        return self._meter.read()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was counted since the last report."""
        checkpoint[_COUNTED] = self._meter.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._meter.restore(checkpoint[_COUNTED])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe, total = self.recipe, int(self.trainer.estimated_stepping_batches)
        return adamw_warmup_cosine(
            self.mae,
            lr=self.lr,
            betas=BETAS,
            weight_decay=recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(recipe.warmup_share * total),
            fused=can_fuse(self.trainer),
        )

    def _mask(
        self, batch: dict[str, Tensor], images: int, grid: Grid, batch_index: int
    ) -> tuple[Tensor, Tensor | None]:
        """The mask of so many images, bool (B, L), with the noise of its place in the step; and None.

        Where only a subset of the patches takes part: the mask (B, N) over these, and their indices, int64 (B, N).
        """
        generator = torch.Generator(device=self.device)
        generator.manual_seed(batch_seed(self, self.recipe.seed, batch_index))
        step = self._step(images, batch_index)
        progress = self.global_step / int(self.trainer.estimated_stepping_batches)
        labels = len(self._meter.label_names)
        context = mask_context(
            self.recipe, batch, (images, math.prod(grid)), grid=grid, progress=progress, generator=generator,
            num_labels=labels, step=step,
        )  # fmt: skip
        mask = self._draw(context)
        self._meter.add(mask, context.parts, blend_at(self.recipe, progress))
        return mask, context.subset

    def _step(self, images: int, batch_index: int) -> Step | None:
        """Where a batch of so many images stands among those of its optimiser step; None where it is alone there."""
        if self.trainer.world_size * self.trainer.accumulate_grad_batches == 1:
            return None
        generator = torch.Generator(device=self.device)
        generator.manual_seed(mask_seed(self.recipe.seed, self.global_step, 0))
        return step_of(self.trainer, images, batch_index, generator)
