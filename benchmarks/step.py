"""How fast one pre-training step is beside the peers', and beside the machine's own matrix product.

    python benchmarks/step.py [--model vit_base] [--batch 16] [--rounds 5] [--compile] [--ablation]

A step is forward, backward and AdamW of a masked autoencoder at 224 pixels, patch 16, mask ratio 0.75, of images that
are there already. Two comparisons: each project as it runs by default (the peers' own examples train in float32,
`semmae pretrain` in what the processor is best at), and all in the same arithmetic. `gemm_share` is how much of the
rate of the machine's own matrix product, the best of three sizes, a whole step keeps up.
The last line is one JSON object; with command and machine it is in `benchmarks/results/step.json` (for another model
than vit_base, `step-MODEL.json`).
"""

import argparse
import sys
from typing import Any

import torch
from contestants import CONTESTANTS, Contestant, Setting, flops_an_image
from harness import DEVICE, median_ratio, per_second, take_turns, timed, write_results

from semmae.tasks.precision import resolve_precision

PEERS = ("transformers", "lightly")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="turns that all take; the median counts")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours, as --compile on")
    parser.add_argument(
        "--ablation",
        action="store_true",
        help="also ours in other ways: without its measures for CPUs, and with a subset of smaller patches",
    )
    options = parser.parse_args()
    best = resolve_precision("auto")
    equal = race(options, {name: (name, best) for name in ("ours", *PEERS)})
    plain = race(options, {"ours": ("ours", best), **{name: (name, "float32") for name in PEERS}})
    figures: dict[str, Any] = {
        "model": options.model, "batch": options.batch, "precision": best, "compiled": options.compile,
        "flops_an_image": flops_an_image(options.model), **equal,
        "default": plain,
    }  # fmt: skip
    if options.ablation:
        figures["ablation"] = race(options, {name: (name, best) for name in CONTESTANTS if name not in PEERS})
    if best == "bf16" and DEVICE.type == "cpu":
        figures["float32"] = race(options, {name: (name, "float32") for name in ("ours", *PEERS)})
    rate = matrix_rate(torch.bfloat16 if best == "bf16" else torch.float32)
    figures["gemm_gflops"] = round(rate / 1e9, 1)
    figures["gemm_share"] = round(figures["ours"] * flops_an_image(options.model) / rate, 3)
    write_results("step" if options.model == "vit_base" else f"step-{options.model}", figures)


def race(options: argparse.Namespace, entrants: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Images/s of ours and of the peers taking turns, and how many times faster ours is, round by round."""
    contestants = {}
    for label, (name, precision) in entrants.items():
        compiled = options.compile and name == "ours"
        setting = Setting(options.model, options.batch, precision, torch.get_num_threads(), compiled)
        contestants[label] = Contestant(name, setting)
    seconds = take_turns(contestants, options.rounds)
    for contestant in contestants.values():
        contestant.close()
    rates = {label: per_second(options.batch, found) for label, found in seconds.items()}
    precisions = {label: precision for label, (_, precision) in entrants.items()}
    print(f"images/s {rates}, {precisions}", file=sys.stderr)
    return {
        "ours": rates.pop("ours"),
        "peers": rates,
        "ratios": {name: median_ratio(seconds[name], seconds["ours"]) for name in rates},
        "precisions": precisions,
    }


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of the best square matrix product."""
    rates = []
    for side in (1024, 2048, 4096):
        first, second = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        seconds = [timed(lambda a=first, b=second: a @ b) for _ in range(30)]
        rates.append(2 * side**3 / min(seconds))
    return max(rates)


if __name__ == "__main__":
    main()
