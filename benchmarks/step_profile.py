"""Where the time of a pre-training step goes, by kind of work: ours, ours with timm's blocks, and the peers.

    python benchmarks/step_profile.py [--model vit_base] [--batch 16] [--rounds 5]

The contestants of `step.py` take turns: in each round every one takes a step as it is, and then one under torch's
profiler. All figures are seconds, medians over rounds: "step" of the first, "profiled" of the second (both by the
clock), "kinds" of the second by kind of work, which together are about "profiled", less what Python does between
operations. Attention is all that is done inside torch's operation or ours. On a GPU it is by kinds of kernels.
The last line is one JSON object; with command and machine it is in `benchmarks/results/step_profile.json`.
"""

import argparse
import statistics
from typing import Any

import torch
from contestants import Contestant, Setting
from harness import timed, turned, write_results

from semmae.train.precision import resolve_precision

SHOWN = ("ours", "ours, timm's blocks", "transformers", "lightly")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels a side; less than 224 only to try the script")
    parser.add_argument("--rounds", type=int, default=5, help="turns that all take; the median counts")
    options = parser.parse_args()
    precision = resolve_precision("auto")
    setting = Setting(options.model, options.batch, torch.get_num_threads(), size=options.size)
    figures = profiles(setting, precision, options.rounds)
    write_results("step_profile", {"model": options.model, "batch": options.batch, "precision": precision, **figures})


def profiles(setting: Setting, precision: Any, rounds: int) -> dict[str, Any]:
    """Seconds of a step of every contestant: as it is, under the profiler, and by kind of work."""
    contestants = {name: Contestant(name, setting) for name in SHOWN}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SHOWN}
    for turn in range(rounds + 1):
        for name in turned(list(SHOWN), turn):
            contestant = contestants[name]
            plain = timed(lambda contestant=contestant: contestant(precision))
            seconds = contestant.profile(precision)
            if turn:  # the first fills caches and chooses kernels
                found[name].append({**seconds, "profiled": seconds["step"], "step": plain})
    for contestant in contestants.values():
        contestant.close()

    def median(name: str, what: str) -> float:
        return round(statistics.median(seconds[what] for seconds in found[name]), 4)

    kinds = [kind for kind in found[SHOWN[0]][0] if kind not in ("step", "profiled")]

    return {
        "rounds": rounds,
        "step": {name: median(name, "step") for name in SHOWN},
        "profiled": {name: median(name, "profiled") for name in SHOWN},
        "kinds": {name: {kind: median(name, kind) for kind in kinds} for name in SHOWN},
    }


if __name__ == "__main__":
    main()
