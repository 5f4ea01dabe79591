"""How fast one pre-training step is beside the peers', and beside the machine's own matrix product.

    python benchmarks/step.py [--model vit_base] [--batch 16] [--rounds 5] [--compile] [--ablation]

A step is forward, backward and AdamW of a masked autoencoder at 224 pixels, patch 16, mask ratio 0.75, of images that
are there already. All run in one race: in every round each contestant takes a step in bf16, where the processor
computes in it, and one in float32, and every figure and ratio is of these rounds. So "ours" is one rate wherever it
stands. Besides rates in equal arithmetic there is "default": each project as it runs by default (the peers' own
examples train in float32, `semmae pretrain` in what the processor is best at).

Before and after each round the machine's own matrix product is measured; `gemm_share` is how much of its rate the
step of that round kept up, the median over rounds. `gemm_gflops` is the median of those rates, `gemm_range` the
lowest and the highest. Contestants are processes that all stay in memory, about 3.5 GB each for vit_base: three, with
`--ablation` six.
The last line is one JSON object; with command and machine it is in `benchmarks/results/step.json` (for another model
than vit_base, `step-MODEL.json`).
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from contestants import CONTESTANTS, Contestant, Setting, flops_an_image
from harness import matrix_rate, median_ratio, per_second, take_turns, write_results

from semmae.train.precision import resolve_precision

PEERS = ("transformers", "lightly")
WAYS = tuple(name for name in CONTESTANTS if name not in ("ours", *PEERS))  # of ours, for --ablation

Entrant = tuple[str, Any]  # a contestant and its arithmetic


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels a side; less than 224 only to try the script")
    parser.add_argument("--rounds", type=int, default=5, help="turns that all take; the median counts")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours, as --compile on")
    parser.add_argument(
        "--ablation",
        action="store_true",
        help="also ours in other ways: without its measures for CPUs, and with a subset of smaller patches",
    )
    options = parser.parse_args()
    best = resolve_precision("auto")
    entrants = dict.fromkeys((name, precision) for name in ("ours", *PEERS) for precision in (best, "float32"))
    if options.ablation:
        entrants |= dict.fromkeys((name, best) for name in WAYS)
    seconds, rates = race(options, list(entrants), torch.bfloat16 if best == "bf16" else torch.float32)
    figures = {"model": options.model, "batch": options.batch, "precision": best, "compiled": options.compile}
    figures |= figures_of(seconds, rates, best, options.batch, flops_an_image(options.model, options.size))
    print(f"images/s {figures['ours']}, peers {figures['peers']}, ratios {figures['ratios']}", file=sys.stderr)
    write_results("step", figures, file=None if options.model == "vit_base" else f"step-{options.model}")


def race(
    options: argparse.Namespace, entrants: list[Entrant], dtype: torch.dtype
) -> tuple[dict[Entrant, list[float]], list[float]]:
    """Seconds of every entrant's step, round by round; rates of the matrix product before each round and at the end."""
    contestants = {}
    for name in dict.fromkeys(name for name, _ in entrants):
        compiled = options.compile and name == "ours"
        setting = Setting(options.model, options.batch, torch.get_num_threads(), compiled, options.size)
        contestants[name] = Contestant(name, setting)
    works: dict[Entrant, Callable[[], object]] = {
        (name, precision): partial(contestants[name], precision) for name, precision in entrants
    }
    rates: list[float] = []
    seconds = take_turns(works, options.rounds, between=lambda: rates.append(matrix_rate(dtype)))
    for contestant in contestants.values():
        contestant.close()
    return seconds, rates


def figures_of(
    seconds: Mapping[Entrant, list[float]], rates: list[float], best: str, batch: int, flops: float
) -> dict[str, Any]:
    """All comparisons out of one race's seconds.

    Args:
        seconds: of each entrant's step, round by round.
        rates: operations a second of the matrix product, before each round and after the last.
        best: the arithmetic that `auto` means here.
        batch: images of a step.
        flops: operations of an image's step.
    """
    compare = partial(compared, seconds, batch)
    ours = ("ours", best)
    figures = {"flops_an_image": flops, **compare(ours, {name: (name, best) for name in PEERS})}
    figures["default"] = compare(ours, {name: (name, "float32") for name in PEERS})
    figures["float32"] = compare(("ours", "float32"), {name: (name, "float32") for name in PEERS})
    ways = {name: (name, best) for name in WAYS if (name, best) in seconds}
    if ways:
        figures["ablation"] = compare(ours, ways)
    around = [(before + after) / 2 for before, after in zip(rates, rates[1:], strict=False)]
    shares = [batch * flops / taken / rate for taken, rate in zip(seconds[ours], around, strict=True)]
    figures["gemm_gflops"] = round(statistics.median(rates) / 1e9, 1)
    figures["gemm_range"] = [round(rate / 1e9, 1) for rate in (min(rates), max(rates))]
    figures["gemm_share"] = round(statistics.median(shares), 3)
    figures["rounds"] = len(around)
    return figures


def compared(
    seconds: Mapping[Entrant, list[float]], batch: int, ours: Entrant, others: Mapping[str, Entrant]
) -> dict[str, Any]:
    """Images/s of ours and of others, and how many times faster ours is, round by round."""
    return {
        "ours": per_second(batch, seconds[ours]),
        "peers": {name: per_second(batch, seconds[entrant]) for name, entrant in others.items()},
        "ratios": {name: median_ratio(seconds[entrant], seconds[ours]) for name, entrant in others.items()},
        "precisions": {"ours": ours[1], **{name: precision for name, (_, precision) in others.items()}},
    }


if __name__ == "__main__":
    main()
