"""What pre-training hides: the functions behind `MASKINGS`, one's own, and what was hidden, part by part.

A mask function gets a `MaskContext` and returns bool (B, L), True = hidden, the same number of patches in every row of
every batch. It draws its noise by `context.uniform`, so that a resumed run draws the same masks. One of your own:

    def stripes(context):
        batch, patches = context.shape
        column = torch.arange(patches, device=context.device) % context.grid[1]
        first = context.uniform(1) < 0.5  # (B, 1): for each image by itself
        return (column % 2 == 0) ^ first
"""

import dataclasses
import functools
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from semmae.errors import UserError
from semmae.masking import (
    attention_mask,
    block_mask,
    colour_mask,
    green_noise,
    most_attended,
    part_counts,
    random_mask,
    semantic_mask,
)
from semmae.options.functions import foreign, function_at
from semmae.options.maskings import MASKINGS
from semmae.sizes import Grid, square

if TYPE_CHECKING:
    import pytorch_lightning as pl

_BOXES = 16  # of a block mask: enough to hide three quarters
_FIELD = 1024  # numbers a side of the noise that colour masks are windows of: a million windows, 4 MB


class Step(NamedTuple):
    """Where a batch stands in its optimiser step, whose images are dealt out to ranks and batches."""

    images: int  # of the whole step, over all ranks
    rows: slice  # of these, the batch's
    generator: torch.Generator  # of noise for all of them, the same on every rank

    @classmethod
    def of(cls, batch: int, *, rank: int, ranks: int, part: int, parts: int, generator: torch.Generator) -> "Step":
        """Of a rank's batch number `part` of `parts`, so many images each."""
        first = rank + ranks * part * batch
        return cls(batch * ranks * parts, slice(first, first + ranks * batch, ranks), generator)

    @property
    def ranks(self) -> int:
        return int(self.rows.step)

    @property
    def together(self) -> slice:
        """Which images all ranks have in the batches of this moment."""
        rank = self.rows.start % self.ranks
        return slice(self.rows.start - rank, self.rows.stop - rank)


@dataclass(frozen=True)
class MaskContext:
    """What a mask is made from: a batch, the moment in training, and a source of noise."""

    shape: tuple[int, int]  # B images, L patches, row-major
    ratio: float  # share of patches to hide
    progress: float  # 0 to 1: share of the training that is done
    generator: torch.Generator  # on the mask's device; the same at the same step of a resumed run
    num_labels: int = 0  # K
    parts: Tensor | None = None  # part label under each patch, int64 (B, L) in [0, K)
    attention: Tensor | None = None  # a teacher's attention to each patch, float (B, L), larger = more
    subset: Tensor | None = None  # where only some patches take part: which of the grid the L are, int64 (B, L)
    blend: float = 0.0  # of masking by parts, now: 0 a share of every part, 1 whole parts
    hint: float = 0.0  # of masking by attention: share of the most attended patches that stays visible
    part_hints: int = 0  # of masking by parts: patches of every larger part that stay visible
    keep_background: bool = False  # of masking by parts: label 0 hides its share at any blend
    step: "Step | None" = None  # where the batch stands in the optimiser step; None: it is the whole of it
    whole: Grid | None = None  # rows and columns of all patches of an image; None: a square

    @property
    def device(self) -> torch.device:
        """Where the mask has to lie."""
        return self.generator.device

    @property
    def grid(self) -> Grid:
        """Rows and columns of all patches of an image, of which the L may be a subset."""
        return self.whole or square(self.shape[1])

    def uniform(self, *columns: int) -> Tensor:
        """Numbers in [0, 1), (B, *columns) or (B, L): each image its own, however its step is divided."""
        columns = columns or self.shape[1:]
        if self.step is None:
            return torch.rand((self.shape[0], *columns), generator=self.generator, device=self.device)
        noise = torch.rand((self.step.images, *columns), generator=self.step.generator, device=self.device)
        return noise[self.step.rows]

    def most_attended(self, count: int) -> "MaskContext":
        """The same of the `count` most attended patches alone; draws noise, for patches attended alike."""
        scores = _needed(self.attention, "a subset of the patches", "attention")
        subset = most_attended(scores, self.uniform(), count)
        parts = None if self.parts is None else self.parts.gather(1, subset)
        attention, shape = scores.gather(1, subset), (self.shape[0], count)
        return dataclasses.replace(self, shape=shape, parts=parts, attention=attention, subset=subset)


MaskFunction = Callable[[MaskContext], Tensor]


def semantic(context: MaskContext) -> Tensor:
    """A share of every part, whole parts, or between the two, as `context.blend` says."""
    parts = _needed(context.parts, "masking by parts (semantic, intra, inter)", "part labels")
    noise, order_noise = context.uniform(), context.uniform(context.num_labels)
    return semantic_mask(
        parts, noise, order_noise, context.ratio, context.blend, context.part_hints, context.keep_background
    )


def random(context: MaskContext) -> Tensor:
    """Any patches."""
    return random_mask(context.uniform(), context.ratio)


def block(context: MaskContext) -> Tensor:
    """Rectangles."""
    return block_mask(context.uniform(), context.uniform(_BOXES, 4), context.ratio, context.grid)


def colour(context: MaskContext) -> Tensor:
    """Blobs of filtered noise."""
    field = _green_field(context.device)
    return colour_mask(field, context.uniform(2), context.shape[1], context.ratio, context.grid)


