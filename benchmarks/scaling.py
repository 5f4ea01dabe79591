"""What pre-training on a million photos takes of GPUs: hours, loader cores, disk and network, by calculation.

    python benchmarks/scaling.py [--gpus 8] [--gpu-tflops 700] [--shares 0.3 0.4 0.5] [--images-per-s N]

Measured here go in: the operations of a step, the images a second that one core loads from JPEG files
(`results/loading.json`), and how many times as many it loads from packed shards, which weigh less
(`results/loading_packed.json`). What a GPU keeps up of its own matrix product's rate is assumed, a row each, until it
is measured: `--images-per-s` takes the figure of a GPU that was (`gpu_check.py`). Prints three Markdown tables, as
docs/scaling.md has them: of one node, of more GPUs, of what each GPU holds and sends. It measures nothing, so it
writes no results.
"""

import argparse
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from contestants import flops_an_image
from harness import RESULTS

from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

IMAGES, BYTES = 1_281_167, 110_000  # ImageNet-1k, train: photos, and bytes of one on average
PART_BYTES = 784 + 196  # labels and attention of an image
STATE_BYTES = 16  # of a parameter: itself, its gradient, AdamW's two moments, in float32
GRADIENT_BYTES = {"float32": 4, "bf16": 2}  # of a parameter, as `--gradients` sends it
# What FSDP sends of a parameter: itself in bf16, gathered for each of the two passes, and its gradient in float32,
# which every GPU gets a share of.
SHARDED_BYTES = 2 + 2 + 4
MORE_GPUS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Node:
    """What is assumed of the machine, and what it is to do."""

    gpus: int = 8
    epochs: int = 800
    batch: int = 4096  # of all GPUs
    gpu_tflops: float = 700.0  # a GPU's own bf16 matrix product, 10^12/s
    shares: tuple[float, ...] = (0.3, 0.4, 0.5)  # of it in a step
    images_per_s: float | None = None  # of one GPU, measured; instead of the shares

    def rates(self, model: str = "vit_base") -> dict[str, float]:
        """Images a second of one GPU, by the name of a row."""
        if self.images_per_s:
            return {"measured": self.images_per_s}
        whole = self.gpu_tflops * 1e12 / flops_an_image(model)
        return {f"{share:.0%}".replace("%", " %"): share * whole for share in self.shares}

    def gpu_hours(self) -> dict[str, float]:
        """Hours of one GPU for all epochs, by the name of a row."""
        return {label: IMAGES * self.epochs / rate / 3600 for label, rate in self.rates().items()}


@dataclass(frozen=True)
class Loading:
    """What one core loads, images a second; and bytes an image."""

    files: float
    packed: float
    packed_bytes: float

    @classmethod
    def of(cls, results: dict[str, Any]) -> "Loading":
        """By the figures of `loading` and `loading_packed`: a rate, and a ratio of another machine."""
        files, packed = results["loading"]["ours"], results["loading_packed"]
        sizes = packed["bytes_an_image"]
        return cls(files, files * packed["ratios"]["loaded"], BYTES * sizes["packed"] / sizes["files"])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    node = Node()
    parser.add_argument("--gpus", type=int, default=node.gpus)
    parser.add_argument("--epochs", type=int, default=node.epochs)
    parser.add_argument("--batch", type=int, default=node.batch, help="of all GPUs")
    parser.add_argument("--gpu-tflops", type=float, default=node.gpu_tflops, help="its bf16 matrix product, 10^12/s")
    parser.add_argument("--shares", type=float, nargs="+", default=node.shares, help="of it in a step")
    parser.add_argument("--images-per-s", type=float, help="of one GPU, measured; instead of the shares")
    node = Node(**vars(parser.parse_args()))
    names = ("loading", "loading_packed")
    loading = Loading.of({name: json.loads((RESULTS / f"{name}.json").read_text())["results"] for name in names})
    print(table(node, loading), more_gpus(node), held_and_sent(node), sep="\n\n")
    print(f"\none core loads {loading.files:.0f} images/s, packed {loading.packed:.0f}; photos ", end="")
    print(f"{IMAGES * BYTES / 1e9:.0f} GB, part labels and attention {IMAGES * PART_BYTES / 1e9:.2f} GB")


def table(node: Node, loading: Loading) -> str:
    """A row for each rate.

    Args:
        node: what is assumed.
        loading: of one core.
    """
    header = "of the GPU's rate|images/s|hours|GPU hours|loader cores: JPEG|packed|disk, GB/s: JPEG|packed"
    rows = []
    for label, rate in node.rates().items():
        total, hours = rate * node.gpus, node.gpu_hours()[label]
        cores = (total / loading.files, total / loading.packed)
        disk = (total * BYTES / 1e9, total * loading.packed_bytes / 1e9)
        rows.append((label, *map(shown, (total, hours / node.gpus, hours, *cores, *disk))))
    return markdown(header, rows)


def more_gpus(node: Node) -> str:
    """A row for each number of GPUs, at the middle rate and the same batch: what a step and its network take."""
    header = "GPUs|images of a step each|step, ms|hours|all-reduce, GB/s: float32|bf16"
    label, rate = sorted(node.rates().items(), key=lambda pair: pair[1])[len(node.rates()) // 2]
    rows = []
    for gpus in MORE_GPUS:
        more = replace(node, gpus=gpus)
        step, hours = more.batch / (rate * gpus), more.gpu_hours()[label] / gpus
        sent = (ring(gpus, each * parameters()) / step / 1e9 for each in GRADIENT_BYTES.values())
        rows.append((str(gpus), *map(shown, (more.batch / gpus, 1000 * step, hours, *sent))))
    return markdown(header, rows)


def held_and_sent(node: Node) -> str:
    """A row for each model and way: what a GPU holds of weights, gradients and AdamW, and sends in a step."""
    rows = []
    for model in ("vit_base", "vit_large", "vit_huge"):
        count = parameters(model)
        shared = (node.gpus - 1) / node.gpus * SHARDED_BYTES * count
        ways = {f"ddp, {name}": (1, ring(node.gpus, each * count)) for name, each in GRADIENT_BYTES.items()}
        for way, (parts, sent) in (ways | {"fsdp": (node.gpus, shared)}).items():
            rows.append(
                (model, f"{count / 1e6:.0f} M", way, shown(STATE_BYTES * count / parts / 1e9), shown(sent / 1e9))
            )
    return markdown(f"model|parameters|of {node.gpus} GPUs|held, GB|sent a step, GB", rows)


def ring(gpus: int, size: float) -> float:
    """Bytes that a GPU sends, and receives, for all of them to sum so many: all twice, less its own share."""
    return 2 * (gpus - 1) / gpus * size


def shown(figure: float) -> str:
    """With a digit behind the point where it is small."""
    return f"{figure:,.0f}" if figure >= 20 else f"{figure:.1f}"


def markdown(header: str, rows: list[tuple[str, ...]]) -> str:
    """A table; the header's cells are divided by bars."""
    cells = header.split("|")
    return "\n".join("| " + " | ".join(row) + " |" for row in (cells, ["---"] * len(cells), *rows))


@cache
def parameters(model: str = "vit_base") -> int:
    """Weights of an encoder, patch 16, with its decoder that are trained; positions are fixed."""
    with torch.device("meta"):
        mae = MaskedAutoencoder(Encoder(EncoderSpec.named(model, 224, 16)), DECODERS[model])
    return sum(weight.numel() for weight in mae.parameters() if weight.requires_grad)


if __name__ == "__main__":
    main()
