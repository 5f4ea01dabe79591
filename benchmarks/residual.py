"""What `--residual bf16` costs in loss: the same training in float32, with products in bf16, with all tokens in bf16.

    python benchmarks/residual.py --images tiny-imagenet-100/train.parquet

An autoencoder of 12 blocks, 96 wide, on images of 32 pixels in patches of 4, random masks; images, masks and first
weights are those of the seed. Reported are the mean loss of the last sixth of the steps and that of other images.
A processor without units for it computes in bf16 a hundred times slower, so bf16 is emulated: what goes into a product
and comes out of one is rounded, values and gradients alike, and with "residual" each sum of a block as well. Sums
within a product are in float32, as a GPU's are. Some forty minutes of one slow core.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import write_results
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from semmae.data.loaders import WholeDataset
from semmae.data.manifest import open_images
from semmae.masking import random_mask
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.optimizer import adamw

WAYS = ("float32", "products", "residual")
BATCH, HELD_OUT, RATIO = 32, 256, 0.75


class Rounded(torch.autograd.Function):
    """The nearest bf16 number, of values forward and of gradients backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].bfloat16().float()


def rounded(values: Tensor) -> Tensor:
    """Values as bf16 has them, in float32."""
    found: Tensor = Rounded.apply(values)
    return found


def main() -> None:
    """Train each way with each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="whatever --data takes; the first 4,256 are used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the encoder")
    options = parser.parse_args()
    images = open_images(options.images, limit=4000 + HELD_OUT, seed=0)
    data = WholeDataset(images, 32)
    pixels = torch.stack([data[row]["image"] for row in range(len(images))])
    found: dict[str, dict[str, list[float]]] = {way: {"trained": [], "others": []} for way in WAYS}
    for seed in range(options.seeds):
        for way in WAYS:
            trained, others = losses(pixels, way, seed, options.steps, options.depth)
            found[way]["trained"].append(round(trained, 5))
            found[way]["others"].append(round(others, 5))
            print(f"seed {seed}, {way}: {trained:.5f}, of other images {others:.5f}", flush=True)
    write_results("residual", {"steps": options.steps, "losses": found})


def losses(pixels: Tensor, way: str, seed: int, steps: int, depth: int) -> tuple[float, float]:
    """The mean loss of the last sixth of the steps, and that of the images that were held out."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSpec(image_size=32, patch_size=4, width=96, depth=depth, num_heads=3))
    mae = MaskedAutoencoder(encoder, DecoderSpec(96, 2, 3))
    if way != "float32":
        emulate(mae, residual=way == "residual")
    generator = torch.Generator().manual_seed(seed)
    optimizer = adamw(mae, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    shown, others = pixels[HELD_OUT:], pixels[:HELD_OUT]
    found = []
    for _ in range(steps):
        rows = torch.randint(len(shown), (BATCH,), generator=generator)
        loss = mae(shown[rows], random_mask(torch.rand(BATCH, 64, generator=generator), RATIO)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    with torch.no_grad():
        held = mae(others, random_mask(torch.rand(len(others), 64, generator=generator), RATIO)).loss
    last = found[-max(1, steps // 6) :]
    return sum(last) / len(last), float(held)


def emulate(mae: MaskedAutoencoder, *, residual: bool) -> None:
    """Round as bf16 autocast does, with or without tokens that stay in bf16 between blocks."""
    for module in mae.modules():
        if isinstance(module, nn.Linear):
            vars(module)["forward"] = _product(module)
        if isinstance(module, Block):
            vars(module)["forward"] = _block(module, rounded if residual else lambda tokens: tokens)


def _product(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    def product(tokens: Tensor) -> Tensor:
        bias = None if layer.bias is None else rounded(layer.bias)
        return rounded(functional.linear(rounded(tokens), rounded(layer.weight), bias))

    return product


def _block(block: Block, keep: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def through(tokens: Tensor) -> Tensor:
        tokens = keep(keep(tokens) + block.attn(block.norm1(tokens)))
        return keep(tokens + block.mlp(block.norm2(tokens)))

    return through


if __name__ == "__main__":
    main()
