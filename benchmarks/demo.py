"""What the demo ends with, seed by seed: runs of `semmae demo` → results/demo.json.

    for seed in 0 1 2; do semmae demo --out runs/demo-$seed --seed $seed; done
    python benchmarks/demo.py runs/demo-* --public runs/creatures-*

`--public`: parts that a public encoder finds in the same drawings, by the command of docs/results.md. The machine that
is named is the one that collects: collect where the runs were made.
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
    parser.add_argument("--public", type=Path, nargs="*", default=[], help="folders of semmae parts")
    asked, found = parser.parse_args(), {}
    for out in asked.runs:
        seed, run = yaml.safe_load((out / "config.yaml").read_text())["seed"], out / "run"
        found[f"seed {seed}"] = {
            "results": json.loads((run / "results.json").read_text()),
            "parts": json.loads((run / "parts" / "quality.json").read_text()),
        }
    for out in asked.public:
        seed = yaml.safe_load((out / "config.yaml").read_text())["seed"]
        found[f"seed {seed}, a public encoder"] = {"parts": json.loads((out / "quality.json").read_text())}
    harness.write_results("demo", found)


if __name__ == "__main__":
    main()
