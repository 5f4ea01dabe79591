"""How much memory a pre-training step takes at its peak, beside the peers.

    python benchmarks/memory.py [--model vit_base] [--batch 16] [--steps 3]

The same contestants as in `step.py`, each by itself in a new process. Two peaks, each with its ratios (ours by the
peer's): of the whole process, the most that it has held (a GPU's memory where there is one) when it has taken some
steps; and "of_training", that less what interpreter and libraries held before the model was made. Both twice: all in
the same arithmetic, and, as "default", each as it runs by default.
The last line is one JSON object, in MiB; with command and machine it is in `benchmarks/results/memory.json`.
"""

import argparse
import sys
from typing import Any

import torch
from contestants import Contestant, Setting
from harness import write_results
from step import PEERS

from semmae.train.precision import resolve_precision

MIB = 2**20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels a side; less than 224 only to try the script")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    best = resolve_precision("auto")
    equal = measure(options, dict.fromkeys(("ours", *PEERS), best))
    default = measure(options, {"ours": best, **dict.fromkeys(PEERS, "float32")})
    write_results(
        "memory",
        {"model": options.model, "batch": options.batch, "precision": best, **equal, "default": default},
    )


def measure(options: argparse.Namespace, precisions: dict[str, Any]) -> dict[str, Any]:
    """Peaks in MiB of the process and of training, and ours as a share of each peer's."""
    peaks, of_training = {}, {}
    for name, precision in precisions.items():
        contestant = Contestant(name, Setting(options.model, options.batch, torch.get_num_threads(), size=options.size))
        for _ in range(options.steps):
            contestant(precision)
        peak, before = contestant.peak_bytes()
        contestant.close()
        peaks[name], of_training[name] = round(peak / MIB), round((peak - before) / MIB)
    print(f"peak MiB {peaks}, of training {of_training}, {precisions}", file=sys.stderr)
    return {**beside_peers(peaks), "of_training": beside_peers(of_training), "precisions": precisions}


def beside_peers(peaks: dict[str, int]) -> dict[str, Any]:
    """Ours, the peers', and ours by each of theirs."""
    peers = {name: peaks[name] for name in PEERS}
    return {"ours": peaks["ours"], "peers": peers, "ratios": {n: round(peaks["ours"] / peers[n], 3) for n in peers}}


if __name__ == "__main__":
    main()
