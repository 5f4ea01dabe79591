"""Stage 0: an encoder from one's own images, by self-distillation: DINO (arXiv 2104.14294) and iBOT (2111.07832).

A student predicts, from one crop, what its own moving average, the teacher, says of another crop (DINO, on
class tokens), and from a crop with hidden patches what the teacher says of these patches (iBOT).

Notable here:
- losses, heads and the Sinkhorn algorithm are lightly's, but for the loss of hidden patches; ours is what surrounds
  them: what is masked, schedules by optimiser step, and the gradient of the last layer held back while the teacher is
  still noise;
- nothing in a step waits for the device: how many patches are hidden is drawn on the CPU, and what the schedules say is
  reported when the losses are read;
- the teacher sees whole global crops only; local crops and hidden patches are the student's; the heads see no
  patch but the hidden ones, and a loss of weight 0 is not computed;
- losses, centre and Sinkhorn are float32 whatever the precision: among close class tokens KoLeo would take a wrong
  neighbour in bf16;
- the mask token is no part of the encoder: what is kept, `teacher`, is a plain Vision Transformer;
- KoLeo (DINOv2, arXiv 2304.07193) keeps the images of a batch apart: with hundreds of steps instead of hundreds of
  thousands, DINO alone stays at the uniform answer (loss = log of the prototypes), and k-NN at chance.
"""

import copy
import functools
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.loss import DINOLoss, KoLeoLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules import DINOProjectionHead
from lightly.models.modules.center import Center
from lightly.models.utils import update_momentum
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from semmae.data.colour import Changes
from semmae.losses import in_float32
from semmae.masking import block_order, hide_first, nums_hidden
from semmae.models.vit import Encoder, Features
from semmae.options.teacher import TeacherRecipe
from semmae.sizes import Grid
from semmae.train.masks import Step, mask_seed, step_of
from semmae.train.meter import step_figures
from semmae.train.optimizer import adamw_warmup_cosine, can_fuse, set_weight_decay
from semmae.train.pixels import Pixels
from semmae.train.schedules import cosine, linear_warmup

# DINO and iBOT (main_dino.py, main_ibot.py): AdamW with PyTorch's betas, the student's temperature, the centre's
# inertia, the width of the heads' narrow layer.
BETAS = (0.9, 0.999)
STUDENT_TEMPERATURE = 0.1
_CENTRE_MOMENTUM = 0.9
_BOTTLENECK = 256

VIEWS = 2  # global crops of an image
_BOXES = 16  # drawn for a crop: of half of it they leave less than one patch in 98 to the refused ones


class Settings(NamedTuple):
    """What the schedules say at one step."""

    momentum: float
    teacher_temp: float
    weight_decay: float


def settings_at(recipe: TeacherRecipe, step: int, total: int) -> Settings:
    """The schedules at `step` of `total`."""
    return Settings(
        momentum=cosine(step, total=total, start=recipe.momentum, end=1.0),
        teacher_temp=linear_warmup(
            step,
            warmup=round(recipe.temp_warmup_share * total),
            start=recipe.warmup_teacher_temp,
            end=recipe.teacher_temp,
        ),
        weight_decay=cosine(step, total=total, start=recipe.weight_decay, end=recipe.weight_decay_end),
    )


class Outputs(NamedTuple):
    """What one network says of the crops of a step."""

    cls: Tensor  # logits of class tokens (views · B, prototypes), view-major
    patches: Tensor | None  # logits of the hidden patches (M, prototypes)
    tokens: Tensor  # class tokens of the global crops (2 · B, C), before the head


class Hidden(NamedTuple):
    """The patches of the global crops that are hidden from the student."""

    mask: Tensor  # bool (crops, L), True = hidden
    places: Tensor  # int64 (M,): which of all patches of all crops, ascending
    shares: Tensor  # float32 (M,): one by the number that are hidden in the same crop
    mean_count: float  # M, on average over the devices that compute together

    def of(self, patches: Tensor) -> Tensor:
        """Patches (crops, L, C) → the hidden ones (M, C)."""
        return patches.flatten(0, 1).index_select(0, self.places)


