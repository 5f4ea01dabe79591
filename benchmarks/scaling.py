"""What pre-training on a million photos takes of a node: hours, loader cores, disk and network, by calculation.

    python benchmarks/scaling.py [--gpus 8] [--gpu-tflops 700] [--shares 0.3 0.4 0.5] [--images-per-s N]

Measured here go in: the operations of a step, and the images a second that one core loads
(`results/loading.json`). What a GPU keeps up of its own matrix product's rate is assumed, a row each, until it is
measured: `--images-per-s` takes the figure of a GPU that was. Prints a Markdown table, as docs/scaling.md has it.
"""

import argparse
import json

from contestants import flops_an_image
from harness import RESULTS

IMAGES, BYTES = 1_281_167, 110_000  # ImageNet-1k, train: photos, and bytes of one on average
PARAMETERS = 111.9e6  # ViT-B/16 with its decoder; gradients go round in float32
PART_BYTES = 784 + 196  # labels and attention of an image


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=800)
    parser.add_argument("--batch", type=int, default=4096, help="of all GPUs")
    parser.add_argument("--gpu-tflops", type=float, default=700, help="a GPU's own bf16 matrix product, 10^12/s")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.4, 0.5], help="of it in a step")
    parser.add_argument("--images-per-s", type=float, help="of one GPU, measured; instead of the shares")
    options = parser.parse_args()
    loading = json.loads((RESULTS / "loading.json").read_text())["results"]["ours"]
    rates = {f"{share:.0%}": share * options.gpu_tflops * 1e12 / flops_an_image("vit_base") for share in options.shares}
    if options.images_per_s:
        rates = {"measured": options.images_per_s}
    print("| of the GPU's rate | images/s | hours | loader cores | disk, GB/s | all-reduce, GB/s a GPU |")
    print("|---|---|---|---|---|---|")
    for label, rate in rates.items():
        total = rate * options.gpus
        hours = IMAGES * options.epochs / total / 3600
        step = options.batch / total
        # A ring sends and receives every gradient twice, less its own share.
        network = 2 * (options.gpus - 1) / options.gpus * 4 * PARAMETERS / step
        cells = (total, hours, total / loading, total * BYTES / 1e9, network / 1e9)
        print(f"| {label} | " + " | ".join(f"{cell:,.0f}" if cell >= 100 else f"{cell:.1f}" for cell in cells) + " |")
    print(f"\none core loads {loading:.0f} images/s; photos {IMAGES * BYTES / 1e9:.0f} GB, ", end="")
    print(f"part labels and attention {IMAGES * PART_BYTES / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
