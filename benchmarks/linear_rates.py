"""What a linear head for segmentation reads off an encoder, by learning rate and number of steps.

    python benchmarks/linear_rates.py --encoder runs/a --data street-fashion --image-size 96

It is the head of `semmae segment --head linear` and `semmae evaluate`, trained as they train it. All heads of an
encoder see the same crops in the same order, so that the frozen encoder looks at each batch once. The training images
alone are used: some are held out of the training, and the heads' figures are those on these; so a rate can
be chosen without a look at the validation images. Beside the encoder stands the same one with new weights.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from semmae.data.coding import Coding
from semmae.data.loaders import make_loader, normalise
from semmae.data.manifest import sample_rows
from semmae.data.samplers import StepSampler
from semmae.data.segment_crops import Augmentation, SegmentCrops, WholeLabelled
from semmae.data.segmentation import LabelledImages, open_segmentation
from semmae.evaluation.segmentation import evaluate, figures
from semmae.formats.open import load_encoder
from semmae.models.fresh import fresh_like
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder
from semmae.options.segment import SegmentRecipe
from semmae.train.optimizer import layer_decay_groups
from semmae.train.precision import resolve_precision
from semmae.train.schedules import warmup_poly
from semmae.train.segment import BETAS, pixel_loss

_BATCH, _WARMUP, _STRIDE = 16, 0.05, 2 / 3  # as `semmae evaluate` has them
_BF16 = torch.bfloat16 if resolve_precision("auto") == "bf16" else None


@dataclass(frozen=True)
class Contestant:
    """A head, and how it is trained."""

    rate: float
    steps: int
    segmenter: Segmenter
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR


def main() -> None:
    """Both encoders, table, file."""
    asked = arguments()
    data = open_segmentation(asked.data, Coding(), workers=0)
    held_out = sample_rows(len(data.train), asked.held_out, asked.seed)
    kept = sorted(set(range(len(data.train))).difference(held_out))
    sets = (data.train.select(kept), data.train.select(held_out))
    encoder = load_encoder(asked.encoder)
    encoders = {"this encoder": encoder, "untrained": fresh_like(encoder, asked.seed)}
    found: dict[str, Any] = {"train": len(kept), "held out": len(held_out), "image_size": asked.image_size}
    for name, one in encoders.items():
        one.set_image_size(asked.image_size)
        heads = [new_head(one, data.names, rate, steps, asked.seed) for steps in asked.steps for rate in asked.rates]
        train(one, heads, sets[0], asked.seed)
        found[name] = [measure(head, sets[1], data.names) for head in heads]
        for row in found[name]:
            print(f"{name}, {row}", flush=True)
    harness.write_results("linear_rates", found)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, required=True, help="with images/train and masks/train")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--held-out", type=int, default=100, help="training images to measure on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def new_head(encoder: Encoder, classes: Sequence[str], rate: float, steps: int, seed: int) -> Contestant:
    """A head that begins as all others do."""
    torch.manual_seed(seed)
    segmenter = Segmenter(encoder, SegmenterSpec(tuple(classes), "linear")).train()
    groups = layer_decay_groups(segmenter, lr=rate, weight_decay=SegmentRecipe.weight_decay, layer_decay=1.0)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
    warmup = round(_WARMUP * steps)
    schedule = LambdaLR(optimizer, lambda step: warmup_poly(step, total=steps, warmup=warmup))
    return Contestant(rate, steps, segmenter, optimizer, schedule)


def train(encoder: Encoder, heads: Sequence[Contestant], images: LabelledImages, seed: int) -> None:
    """Each head for its number of steps, on tokens that are computed once for all of them."""
    spec, most = encoder.spec, max(head.steps for head in heads)
    red, green, blue = (round(255 * value) for value in spec.mean)
    crops = SegmentCrops(images, Augmentation(spec.image_size, fill=(red, green, blue)), seed)
    sampler = StepSampler(len(crops), seed, steps=most, batch_size=_BATCH)
    for step, batch in enumerate(make_loader(crops, _BATCH, sampler=sampler, workers=0, drop_last=True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=_BF16 is not None):
            with torch.no_grad():
                tokens = encoder(normalise(batch["images"], spec.mean, spec.std)).patches
            side = spec.image_size // encoder.patch_size
            maps = tokens.transpose(1, 2).unflatten(2, (side, side))
            for head in heads:
                if step < head.steps:
                    learn(head, pixel_loss(head.segmenter.head(maps), batch["labels"]))


def learn(head: Contestant, loss: Tensor) -> None:
    """One step of the optimiser."""
    loss.backward()
    head.optimizer.step()
    head.optimizer.zero_grad()
    head.schedule.step()


def measure(head: Contestant, images: LabelledImages, classes: Sequence[str]) -> dict[str, Any]:
    """mIoU, and share of pixels classified right, on images held out of the training."""
    spec = head.segmenter.encoder.spec
    network: nn.Module = head.segmenter
    table, _ = evaluate(
        network, make_loader(WholeLabelled(images, spec.image_size), 1, workers=0), classes=len(classes),
        size=spec.image_size, stride=round(_STRIDE * spec.image_size), mean=spec.mean, std=spec.std, dtype=_BF16,
    )  # fmt: skip
    found = figures(table, classes)
    return {"steps": head.steps, "rate": head.rate, "miou": found["miou"], "pixel_accuracy": found["pixel_accuracy"]}


if __name__ == "__main__":
    main()
