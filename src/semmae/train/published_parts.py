"""Stage 1 as published: the part learner, trained to rebuild images from part maps of a frozen encoder."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.losses import diversity_loss, reconstruction_loss
from semmae.models.published_parts import PublishedPartLearner
from semmae.models.vit import Encoder, Features
from semmae.options.parts import PartsRecipe
from semmae.sizes import patch_grid
from semmae.train.meter import step_figures
from semmae.train.parts import recipe_optimizer


class PublishedPartsTask(pl.LightningModule):
    """Trains a `PublishedPartLearner` on batches {"images": uint8 (B, 1, 3, H, W)}."""

    def __init__(self, encoder: Encoder, learner: PublishedPartLearner, recipe: PartsRecipe) -> None:
        super().__init__()
        # In a tuple, so that the frozen encoder is neither trained nor saved with every checkpoint.
        self._frozen = (encoder.eval().requires_grad_(False),)
        self.learner = learner
        self.recipe = recipe

    def setup(self, stage: str) -> None:
        """Move the frozen encoder, which Lightning does not see, to the device."""
        self._frozen[0].to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        """Rebuild every image from its part maps."""
        encoder = self._frozen[0]
        images = normalise(batch["images"][:, 0], encoder.spec.mean, encoder.spec.std)
        with torch.no_grad():
            features = encoder.last_block_features(images)
        return step_figures(self, published_parts_losses(self.learner, self.recipe, images, features))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return recipe_optimizer(self.learner, self.recipe, self.trainer)


def published_parts_losses(
    learner: PublishedPartLearner, recipe: PartsRecipe, images: Tensor, features: Features
) -> dict[str, Tensor]:
    """The objective of SemMAE's section 3.1, L = L_r + λ_d·L_d, as "loss", and its terms.

    `images` are normalised (B, 3, H, W), `features` their `last_block_features`.
    """
    output = learner(features, patch_grid((images.shape[-2], images.shape[-1]), learner.spec.patch_size))
    rebuilt, diversity = reconstruction_loss(output.reconstruction, images), diversity_loss(output.maps)
    total = torch.stack([rebuilt, recipe.diversity * diversity]).sum()
    return {"loss": total, "loss_reconstruction": rebuilt, "loss_diversity": diversity}