@functools.cache
def _green_field(device: torch.device) -> Tensor:
    """Filtered noise (S, S), the same in every run whatever its seed, made once for each device."""
    generator = torch.Generator().manual_seed(0)
    return green_noise(torch.rand(_FIELD, _FIELD, generator=generator, dtype=torch.float64)).to(device)


def attention(context: MaskContext) -> Tensor:
    """The most attended patches, but for the hints."""
    scores = _needed(context.attention, "masking by attention", "attention")
    return attention_mask(scores, context.uniform(), context.uniform(), context.ratio, context.hint)


def _needed(tensor: Tensor | None, what: str, reads: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{what} reads {reads}, but the batch has none")
    return tensor


def draw_mask(masking: str, context: MaskContext) -> Tensor:
    """The mask, bool (B, L), of a name among `MASKINGS` or of your own `package.module:function`."""
    return mask_function(masking)(context)


def mask_function(masking: str) -> MaskFunction:
    """The function of that name among `MASKINGS`, or your own, `package.module:function`, whose masks are checked."""
    if masking not in MASKINGS:
        return CheckedMask(function_at(masking, "--masking"), masking)
    row = MASKINGS[masking]
    function: MaskFunction = pkgutil.resolve_name(row.function)
    blend = row.blend
    return function if blend is None else lambda context: function(dataclasses.replace(context, blend=blend))


def mask_seed(seed: int, step: int, place: int) -> int:
    """A seed for a batch by its place in the step: its rank, plus the number of ranks for each batch before it."""
    return (seed * 1_000_003 + step) * 4_099 + place


def step_of(trainer: "pl.Trainer", images: int, batch_index: int, generator: torch.Generator) -> Step:
    """Where the batch of so many images that is number `batch_index` of its epoch stands in its optimiser step."""
    ranks, parts = trainer.world_size, trainer.accumulate_grad_batches
    part = batch_index % parts
    return Step.of(images, rank=trainer.global_rank, ranks=ranks, part=part, parts=parts, generator=generator)


def batch_seed(task: "pl.LightningModule", seed: int, batch_index: int) -> int:
    """`mask_seed` of the batch that a task is given as number `batch_index` of its epoch."""
    part = batch_index % task.trainer.accumulate_grad_batches
    return mask_seed(seed, task.global_step, task.global_rank + part * task.trainer.world_size)


class CheckedMask:
    """One's own mask function, of that name as an option, whose every result is checked.

    To count what is hidden, one has to wait for the device: no training with one's own masks is without that.
    """

    def __init__(self, function: MaskFunction, name: str) -> None:
        self.function, self.option = function, f"--masking {name}"
        self._hidden: int | None = None

    def __call__(self, context: MaskContext) -> Tensor:
        """The function's mask, bool (B, L).

        Raises:
            UserError: the function fails, its mask is none, or hides another number in some row.
        """
        with foreign(self.option):
            mask = self.function(context)
        if not isinstance(mask, Tensor):
            raise UserError(f"{self.option} returned {type(mask).__name__}; return a bool tensor (B, L)")
        if mask.dtype != torch.bool or mask.shape != context.shape or mask.device != context.device:
            kind = str(mask.dtype).removeprefix("torch.")
            raise UserError(
                f"{self.option} returned {kind} {tuple(mask.shape)} on {mask.device}; "
                f"return bool {context.shape} on {context.device}, True = hidden"
            )
        self._count(mask)
        return mask

    def _count(self, mask: Tensor) -> None:
        counts = mask.sum(1)
        least, most = int(counts.min()), int(counts.max())
        if least != most:
            raise UserError(f"{self.option} hides {least} to {most} patches a row; hide the same number in every row")
        if not 0 < most < mask.shape[1]:
            raise UserError(f"{self.option} hides {most} of {mask.shape[1]} patches; hide some, but not all")
        if self._hidden is not None and most != self._hidden:
            raise UserError(
                f"{self.option} hides {most} patches a row, before it were {self._hidden}; "
                "hide the same number in every batch"
            )
        self._hidden = most


class MaskMeter:
    """Blend and hidden share of each part, summed up where they are and read now and then."""

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = label_names
        self._blend, self._steps = 0.0, 0
        self._patches: Tensor | None = None  # (2, K) on the device: hidden ones, all of them

    def add(self, mask: Tensor, parts: Tensor | None, blend: float | None) -> None:
        """Count one batch: mask bool (B, L); parts (B, L) integers in [0, K) and the blend, where there are any."""
        if blend is not None:
            self._blend, self._steps = self._blend + blend, self._steps + 1
        if parts is not None:
            labels = len(self.label_names)
            # Visible and hidden patches of a part as two labels, so that one count gives both.
            counts = part_counts((parts + labels * mask).view(1, -1), 2 * labels).view(2, labels)
            patches = torch.stack([counts[1], counts.sum(0)])
            # .to: what a checkpoint held comes on the CPU
            self._patches = patches if self._patches is None else self._patches.to(patches.device) + patches

    def state(self) -> dict[str, Any]:
        """What was counted since the last reading, for a checkpoint."""
        return {"blend": self._blend, "steps": self._steps, "patches": self._patches}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._blend, self._steps, self._patches = state["blend"], state["steps"], state["patches"]

    def read(self) -> dict[str, float]:
        """Averages since the last reading, `blend` and `hidden/LABEL` of the parts seen; waits for the device."""
        found = {"blend": self._blend / self._steps} if self._steps else {}
        if self._patches is not None:
            shares = zip(self.label_names, *self._patches.tolist(), strict=True)
            found |= {f"hidden/{name}": hidden / patches for name, hidden, patches in shares if patches}
        self._blend, self._steps, self._patches = 0.0, 0, None
        return found
