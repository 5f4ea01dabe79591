"""Stage 0: an encoder from one's own images, by DINO self-distillation (arXiv 2104.14294).

Losses and projection heads are lightly's; here is what surrounds them: an EMA teacher, its schedules,
and the gradient of the last layer held back while the teacher is still noise. To DINO's loss comes
KoLeo (DINOv2, arXiv 2304.07193): with hundreds of steps instead of hundreds of thousands, DINO alone
stays at the uniform answer (loss = log of the prototypes), and k-NN at chance.
"""

import copy
import warnings
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from lightly.loss import DINOLoss, KoLeoLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from semmae.data.loaders import normalise
from semmae.models.vit import Encoder
from semmae.tasks.optimizer import adamw_warmup_cosine
from semmae.tasks.schedules import cosine


@dataclass(frozen=True)
class TeacherRecipe:
    """The optimisation of stage 0; DINO's, with fewer prototypes and a faster teacher for small data."""

    lr: float = 1e-3
    weight_decay: float = 0.04
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_share: float = 0.1
    momentum: float = 0.97  # of the EMA at the start; 1 at the end
    teacher_temp: float = 0.04
    student_temp: float = 0.1
    prototypes: int = 1024
    koleo: float = 0.5  # weight of KoLeo, which keeps the images of a batch apart; DINOv2's is 0.1
    frozen_share: float = 0.1  # of the steps, in which the last layer of the head does not learn
    clip: float = 3.0  # norm of the gradient


class TeacherTask(pl.LightningModule):
    """Trains an encoder on batches {"images": uint8 (B, 2, 3, S, S)}: two crops of each image.

    `teacher` is the result: the exponential moving average of the student.
    """

    def __init__(self, encoder: Encoder, recipe: TeacherRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = encoder
        self.student_head = _head(encoder.width, recipe)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        # Built anew: torch cannot copy a weight-normalised layer.
        self.teacher_head = _head(encoder.width, recipe).requires_grad_(False)
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        self.spread = KoLeoLoss()
        self.criterion = DINOLoss(
            output_dim=recipe.prototypes,
            warmup_teacher_temp=recipe.teacher_temp,
            teacher_temp=recipe.teacher_temp,
            warmup_teacher_temp_epochs=0,
            student_temp=recipe.student_temp,
        )

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """The student predicts, from one crop, what the teacher says of the other."""
        momentum = cosine(self.global_step, total=self._total_steps(), start=self.recipe.momentum, end=1.0)
        update_momentum(self.student, self.teacher, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        spec = self.student.spec
        crops = normalise(batch["images"].transpose(0, 1).flatten(0, 1), spec.mean, spec.std)  # view-major
        taught = self.teacher_head(self.teacher(crops).cls).chunk(2)
        seen = self.student(crops).cls
        told = self.student_head(seen).chunk(2)
        distillation = self.criterion(list(taught), list(told))
        spread = torch.stack([self.spread(view) for view in seen.chunk(2)]).mean()
        loss: Tensor = distillation + self.recipe.koleo * spread
        self.log_dict({"loss": loss.detach(), "loss_dino": distillation.detach(), "loss_koleo": spread.detach()})
        self.log("momentum", momentum)
        return loss

    def on_after_backward(self) -> None:
        """Hold the head's last layer back at first (DINO, `freeze_last_layer`), by steps, not epochs."""
        if self.global_step < self.recipe.frozen_share * self._total_steps():
            for parameter in self.student_head.last_layer.parameters():
                parameter.grad = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up, cosine to zero."""
        total = self._total_steps()
        return adamw_warmup_cosine(
            nn.ModuleDict({"encoder": self.student, "head": self.student_head}),
            lr=self.recipe.lr,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(self.recipe.warmup_share * total),
        )

    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)


def _head(width: int, recipe: TeacherRecipe) -> DINOProjectionHead:
    with warnings.catch_warnings():
        # lightly still normalises weights the older way, of which torch warns.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm")
        return DINOProjectionHead(width, hidden_dim=1024, bottleneck_dim=256, output_dim=recipe.prototypes)
