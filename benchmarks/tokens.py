"""What a public encoder's tokens teach a small one of few images, beside their pixels: commands, results, table.

    python benchmarks/tokens.py --commands > tokens.sh  # where data and teacher (dinov2-small) lie: sh tokens.sh
    python benchmarks/tokens.py --runs .                # there: results of the runs → results/tokens.json
    python benchmarks/tokens.py --table                 # results/tokens.json → the table of docs/results.md

Collected and checked as `proof.py` does it. Pixels are learned by the same recipe and as long, from the same masks.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import proof

from semmae.evaluation.protocols import OWN, UNTRAINED

SEEDS = (0, 1, 2)
PAGE = proof.DOCS / "results.md"
_PRETRAIN = "semmae pretrain --preset small-photos"
_CLOTHING = "--data clothing --workers 0"
_TINY = "--data tiny-imagenet-100/train.parquet --limit 4000 --masking random --epochs 25 --workers 0"
_TINY_VAL = "--data tiny-imagenet-100 --limit 4000 --workers 0"
_FINE = f"semmae finetune --preset small-data {_CLOTHING}"
_TINY_FINE = (
    "semmae finetune --preset small-data --data tiny-imagenet-100 --workers 0 --epochs 5 --batch-size 64 --blr 4e-3"
    " --augment rand-m5-n1-mstd0.5-inc1"
)
_STREET = "--data street-fashion/images/unlabelled --epochs 100 --workers 0"  # about as many steps as on clothing
_STREET_VAL = "semmae evaluate --data street-fashion --workers 0 --steps 300 --image-size"


def commands() -> dict[str, str]:
    """Name of a result → what made it, in the order of their need."""
    found = {}
    for seed in SEEDS:
        run, own = f"runs/tokens-{seed}", f"--seed {seed}"
        found[f"tokens-{seed}"] = f"{_PRETRAIN} {_CLOTHING} --teacher dinov2-small {own} --out {run}"
        found[f"tokens-{seed}-knn"] = f"semmae knn --encoder {run} {_CLOTHING} --untrained --out {run}-knn"
        found[f"tokens-{seed}-evaluate"] = f"semmae evaluate --encoder {run} {_CLOTHING} {own} --out {run}-evaluate"
    found["tokens-0-fine"] = f"{_FINE} --encoder runs/tokens-0 --untrained --seed 0 --out runs/tokens-0-fine"
    run = "runs/pixels-0"
    found["pixels-0"] = f"{_PRETRAIN} --target pixels {_CLOTHING} --parts runs/tokens-0/parts --out {run}"
    found["pixels-0-knn"] = f"semmae knn --encoder {run} {_CLOTHING} --out {run}-knn"
    for seed in SEEDS:
        own = f"--encoder {run} --seed {seed} {_CLOTHING} --no-untrained --out {run}-evaluate-{seed}"
        found[f"pixels-{seed}-evaluate"] = f"semmae evaluate {own}"
    found["pixels-0-fine"] = f"{_FINE} --encoder {run} --seed 0 --out {run}-fine-0"
    found["tiny-tokens"] = f"{_PRETRAIN} {_TINY} --teacher dinov2-small --teacher-image-size 112 --out runs/tiny-tokens"
    found["tiny-pixels"] = f"{_PRETRAIN} --target pixels {_TINY} --out runs/tiny-pixels"
    run = "runs/street-tokens"
    found["street-tokens"] = f"{_PRETRAIN} {_STREET} --teacher dinov2-small --out {run}"
    found["street-pixels"] = f"{_PRETRAIN} --target pixels {_STREET} --parts {run}/parts --out runs/street-pixels"
    for target in ("tokens", "pixels"):
        tiny, street, beside = f"tiny-{target}", f"street-{target}", "--untrained" if target == "tokens" else ""
        found[f"{tiny}-evaluate"] = f"semmae evaluate --encoder runs/{tiny} {_TINY_VAL} --out runs/{tiny}-evaluate"
        found[f"{tiny}-fine"] = f"{_TINY_FINE} --encoder runs/{tiny} {beside} --out runs/{tiny}-fine"
        found[f"{street}-evaluate"] = f"{_STREET_VAL} 96 --encoder runs/{street} --out runs/{street}-evaluate"
    return found | of_the_teacher()


def of_the_teacher() -> dict[str, str]:
    """As `commands`, of the teacher itself: fine-tuned at 56 pixels, where it has as many patches as the small ones."""
    teacher, found = "--encoder dinov2-small", {}
    found["teacher-knn"] = f"semmae knn {teacher} {_CLOTHING} --image-size 224 --out runs/teacher-knn"
    for seed in SEEDS:
        own = f"--image-size 224 --seed {seed} --no-untrained --out runs/teacher-evaluate-{seed}"
        found[f"teacher-{seed}-evaluate"] = f"semmae evaluate {teacher} {_CLOTHING} {own}"
    found["teacher-0-fine"] = f"{_FINE} {teacher} --image-size 56 --seed 0 --out runs/teacher-fine"
    own = "--image-size 112 --no-untrained --out runs/teacher-tiny-evaluate"
    found["teacher-tiny-evaluate"] = f"semmae evaluate {teacher} {_TINY_VAL} {own}"
    found["teacher-street-evaluate"] = f"{_STREET_VAL} 84 {teacher} --no-untrained --out runs/teacher-street"
    return found


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--commands", action="store_true", help="print the commands")
    what.add_argument("--runs", type=Path, help="folder in which they were run: collect their results")
    what.add_argument("--table", action="store_true", help="write the table of docs/results.md")
    asked = parser.parse_args()
    if asked.commands:
        print("\n".join(commands().values()))
    elif asked.runs:
        harness.write_results("tokens", {name: proof.collected(asked.runs, own) for name, own in commands().items()})
    else:
        PAGE.write_text(with_table(PAGE.read_text(), read_results()))


def read_results() -> dict[str, Any]:
    """The results by name."""
    results: dict[str, Any] = json.loads((harness.RESULTS / "tokens.json").read_text())["results"]
    return results


# Protocol, data, the figure, and the results that have it: of tokens, of pixels.
_KNN, _PROBE = "k-NN", "linear probe on features"
_ROWS = (
    (f"{_KNN}, each photo among the others", "clothing", "top1", "tokens-*-knn", "pixels-0-knn"),
    (f"{_PROBE}, 68 held out", "clothing", "probe_top1", "tokens-*-evaluate", "pixels-*-evaluate"),
    ("fine-tuning, 68 held out", "clothing", "top1", "tokens-0-fine", "pixels-0-fine"),
    (_KNN, "tiny-imagenet-100", "knn_top1", "tiny-tokens-evaluate", "tiny-pixels-evaluate"),
    (_PROBE, "tiny-imagenet-100", "probe_top1", "tiny-tokens-evaluate", "tiny-pixels-evaluate"),
)


def with_table(text: str, found: Mapping[str, Any]) -> str:
    """The text of the page with its table as `found` has it."""
    lines = ["| top-1 % | data | tokens | pixels | new weights |", "|---|---|---|---|---|"]
    for protocol, data, figure, tokens, pixels in _ROWS:
        asked = ((tokens, OWN), (pixels, OWN), (tokens, UNTRAINED))
        cells = [figures(found, name, figure, method) for name, method in asked]
        lines.append(f"| {protocol} | {data} | {' | '.join(cells)} |")
    return proof.between("tokens.py: table", text, lines)


def figures(found: Mapping[str, Any], name: str, figure: str, method: str) -> str:
    """A figure of a result, with its interval; of several (`*`: the seed) one after the other, without."""
    names = [name.replace("*", str(seed)) for seed in SEEDS] if "*" in name else [name]
    each = [proof.methods_of(found[own])[method] for own in names]
    return ", ".join(f"{own[figure]:.1f}" for own in each) if len(each) > 1 else proof.with_interval(each[0], figure)


if __name__ == "__main__":
    main()
