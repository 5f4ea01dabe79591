"""MAE's linear probe: a linear head trained on random crops that a frozen encoder looks at.

Facts from the MAE release (facebookresearch/mae, main_linprobe.py and util/lars.py): BatchNorm without affine,
weights N(0, 0.01), cross-entropy, LARS of trust coefficient 0.001 without weight decay, which leaves biases as
plain SGD with momentum would.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import Lars  # type: ignore[attr-defined]  # exported without being declared so
from torch import Tensor, nn

from semmae.data.loaders import normalise
from semmae.losses import class_loss
from semmae.models.head import LinearHead, pool
from semmae.models.vit import Encoder
from semmae.options.probe import MaeProbeRecipe
from semmae.train.meter import step_figures
from semmae.train.optimizer import warmup_cosine_rate

_MOMENTUM = 0.9
_TRUST = 0.001


def lars(module: nn.Module, *, lr: float) -> torch.optim.Optimizer:
    """LARS as MoCo v3 and MAE have it: rates adapt for matrices alone, and there is no weight decay."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "always_adapt": True}, {"params": vectors, "always_adapt": False}]
    # eps is left out there: a gradient that is exactly zero is the one case it is for, and is asked for apart.
    return Lars(groups, lr=lr, momentum=_MOMENTUM, weight_decay=0.0, trust_coeff=_TRUST, eps=0.0)


class ProbeTask(pl.LightningModule):
    """Trains a `LinearHead` on batches {"images": uint8 (B, 1, 3, S, S), "row": int64 (B,)}.

    The encoder is frozen, and in no checkpoint; `targets` are the classes of all rows, int64 (N,); `lr` is the highest
    rate.
    """

    targets: Tensor

    def __init__(
        self, encoder: Encoder, head: LinearHead, targets: Tensor, recipe: MaeProbeRecipe, *, lr: float
    ) -> None:
        super().__init__()
        self._frozen = (encoder.eval().requires_grad_(False),)  # in a tuple, where Lightning neither sees nor moves it
        self.head = head
        self.register_buffer("targets", targets, persistent=False)
        self.recipe, self.lr = recipe, lr

    def setup(self, stage: str) -> None:
        self._frozen[0].to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        encoder = self._frozen[0]
        images = normalise(batch["images"][:, 0], encoder.spec.mean, encoder.spec.std)
        with torch.no_grad():
            pooled = pool(encoder(images), self.head.spec.pooling)
        logits, targets = self.head.logits(pooled), self.targets[batch["row"]]
        loss = class_loss(logits, targets)
        correct = 100 * (logits.argmax(1) == targets).float().mean()
        return step_figures(self, {"loss": loss, "train_top1": correct})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer = lars(self.head, lr=self.lr)
        warmup = round(self.recipe.warmup_share * total)
        rate = warmup_cosine_rate(optimizer, total_steps=total, warmup_steps=warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
