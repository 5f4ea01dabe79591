"""How fast one pre-training step is beside the peers', and beside the machine's own matrix product.

    python benchmarks/step.py [--model vit_base] [--batch 16] [--rounds 5] [--compile] [--ablation]
    python benchmarks/step.py --compile [--batch 256 512]       # on a GPU

A step is forward, backward and AdamW of a masked autoencoder at 224 pixels, patch 16, mask ratio 0.75, of images that
are there already. All run in one race: in every round each contestant takes a step in bf16, where the processor
computes in it, and one in float32, and every figure and ratio is of these rounds. So "ours" is one rate wherever it
stands. Besides rates in equal arithmetic there is "default": each project as it runs by default (the peers' own
examples train in float32, `semmae pretrain` in what the processor is best at).

Before and after each round the machine's own matrix product is measured; `gemm_share` is how much of its rate the
step of that round kept up, the median over rounds. `gemm_gflops` is the median of those rates, `gemm_range` the
lowest and the highest. On a GPU a turn is ten steps back to back, and so are the products, of 8192 and 16384 rows;
figures of each batch are listed as "batches". Contestants are processes that all stay in memory, about 3.5 GB each for
vit_base: three, with `--ablation` six.
The last line is one JSON object; with command and machine it is in `benchmarks/results/step.json` (for another model
than vit_base `step-MODEL.json`, of a GPU `step-cuda.json`).
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from contestants import CONTESTANTS, Contestant, Setting, flops_an_image
from harness import DEVICE, matrix_rate, median_ratio, per_second, take_turns, write_results

from semmae.train.precision import resolve_precision

PEERS = ("transformers", "lightly")
WAYS = tuple(name for name in CONTESTANTS if name not in ("ours", *PEERS))  # of ours, for --ablation

Entrant = tuple[str, Any]  # a contestant and its arithmetic


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    gpu = DEVICE.type == "cuda"
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 512] if gpu else [16], help="images of a step")
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
    found, steps = [], 10 if gpu else 1
    for batch in options.batch:
        setting = Setting(options.model, batch, torch.get_num_threads(), size=options.size)
        compiled = ["ours"] if options.compile else []
        seconds, rates = race(setting, list(entrants), options.rounds, best, compiled, steps)
        figures = {"model": options.model, "batch": batch, "precision": best, "compiled": options.compile}
        figures |= figures_of(seconds, rates, best, steps * batch, flops_an_image(options.model, options.size))
        print(f"images/s {figures['ours']}, peers {figures['peers']}, ratios {figures['ratios']}", file=sys.stderr)
        found.append(figures)
    whole = found[0] if len(found) == 1 else {"batches": found}
    write_results("step", whole, file=None if options.model == "vit_base" else f"step-{options.model}")


def race(
    setting: Setting,
    entrants: list[Entrant],
    rounds: int,
    best: str,
    compiled: Collection[str] = (),
    steps: int = 1,
) -> tuple[dict[Entrant, list[float]], list[float]]:
    """Seconds of every entrant's turn, round by round; rates of the matrix product before each round and at the end.

    Args:
        setting: of all.
        entrants: who takes part, and in which arithmetic.
        rounds: that count.
        best: the arithmetic of the matrix product.
        compiled: whose step torch.compile makes.
        steps: of a turn.
    """
    contestants = {
        name: Contestant(name, dataclasses.replace(setting, compiled=name in compiled))
        for name in dict.fromkeys(name for name, _ in entrants)
    }
    works: dict[Entrant, Callable[[], object]] = {
        (name, precision): partial(contestants[name], precision, steps) for name, precision in entrants
    }
    if compiled:  # all at once: that takes minutes
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda contestant: contestant(best), contestants.values()))
    rates: list[float] = []
    dtype = torch.bfloat16 if best == "bf16" else torch.float32

    def with_all_memory(entrant: Entrant) -> None:
        """Contestants together keep more for themselves than a GPU has; a step then takes anew what this one needs."""
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            contestants[entrant[0]](entrant[1], 1)

    seconds = take_turns(works, rounds, between=lambda: rates.append(matrix_rate(dtype)), before=with_all_memory)
    for contestant in contestants.values():
        contestant.close()
    return seconds, rates


def figures_of(
    seconds: Mapping[Entrant, list[float]], rates: list[float], best: str, batch: int, flops: float
) -> dict[str, Any]:
    """All comparisons out of one race's seconds.

    Args:
        seconds: of each entrant's turn, round by round.
        rates: operations a second of the matrix product, before each round and after the last.
        best: the arithmetic that `auto` means here.
        batch: images of a turn.
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