class Heads(nn.Module):
    """Projection heads of class tokens and of hidden patches; one for both where the recipe shares it."""

    def __init__(self, width: int, recipe: TeacherRecipe) -> None:
        super().__init__()
        self.cls = _head(width, recipe)
        self.own_patches = _head(width, recipe) if recipe.ibot and not recipe.shared_head else None

    @property
    def patches(self) -> nn.Module:
        head: nn.Module = self.cls if self.own_patches is None else self.own_patches
        return head

    def last_layers(self) -> list[nn.Parameter]:
        heads = [self.cls] if self.own_patches is None else [self.cls, self.own_patches]
        return [parameter for head in heads for parameter in head.last_layer.parameters()]


class PatchLoss(nn.Module):
    """iBOT's loss of hidden patches (equation 2), the mean of each masked crop's, summed and divided by all crops.

    lightly's looks the patches up in the mask, for which it waits for the device.
    """

    def __init__(self, prototypes: int, centre_momentum: float) -> None:
        super().__init__()
        self.center = Center((1, prototypes), momentum=centre_momentum)

    def forward(self, taught: Tensor, predicted: Tensor, hidden: Hidden, temperature: float) -> Tensor:
        """Logits (M, K) of the teacher, whose temperature it is, and of the student."""
        answers = centred(taught, self.center.value, temperature)
        entropies = -(answers * (predicted / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1)
        if hidden.mean_count:  # the mean over all devices, of which some may have hidden more than others
            self.center.update(taught.sum(0, keepdim=True) / hidden.mean_count)
        return (entropies * hidden.shares).sum() / len(hidden.mask)


class TeacherTask(pl.LightningModule):
    """Trains an encoder on batches {"images": uint8 (B, 2, 3, H, W)[, "local": uint8 (B, N, 3, h, w)]}.

    Beside them "changes" and "local_changes", as `CropDataset` gives them with `colour`. `teacher` is the result: the
    exponential moving average of the student. `lr` is the highest rate.
    """

    def __init__(self, encoder: Encoder, recipe: TeacherRecipe, *, lr: float) -> None:
        super().__init__()
        self.recipe, self.lr = recipe, lr
        self.student = encoder
        self.student_heads = Heads(encoder.width, recipe)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        # Built anew: torch cannot copy a weight-normalised layer.
        self.teacher_heads = Heads(encoder.width, recipe).requires_grad_(False)
        self.teacher_heads.load_state_dict(self.student_heads.state_dict())
        if recipe.ibot:
            self.mask_token = nn.Parameter(torch.zeros(1, encoder.width))  # two dimensions, so that it decays: iBOT's
        # Of a centre that never moves from 0, only the softmax remains: the Sinkhorn algorithm takes its place.
        inertia = 1.0 if recipe.centering == "sinkhorn" else _CENTRE_MOMENTUM
        self.dino = DINOLoss(recipe.prototypes, student_temp=STUDENT_TEMPERATURE, center_momentum=inertia)
        self.ibot = PatchLoss(recipe.prototypes, inertia)
        self.spread = KoLeoLoss()
        self.pixels = Pixels(encoder.spec)
        self._now: Settings | None = None

    def training_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """One step of the student, or one batch of several that make it, after the teacher has followed the last."""
        now = self._now = settings_at(self.recipe, self.global_step, self._total_steps())
        if batch_index % self.trainer.accumulate_grad_batches == 0:
            update_momentum(self.student, self.teacher, m=now.momentum)
            update_momentum(self.student_heads, self.teacher_heads, m=now.momentum)
            set_weight_decay(self.trainer.optimizers[0], now.weight_decay)
        crops = self._seen(batch["images"], batch.get("changes"))
        local = self._seen(batch["local"], batch.get("local_changes")) if "local" in batch else None
        hidden = self._draw_mask(crops, batch_index) if self.recipe.ibot else None
        targets = self._targets(crops, hidden, now.teacher_temp)
        predictions = self._predictions(crops, hidden, local)
        answers = centred(targets.cls, self.dino.center[0], now.teacher_temp)
        terms = self.losses(targets, predictions, hidden, now.teacher_temp)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros((), device=self.device))
        figures = {"loss": loss} | {f"loss_{name}": term for name, (_, term) in terms.items()}
        return step_figures(self, {**figures, "teacher_information": information(answers)})

    def interval_metrics(self) -> dict[str, float]:
        """What the schedules said at the last step: Lightning would send such numbers to the device, and wait."""
        return {} if self._now is None else self._now._asdict()

    @in_float32
    def losses(
        self, targets: Outputs, predictions: Outputs, hidden: Hidden | None, temperature: float
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of the loss as name → (weight, value)."""
        views = len(predictions.cls) // (len(targets.cls) // 2)
        terms = {"dino": (1.0, self.dino(targets.cls.chunk(2), predictions.cls.chunk(views), temperature))}
        if hidden is not None:
            assert targets.patches is not None and predictions.patches is not None
            terms["ibot"] = self.recipe.ibot, self.ibot(targets.patches, predictions.patches, hidden, temperature)
        if self.recipe.koleo:
            # Of each view alone: the two views of an image should not be kept apart.
            spread = torch.stack([self.spread(view) for view in predictions.tokens.chunk(2)]).mean()
            terms["koleo"] = self.recipe.koleo, spread
        return terms

    def on_after_backward(self) -> None:
        """Hold the heads' last layers back at first (DINO, `freeze_last_layer`), by steps, not epochs."""
        if self.global_step < self.recipe.frozen_share * self._total_steps():
            for parameter in self.student_heads.last_layers():
                parameter.grad = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self._total_steps()
        return adamw_warmup_cosine(
            self,
            lr=self.lr,
            betas=BETAS,
            weight_decay=self.recipe.weight_decay,
            total_steps=total,
            warmup_steps=round(self.recipe.warmup_share * total),
            fused=can_fuse(self.trainer),
        )

    def _targets(self, crops: Tensor, hidden: Hidden | None, temperature: float) -> Outputs:
        """The teacher on whole global crops (2 · B, 3, H, W); its logits balanced if the recipe says Sinkhorn."""
        features = self.teacher(crops)
        outputs = [self.teacher_heads.cls(features.cls)]
        if hidden is not None:
            outputs.append(self.teacher_heads.patches(hidden.of(features.patches)))
        if self.recipe.centering == "sinkhorn":
            outputs = [balanced(logits, temperature) for logits in outputs]
        return Outputs(outputs[0], outputs[1] if hidden is not None else None, features.cls)

    def _predictions(self, crops: Tensor, hidden: Hidden | None, local: Tensor | None) -> Outputs:
        """The student on global crops (2 · B, 3, H, W), some of them masked, and on local ones (N · B, 3, h, w)."""
        if hidden is None:
            features = self.student(crops)
        else:
            features = masked_features(self.student, crops, hidden.mask, self.mask_token)
        cls = features.cls if local is None else torch.cat([features.cls, self.student(local).cls])
        patches = None if hidden is None else self.student_heads.patches(hidden.of(features.patches))
        return Outputs(self.student_heads.cls(cls), patches, features.cls)

    def _seen(self, views: Tensor, changes: Changes | None) -> Tensor:
        """uint8 (B, V, 3, H, W) and what is drawn for them (B, V) → what networks see (V · B, 3, H, W), view-major."""
        first = [each.transpose(0, 1).flatten(0, 1) for each in (views, *(changes or ()))]
        seen: Tensor = self.pixels(first[0], None if changes is None else Changes(*first[1:]))
        return seen

    def _draw_mask(self, crops: Tensor, batch_index: int) -> Hidden:
        grid = self.student.grid_of(crops)
        shape, seed = (len(crops), math.prod(grid)), mask_seed(self.recipe.seed, self.global_step, 0)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        step = step_of(self.trainer, len(crops) // VIEWS, batch_index, generator)
        return draw_mask(self.recipe, shape, seed, self.device, grid, step)

    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)


def draw_mask(
    recipe: TeacherRecipe,
    shape: tuple[int, int],
    seed: int,
    device: torch.device,
    grid: Grid | None = None,
    step: Step | None = None,
) -> Hidden:
    """Of (crops, L) patches, by default L of a square grid: some crops, by chance, hide patches, the others none.

    Each draws its own share of hidden patches, evenly from mask_ratio ± mask_spread, as in iBOT. Crops are view-major;
    of a `step` that several devices or batches share, all of it is drawn, and the own rows are taken. Counts are drawn
    on the CPU and patches on the device: to ask it how many they are would be to wait for it.
    """
    crops, patches = shape
    if step is None:
        generator = torch.Generator(device=device).manual_seed(seed)
        step = Step.of(crops // VIEWS, rank=0, ranks=1, part=0, parts=1, generator=generator)
    whole = VIEWS * step.images
    rng = np.random.default_rng(seed)
    ratios = recipe.mask_ratio + recipe.mask_spread * rng.uniform(-1, 1, whole)
    masked = rng.permutation(whole) < max(1, round(recipe.mask_share * whole))
    of_all = (nums_hidden(patches, ratios) * masked).reshape(VIEWS, step.images)
    numbers = of_all[:, step.rows].ravel()
    counts = torch.from_numpy(numbers).to(device, non_blocking=True)
    noise = functools.partial(_noise, step, device)
    order = noise(patches)
    if recipe.masking == "block":
        order = block_order(order, noise(_BOXES, 4), counts, grid)
    mask = hide_first(order, counts)
    # A stable sort puts what is hidden first, and keeps the order of the grid.
    places = mask.flatten().byte().argsort(descending=True, stable=True)[: int(numbers.sum())]
    shares = counts.clamp(min=1).reciprocal()[places // patches]
    return Hidden(mask, places, shares, float(of_all[:, step.together].sum() / step.ranks))


def _noise(step: Step, device: torch.device, *columns: int) -> Tensor:
    """Numbers in [0, 1) for the own crops, (crops, *columns): each its own, however the step is divided."""
    drawn = torch.rand(VIEWS, step.images, *columns, generator=step.generator, device=device)
    return drawn[:, step.rows].flatten(0, 1)


def masked_features(encoder: Encoder, images: Tensor, mask: Tensor, token: Tensor) -> Features:
    """What an encoder makes of normalised images (B, 3, H, W) whose hidden patches are replaced by `token` (1, C).

    `mask` is bool (B, L), True = hidden; hidden patches keep their positions.
    """

    def hide(_module: nn.Module, _inputs: object, patches: Tensor) -> Tensor:
        return torch.where(mask.view(patches.shape[:-1])[..., None], token.to(patches), patches)

    # Between patches and positions there is no other door into timm's models, and this one fits all of them.
    handle = encoder.vit.patch_embed.register_forward_hook(hide)
    try:
        features: Features = encoder(images)
    finally:
        handle.remove()
    return features


@in_float32
def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's answers: logits (M, K) and their centre (1, K) → shares of the prototypes (M, K), rows of sum 1."""
    return (logits - centre).div(temperature).softmax(-1)


@in_float32
@torch.no_grad()
def balanced(logits: Tensor, temperature: float) -> Tensor:
    """Logits (M, K) → logits whose softmax at `temperature` uses all K prototypes alike (Sinkhorn-Knopp, SwAV)."""
    none = logits.new_full((1, logits.shape[1]), -math.inf)  # for a device that has hidden nothing
    highest = torch.cat([logits, none]).amax(0, keepdim=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    # The first thing that Sinkhorn does is to scale every prototype: a shift of each changes nothing, and keeps
    # the exponential from overflowing, and prototypes from vanishing.
    shares = sinkhorn(logits - highest, epsilon=temperature, gather_distributed=True)
    as_logits: Tensor = temperature * shares.log()
    return as_logits


def information(answers: Tensor) -> Tensor:
    """How much an answer says of its image, in nats: the entropy of the mean less the mean entropy of answers (M, K).

    0 where all images get the same answer, be it one prototype or all of them: the alarm for either collapse.
    """
    of_the_mean, of_each = (torch.special.entr(x).sum(-1) for x in (answers.mean(0), answers))
    nats: Tensor = of_the_mean - of_each.mean()
    return nats


def _head(width: int, recipe: TeacherRecipe) -> DINOProjectionHead:
    with warnings.catch_warnings():
        # lightly still normalises weights the older way, of which torch warns.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm")
        return DINOProjectionHead(
            width,
            hidden_dim=recipe.head_width,
            bottleneck_dim=_BOTTLENECK,
            output_dim=recipe.prototypes,
            norm_last_layer=recipe.norm_last_layer,
        )
