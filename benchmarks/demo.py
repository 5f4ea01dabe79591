"""What the demo ends with, seed by seed: runs of `semmae demo` → results/demo.json.

    for seed in 0 1 2; do semmae demo --out runs/demo-$seed --seed $seed; done
    python benchmarks/demo.py runs/demo-0 runs/demo-1 runs/demo-2

The machine that is named is the one that collects: collect where the runs were made.
"""

import argparse
import json
from pathlib import Path

import harness
import yaml


def main() -> None:
    """Collect, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of the demo")
    found = {}
    for out in parser.parse_args().runs:
        seed, run = yaml.safe_load((out / "config.yaml").read_text())["seed"], out / "run"
        found[f"seed {seed}"] = {
            "results": json.loads((run / "results.json").read_text()),
            "parts": json.loads((run / "parts" / "quality.json").read_text()),
        }
    harness.write_results("demo", found)


if __name__ == "__main__":
    main()
