"""What masks cost: beside one `argsort` of their shape, beside a loop over images, and beside a training step.

    python benchmarks/masking.py

- `semantic_vs_argsort`: seconds of `semantic_mask` for 4096 images of 196 patches and 7 parts by seconds of one
  `argsort` of such a float tensor, for the blend that takes longest;
- `loop_vs_semantic`: the same work image by image and part by part, as SemMAE's released code does it, written
  anew from its description: 75 % of every part rounded, the two quotas blended, an argsort that mends the count;
- `share_of_step`: drawing the noise, the mask and the sums that are logged, for a batch of 16, by the seconds of a
  training step of ViT-B/16 at 224 pixels, which is measured too unless `--step-seconds` gives it.
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import numpy as np
import torch
from harness import DEVICE, median_ratio, take_turns, write_results
from torch import Tensor

from semmae.masking import attention_mask, block_mask, random_mask, semantic_mask
from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainRecipe
from semmae.train.masks import MaskMeter, draw_mask
from semmae.train.precision import resolve_precision
from semmae.train.pretrain import blend_at, mask_context

RATIO, BLENDS, BOXES = 0.75, (0.0, 0.5, 1.0), 16
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    """Measure, write results/masking.json, print its figures as one line."""
    options = parse()
    torch.manual_seed(0)
    shape = (options.images, options.patches)
    seconds = take_turns(mask_works(shape, options.parts), options.rounds)
    semantic = {f"semantic_{blend}": median_ratio(seconds[f"semantic_{blend}"], seconds["argsort"]) for blend in BLENDS}
    slowest = max(semantic, key=lambda name: semantic[name])
    ratios = {
        "semantic_vs_argsort": semantic[slowest],
        **{f"{name}_vs_argsort": ratio for name, ratio in semantic.items()},
        **{f"{name}_vs_argsort": median_ratio(seconds[name], seconds["argsort"]) for name in ("random", "block")},
        "attention_vs_argsort": median_ratio(seconds["attention"], seconds["argsort"]),
        "loop_vs_semantic": median_ratio(seconds["loop"], seconds["semantic_0.5"]),
    }
    batches = take_turns(batch_works(options.batch_size, options.parts), 10 * options.rounds)
    precision, step = resolve_precision("auto"), options.step_seconds
    if step is None:
        step = min(take_turns({"step": training_step(options.batch_size, precision)}, options.step_rounds)["step"])
    write_results(
        "masking",
        {
            "shape": {"images": options.images, "patches": options.patches, "parts": options.parts},
            "batch_size": options.batch_size,
            "milliseconds": {name: milliseconds(values) for name, values in seconds.items()},
            "milliseconds_of_a_batch": {name: milliseconds(values) for name, values in batches.items()},
            "ratios": ratios,
            "step": {"model": "ViT-B/16 at 224", "precision": precision, "seconds": round(step, 4)},
            "share_of_step": {name: round(statistics.median(of) / step, 6) for name, of in batches.items()},
        },
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--parts", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16, help="of the training step")
    parser.add_argument("--step-rounds", type=int, default=3, help="steps measured; the fastest counts")
    parser.add_argument("--step-seconds", type=float, help="of a training step, where it is known")
    return parser.parse_args()


def milliseconds(seconds: list[float]) -> float:
    """The median."""
    return round(1000 * statistics.median(seconds), 3)


def mask_works(shape: tuple[int, int], parts: int) -> dict[str, Callable[[], object]]:
    """Masks of a large batch, from noise that is there already; and what they are compared with."""
    images, _ = shape
    labels = uneven_parts(shape, parts)
    noise, more_noise, attention = (torch.rand(shape, device=DEVICE) for _ in range(3))
    order_noise, boxes = torch.rand(images, parts, device=DEVICE), torch.rand(images, BOXES, 4, device=DEVICE)
    works: dict[str, Callable[[], object]] = {"argsort": functools.partial(noise.argsort, dim=1)}
    for blend in BLENDS:
        works[f"semantic_{blend}"] = functools.partial(semantic_mask, labels, noise, order_noise, RATIO, blend)
    works["random"] = functools.partial(random_mask, noise, RATIO)
    works["block"] = functools.partial(block_mask, noise, boxes, RATIO)
    works["attention"] = functools.partial(attention_mask, attention, noise, more_noise, RATIO, 0.5)
    works["loop"] = functools.partial(loop_masks, labels.cpu().numpy(), parts, 0.5)
    return works


def uneven_parts(shape: tuple[int, int], parts: int) -> Tensor:
    """Labels of parts of which some are large and some small, int64 (B, L)."""
    return (torch.rand(shape, device=DEVICE) ** 2 * parts).long()


def loop_masks(labels: np.ndarray, parts: int, blend: float) -> np.ndarray:
    """bool (B, L): image by image, part by part."""
    return np.stack([loop_mask(row, parts, blend) for row in labels])


def loop_mask(labels: np.ndarray, parts: int, blend: float) -> np.ndarray:
    """One row: every part hides its rounded quota, then the visible ones are padded or cut to their number."""
    visible = int(len(labels) * (1 - RATIO))
    mask, left = np.zeros(len(labels)), len(labels) - visible
    for part in np.random.permutation(parts):
        patches = np.flatnonzero(labels == part)
        whole = min(len(patches), left)
        left -= whole
        quota = round((1 - blend) * round(RATIO * len(patches)) + blend * whole)
        mask[np.random.permutation(patches)[:quota]] = 1
    hidden = np.ones(len(labels), dtype=bool)
    hidden[np.argsort(mask)[:visible]] = False
    return hidden


def batch_works(images: int, parts: int) -> dict[str, Callable[[], object]]:
    """All that a training step does for its mask, by masking."""
    shape = (images, 196)
    labels, attention, meter = (
        uneven_parts(shape, parts),
        torch.rand(shape, device=DEVICE),
        MaskMeter([str(part) for part in range(parts)]),
    )

    batch = {"parts": labels, "attention": attention}

    def work(recipe: PretrainRecipe) -> None:
        generator = torch.Generator(device=DEVICE)
        generator.manual_seed(0)
        context = mask_context(recipe, batch, shape, progress=0.5, generator=generator, num_labels=parts)
        meter.add(draw_mask(recipe.masking, context), labels, blend_at(recipe, 0.5))

    return {masking: functools.partial(work, PretrainRecipe(masking=masking)) for masking in MASKINGS}


def training_step(images: int, precision: str) -> Callable[[], object]:
    """Forward, backward and AdamW of ViT-B/16 with its decoder, in the arithmetic that `auto` means here."""
    mae = MaskedAutoencoder(Encoder(EncoderSpec.named("vit_base", 224, 16)), DECODERS["vit_base"]).to(DEVICE)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-4, fused=True)
    pixels = torch.randn(images, 3, 224, 224, device=DEVICE)
    mask = random_mask(torch.rand(images, 196, device=DEVICE), RATIO)

    def step() -> None:
        with torch.autocast(DEVICE.type, DTYPES[precision], enabled=precision != "float32"):
            loss = mae(pixels, mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
