"""Fine-tuning: a classifier trained on crops that are changed, mixed and erased, as in MAE (its FINETUNE.md).

Notable here:
- mixup, cutmix, random erasing and the moving average are timm's; they and drop path draw from random numbers that
  all of a process shares, and are given a seed of their own for every batch: a resumed run draws the same;
- erasing comes before mixing, on normalised images, as in timm's loader;
- a moving average of the weights, where there is one, follows every optimiser step and is the result.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from semmae.data.augment import seeded
from semmae.losses import class_loss
from semmae.models.classifier import Classifier
from semmae.options.finetune import FinetuneRecipe
from semmae.train.masks import batch_seed
from semmae.train.optimizer import can_fuse, layer_decay_groups, warmup_cosine_rate
from semmae.train.pixels import Pixels

BETAS = (0.9, 0.999)  # PyTorch's, which MAE's main_finetune.py leaves as they are


class FinetuneTask(pl.LightningModule):
    """Trains a `Classifier` on batches {"images": uint8 (B, 3, S, S), "targets": int64 (B,)}.

    All of it is trained, in place; `lr` is the highest rate, that of the head.
    """

    def __init__(self, classifier: Classifier, recipe: FinetuneRecipe, *, lr: float) -> None:
        super().__init__()
        self.recipe, self.lr = recipe, lr
        # Loaded models come in evaluation mode, which Lightning leaves them in: nothing would be dropped.
        self.classifier = classifier.requires_grad_(True).train()
        self.pixels = Pixels(classifier.encoder.spec)
        # timm warms the decay up, so that short runs are not averaged with their beginning.
        self.average = ModelEmaV3(classifier, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        if self.average is not None:
            self.average.requires_grad_(False)

    @property
    def result(self) -> Classifier:
        """What is measured and kept: the moving average, or the classifier itself."""
        if self.average is None:
            return self.classifier
        assert isinstance(self.average.module, Classifier)
        return self.average.module

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One step, or one batch of several that make it."""
        seed = batch_seed(self, self.recipe.seed, batch_index)
        torch.manual_seed(seed)  # of drop path, and of the noise that erases
        images = self.pixels(batch["images"])
        images, targets = disturbed(images, batch["targets"], self.recipe, self.classifier.num_classes, seed)
        loss = class_loss(self.classifier(images), targets)
        self.log("loss", loss.detach(), logger=False)
        return loss

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """The moving average follows the weights, as part of the step: a checkpoint holds both or neither."""
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update(self.classifier, step=self.global_step + 1)  # the step is counted after this

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe, total = self.recipe, int(self.trainer.estimated_stepping_batches)
        groups = layer_decay_groups(
            self.classifier.vit, lr=self.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=BETAS, fused=can_fuse(self.trainer))
        # A rate of 0 stays 0: it trains nothing, as in every other training.
        warmup, end = round(recipe.warmup_share * total), recipe.min_lr / self.lr if self.lr else 0.0
        rate = warmup_cosine_rate(optimizer, total_steps=total, warmup_steps=warmup, end=end)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def disturbed(
    images: Tensor, targets: Tensor, recipe: FinetuneRecipe, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Erase and mix normalised images (B, 3, S, S), in place, and smooth their classes (B,) to float32 (B, K) of sum 1.

    `seed` is that of the draws; the noise that erases comes from torch's own random numbers.
    """
    with seeded(seed):
        if recipe.erasing:
            erase = RandomErasing(recipe.erasing, mode="pixel", device=images.device)  # type: ignore[no-untyped-call]
            images = erase(images)
        # timm mixes each image with that at the same place from the end, and refuses to leave one over.
        paired = len(images) // 2 * 2 if recipe.mixup or recipe.cutmix else 0
        smoothing = recipe.label_smoothing
        soft = [mixup_target(targets[paired:], num_classes, smoothing=smoothing)]  # type: ignore[no-untyped-call]
        if paired:
            mix = Mixup(  # type: ignore[no-untyped-call]
                recipe.mixup, recipe.cutmix, label_smoothing=smoothing, num_classes=num_classes
            )
            images[:paired], mixed = mix(images[:paired], targets[:paired])
            soft.insert(0, mixed)
    return images, torch.cat(soft)
