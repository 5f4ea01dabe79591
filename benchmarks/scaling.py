"""What pre-training on a million photos takes of a node: hours, loader cores, disk and network, by calculation.

    python benchmarks/scaling.py [--gpus 8] [--gpu-tflops 700] [--shares 0.3 0.4 0.5] [--images-per-s N]

Measured here go in: the operations of a step, and the images a second that one core loads
(`results/loading.json`). What a GPU keeps up of its own matrix product's rate is assumed, a row each, until it is
measured: `--images-per-s` takes the figure of a GPU that was. Prints a Markdown table, as docs/scaling.md has it; it
measures nothing, so it writes no results.
"""

import argparse
import json
from dataclasses import dataclass

import torch
from contestants import flops_an_image
from harness import RESULTS

from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

IMAGES, BYTES = 1_281_167, 110_000  # ImageNet-1k, train: photos, and bytes of one on average
PART_BYTES = 784 + 196  # labels and attention of an image
GRADIENT_BYTES = 4  # gradients go round in float32


@dataclass(frozen=True)
class Node:
    """What is assumed of the machine, and what it is to do."""

    gpus: int = 8
    epochs: int = 800
    batch: int = 4096  # of all GPUs
    gpu_tflops: float = 700.0  # a GPU's own bf16 matrix product, 10^12/s
    shares: tuple[float, ...] = (0.3, 0.4, 0.5)  # of it in a step
    images_per_s: float | None = None  # of one GPU, measured; instead of the shares

    def rates(self) -> dict[str, float]:
        """Images a second of one GPU, by the name of a row."""
        if self.images_per_s:
            return {"measured": self.images_per_s}
        whole = self.gpu_tflops * 1e12 / flops_an_image("vit_base")
        return {f"{share:.0%}".replace("%", " %"): share * whole for share in self.shares}

    def gpu_hours(self) -> dict[str, float]:
        """Hours of one GPU for all epochs, by the name of a row."""
        return {label: IMAGES * self.epochs / rate / 3600 for label, rate in self.rates().items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    node = Node()
    parser.add_argument("--gpus", type=int, default=node.gpus)
    parser.add_argument("--epochs", type=int, default=node.epochs)
    parser.add_argument("--batch", type=int, default=node.batch, help="of all GPUs")
    parser.add_argument("--gpu-tflops", type=float, default=node.gpu_tflops, help="its bf16 matrix product, 10^12/s")
    parser.add_argument("--shares", type=float, nargs="+", default=node.shares, help="of it in a step")
    parser.add_argument("--images-per-s", type=float, help="of one GPU, measured; instead of the shares")
    node = Node(**vars(parser.parse_args()))
    loading = json.loads((RESULTS / "loading.json").read_text())["results"]["ours"]
    print(table(node, loading))
    print(f"\none core loads {loading:.0f} images/s; photos {IMAGES * BYTES / 1e9:.0f} GB, ", end="")
    print(f"part labels and attention {IMAGES * PART_BYTES / 1e9:.2f} GB")


def table(node: Node, loading: float) -> str:
    """A row for each rate.

    Args:
        node: what is assumed.
        loading: images a second that one core loads.
    """
    lines = [
        "| of the GPU's rate | images/s | hours | GPU hours | loader cores | disk, GB/s | all-reduce, GB/s a GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    gradients = GRADIENT_BYTES * parameters()
    for label, rate in node.rates().items():
        total, hours = rate * node.gpus, node.gpu_hours()[label]
        step = node.batch / total
        # A ring sends and receives every gradient twice, less its own share.
        network = 2 * (node.gpus - 1) / node.gpus * gradients / step
        figures = (total, hours / node.gpus, hours, total / loading, total * BYTES / 1e9, network / 1e9)
        cells = [f"{figure:,.0f}" if figure >= 20 else f"{figure:.1f}" for figure in figures]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parameters() -> int:
    """Weights of ViT-B/16 with its decoder that are trained; positions are fixed."""
    with torch.device("meta"):
        mae = MaskedAutoencoder(Encoder(EncoderSpec.named("vit_base", 224, 16)), DECODERS["vit_base"])
    return sum(weight.numel() for weight in mae.parameters() if weight.requires_grad)


if __name__ == "__main__":
    main()
