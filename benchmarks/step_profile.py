"""Where the time of a pre-training step goes, by kind of work: ours, ours with timm's blocks, and the peers.

    python benchmarks/step_profile.py [--model vit_base] [--batch 16]

Each contestant of `step.py` takes a few steps and then one under torch's profiler, which makes it a little slower.
The last line is one JSON object; with command and machine it is in `benchmarks/results/step_profile.json`.
"""

import argparse

import torch
from contestants import Contestant, Setting
from harness import write_results

from semmae.tasks.precision import resolve_precision

SHOWN = ("ours", "ours, timm's blocks", "transformers", "lightly")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    precision = resolve_precision("auto")
    setting = Setting(options.model, options.batch, precision, torch.get_num_threads())
    seconds = {}
    for name in SHOWN:
        contestant = Contestant(name, setting)
        for _ in range(3):
            contestant()
        seconds[name] = contestant.profile()
        contestant.close()
    write_results("step_profile", {"model": options.model, "batch": options.batch, "precision": precision, **seconds})


if __name__ == "__main__":
    main()
