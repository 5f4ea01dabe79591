"""Semantic segmentation: UPerNet with the whole encoder trained, or a linear head on its frozen patch tokens."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader

from semmae.data.classes import image_keys
from semmae.data.loaders import make_loader
from semmae.data.manifest import sample_rows
from semmae.data.samplers import StepSampler
from semmae.data.segment_crops import Augmentation, SegmentCrops, WholeLabelled
from semmae.data.segmentation import LabelledImages, MeasuredData, SegmentationData
from semmae.errors import UserError
from semmae.evaluation.protocols import OWN, UNTRAINED
from semmae.evaluation.protocols.shape import Measured, Protocol, Segmented
from semmae.evaluation.segmentation import evaluate, figures
from semmae.files import make_folder
from semmae.formats.folders import check_saveable, digest, save_segmenter
from semmae.models.classifier import set_drop_path
from semmae.models.segmenter import LEVELS, Segmenter, SegmenterSpec, smallest_image, usual_blocks
from semmae.models.vit import Encoder
from semmae.names import shown
from semmae.options.segment import Head, SegmentRecipe, WindowOptions
from semmae.options.shared import PrecisionOptions, SeedOptions, WorkerOptions
from semmae.run.ranks import is_rank_zero
from semmae.sizes import Size, as_size, sides, size_text
from semmae.train.batches import Training
from semmae.train.precision import resolve_precision
from semmae.train.segment import SegmentTask
from semmae.train.stage import Evaluation, FitOptions
from semmae.train.summary import summarised
from semmae.train.trainer import fit

_ROUNDS = 10  # that a training has, where steps between validations are not given
_RATES: dict[Head, float] = {"upernet": 1e-4, "linear": 1e-2}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Windows(WindowOptions, PrecisionOptions, WorkerOptions, SeedOptions):
    """How a segmenter is measured: windows slid over whole images."""

    image_size: Size  # pixels of a window

    @property
    def step(self) -> Size:
        """Pixels between windows, down and across."""
        down, across = (max(1, round(self.stride * side)) for side in sides(self.image_size))
        return as_size(down, across)

    def measure(self, segmenter: Segmenter, val: LabelledImages) -> Measured:
        """Slide the segmenter over the validation images."""
        spec = segmenter.encoder.spec
        device = "cuda" if torch.cuda.is_available() else "cpu"
        counts, predictions = evaluate(
            segmenter.to(device),
            make_loader(WholeLabelled(val, self.image_size), 1, workers=self.num_workers),
            classes=len(segmenter.spec.classes),
            size=self.image_size,
            stride=self.step,
            mean=spec.mean,
            std=spec.std,
            device=device,
            dtype=_DTYPES.get(resolve_precision(self.precision)),
            keep=sample_rows(len(val), self.pictures, self.seed) if self.pictures else [],
            total=len(val),
        )
        found = figures(counts, segmenter.spec.classes) | {"images": len(val)}
        return Measured(found, Segmented(val, predictions))

    def describe(self, head: Head, data: MeasuredData) -> dict[str, Any]:
        """For results.json."""
        size, step = size_text(self.image_size), size_text(self.step)
        scale = f"short side {size}" if isinstance(self.image_size, int) else "which the image just covers"
        return {
            "method": "UPerNet, encoder fine-tuned" if head == "upernet" else "linear head on frozen patch tokens",
            "image_size": self.image_size,
            "measured": f"windows of {size} pixels every {step}, {scale}; masks' own size",
            "classes": len(data.names),
            "arithmetic": resolve_precision(self.precision),
            "interval": "95 %, bootstrap over images",
            "ignore_index": self.ignore_index,
            "reduce_zero_label": self.reduce_zero_label,
            "split": data.split,
        }


@dataclass(frozen=True)
class Segment(Protocol[SegmentationData]):
    """A head trained for a number of steps; the last one is measured."""

    name = "segment"

    recipe: SegmentRecipe
    training: Training
    windows: Windows
    source: str  # what messages and the saved network call the encoder

    def check_settings(self) -> None:
        """Refuse what contradicts itself, whatever the encoder and the data."""
        recipe, training = self.recipe, self.training
        training.check()
        if recipe.head == "upernet" and training.batch_size // training.batches < 2:
            raise UserError(
                f"--batch-size {training.batch_size}: UPerNet norms need two images together; at least "
                f"{2 * training.batches}"
            )
        steps, val_steps = recipe.steps, recipe.val_steps
        if val_steps and steps % val_steps:
            raise UserError(f"--val-steps {val_steps} does not divide --steps {steps}; use {steps // self.rounds}")
        if recipe.min_scale > recipe.max_scale:
            raise UserError(f"--min-scale {recipe.min_scale} is above --max-scale {recipe.max_scale}; exchange them")

    @property
    def rounds(self) -> int:
        """How many equal rounds of steps a training has: ten, or what was asked for, or the nearest that divides."""
        steps, val_steps = self.recipe.steps, self.recipe.val_steps
        wanted = steps / val_steps if val_steps else min(_ROUNDS, steps)
        most = min(steps, 2 * round(wanted) + 1)
        divisors = [count for count in range(1, most + 1) if steps % count == 0]
        return min(divisors, key=lambda count: (abs(count - wanted), -count))

    @property
    def rate(self) -> float:
        """The learning rate: as given, else by the head."""
        return _RATES[self.recipe.head] if self.recipe.lr is None else self.recipe.lr

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse an encoder too short, or a size too small, for UPerNet, and one that could not be saved."""
        depth, patch, size = encoder.spec.depth, encoder.patch_size, self.windows.image_size
        if self.recipe.head == "upernet":
            if depth < LEVELS:
                raise UserError(f"--encoder {self.source}: {depth} blocks, UPerNet reads four; use --head linear")
            if min(sides(size)) < smallest_image(patch):
                least = smallest_image(patch)
                raise UserError(
                    f"--image-size {size_text(size)}: must be at least {least} for UPerNet on patches of {patch}"
                )
            self.read_blocks(depth)
        check_saveable(encoder)

    def read_blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks asked for, or the usual ones of an encoder of that depth."""
        given = self.recipe.blocks
        if given is None:
            return usual_blocks(depth)
        try:
            blocks = tuple(int(number) for number in given.split(","))
        except ValueError:
            blocks = ()
        if len(blocks) != LEVELS or list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < depth:
            usual = ",".join(map(str, usual_blocks(depth)))
            raise UserError(
                f"--blocks {shown(given)}: must be four rising numbers from 0 to {depth - 1}, such as {usual}"
            )
        return blocks

    def prepare(self, encoder: Encoder) -> None:
        encoder.set_image_size(self.windows.image_size)

    def run(self, encoder: Encoder, data: SegmentationData, out: Path, name: str = OWN) -> Measured | None:
        """Leaves `segmenter/` in `out`, and measures it as the last validation did."""
        segmenter = self.new_segmenter(encoder, data.names)
        last: list[Measured] = []

        def validated() -> dict[str, float]:
            last[:] = [self.windows.measure(segmenter, data.val)]
            return {each: last[0].figures[each] for each in ("miou", "pixel_accuracy")}

        facts = {"steps": self.recipe.steps, "head": self.recipe.head, "masks_digest": data.digest}
        facts |= {"encoder_digest": digest(encoder)}  # as it is before it is trained
        make_folder(out)
        stage = UNTRAINED if name == UNTRAINED else "segment"
        with summarised(out, stage, data.train.images, [data.val.images], **facts) as summary:
            options = FitOptions(self.training, out, stage, self.rounds, self.recipe.clip, in_steps=True)
            task = SegmentTask(segmenter, self.recipe, lr=self.rate)
            summary.trained(fit(task, self.loader(encoder, data), options, Evaluation(validated, 1)))
            if not is_rank_zero():
                return None
            about = {"encoder": self.source, **summary.length}
            save_segmenter(segmenter, out / "segmenter", about, image_keys(data.train.images))
        # A run resumed at its end has validated nothing.
        return replace(last[0] if last else self.windows.measure(segmenter, data.val), length=summary.length)

    def new_segmenter(self, encoder: Encoder, classes: tuple[str, ...]) -> Segmenter:
        """The encoder with a new head."""
        recipe, is_upernet = self.recipe, self.recipe.head == "upernet"
        torch.manual_seed(recipe.seed)
        if is_upernet:
            set_drop_path(cast(VisionTransformer, encoder.vit), recipe.drop_path)
        spec = SegmenterSpec(
            classes,
            recipe.head,
            self.read_blocks(encoder.spec.depth) if is_upernet else (),
            recipe.decoder_channels or _usual_channels(encoder.width),
            auxiliary=is_upernet and recipe.aux_weight > 0,
        )
        segmenter = Segmenter(encoder, spec)
        segmenter.checkpointing = recipe.checkpointing
        return segmenter.train()  # Lightning leaves every layer in the mode it comes in

    def loader(self, encoder: Encoder, data: SegmentationData) -> DataLoader[dict[str, Any]]:
        """Crops of the training images; around small ones there is the mean colour."""
        training, recipe = self.training, self.recipe
        most = 255 if encoder.spec.channels == 3 else 65535
        fill = tuple(round(most * value) for value in encoder.spec.mean)
        scales = (recipe.min_scale, recipe.max_scale)
        size = self.windows.image_size
        how = Augmentation(size, scales, recipe.most_of_one, recipe.colour, fill)
        crops = SegmentCrops(data.train, how, recipe.seed)
        steps = recipe.steps // self.rounds
        sampler = StepSampler(len(crops), recipe.seed, steps=steps, batch_size=training.batch_size)
        together = training.batch_size // training.batches
        return make_loader(
            crops, together, sampler=sampler, workers=training.num_workers, drop_last=True, sharing=training.devices
        )

    def describe(self, data: SegmentationData) -> dict[str, Any]:
        recipe = self.recipe
        of_upernet = {"layer_decay": recipe.layer_decay, "drop_path": recipe.drop_path}
        return self.windows.describe(recipe.head, data) | {
            "steps": recipe.steps,
            "batch_size": self.training.batch_size,
            "lr": self.rate,
            "weight_decay": recipe.weight_decay,
            "weights": "of the last step",
            "preset": recipe.preset,
            **(of_upernet if recipe.head == "upernet" else {}),
        }


def _usual_channels(width: int) -> int:
    return 512 if width >= 768 else 256 if width >= 384 else 128
