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
import torch

from semmae.data.classes import TrainVal, open_sets, train_val, voters
from semmae.data.loaders import WholeDataset, make_loader
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.classifying import classify_features
from semmae.evaluation.features import View, raw_pixels
from semmae.evaluation.linear import probe_features
from semmae.evaluation.protocols import OWN, UNTRAINED
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.probe import choice_rows
from semmae.models.head import HeadSpec
from semmae.options.probe import ProbeRecipe
from semmae.options.shared import VAL_SHARE

SEEDS = (0, 1, 2)
PAGE = proof.DOCS / "results.md"
_PRETRAIN = "semmae pretrain --preset small-photos"
_CLOTHING = "--data clothing --workers 0"
_TINY = "--data tiny-imagenet-100/train.parquet --limit 4000 --masking random --epochs 25 --workers 0"
_TINY_VAL = "--data tiny-imagenet-100 --limit 4000 --workers 0"
_FINETUNE = "semmae finetune --preset small-data"
_FINETUNE_TINY = f"{_FINETUNE} --epochs 20 {_TINY_VAL}"
_STREET = "--data street-fashion/images/unlabelled --epochs 40 --workers 0"
_STREET_VAL = "semmae evaluate --data street-fashion --workers 0 --steps 300 --image-size"


def commands() -> dict[str, str]:
    """Name of a result → what made it, in the order of their need."""
    found = {}
    for seed in SEEDS:
        run, own = f"runs/tokens-{seed}", f"--seed {seed}"
        found[f"tokens-{seed}"] = f"{_PRETRAIN} {_CLOTHING} --teacher dinov2-small {own} --out {run}"
        found[f"tokens-{seed}-knn"] = f"semmae knn --encoder {run} {_CLOTHING} --untrained --out {run}-knn"
        found[f"tokens-{seed}-evaluate"] = f"semmae evaluate --encoder {run} {_CLOTHING} {own} --out {run}-evaluate"
    found["tokens-0-fine"] = (
        f"{_FINETUNE} {_CLOTHING} --encoder runs/tokens-0 --untrained --seed 0 --out runs/tokens-0-fine"
    )
    run = "runs/pixels-0"
    found["pixels-0"] = f"{_PRETRAIN} --target pixels {_CLOTHING} --parts runs/tokens-0/parts --out {run}"
    found["pixels-0-knn"] = f"semmae knn --encoder {run} {_CLOTHING} --out {run}-knn"
    for seed in SEEDS:
        own = f"--encoder {run} --seed {seed} {_CLOTHING} --no-untrained --out {run}-evaluate-{seed}"
        found[f"pixels-{seed}-evaluate"] = f"semmae evaluate {own}"
    found["pixels-0-fine"] = f"{_FINETUNE} {_CLOTHING} --encoder {run} --seed 0 --out {run}-fine-0"
    found["tiny-tokens"] = f"{_PRETRAIN} {_TINY} --teacher dinov2-small --teacher-image-size 112 --out runs/tiny-tokens"
    found["tiny-pixels"] = f"{_PRETRAIN} --target pixels {_TINY} --out runs/tiny-pixels"
    run = "runs/street-tokens"
    found["street-tokens"] = f"{_PRETRAIN} {_STREET} --teacher dinov2-small --teacher-image-size 112 --out {run}"
    found["street-pixels"] = f"{_PRETRAIN} --target pixels {_STREET} --parts {run}/parts --out runs/street-pixels"
    for target in ("tokens", "pixels"):
        tiny, street = f"tiny-{target}", f"street-{target}"
        found[f"{tiny}-evaluate"] = f"semmae evaluate --encoder runs/{tiny} {_TINY_VAL} --out runs/{tiny}-evaluate"
        found[f"{street}-evaluate"] = f"{_STREET_VAL} 96 --encoder runs/{street} --out runs/{street}-evaluate"
    for target, beside in (("tokens", " --untrained"), ("pixels", "")):
        own = f"--encoder runs/tiny-{target}{beside} --out runs/tiny-{target}-fine"
        found[f"tiny-{target}-fine"] = f"{_FINETUNE_TINY} {own}"
    return found | of_the_teacher()


def of_the_teacher() -> dict[str, str]:
    """As `commands`, of the teacher itself; fine-tuned at as many patches as the small encoders have."""
    teacher, found = "--encoder dinov2-small", {}
    found["teacher-knn"] = f"semmae knn {teacher} {_CLOTHING} --image-size 224 --out runs/teacher-knn"
    for seed in SEEDS:
        own = f"--image-size 224 --seed {seed} --no-untrained --out runs/teacher-evaluate-{seed}"
        found[f"teacher-{seed}-evaluate"] = f"semmae evaluate {teacher} {_CLOTHING} {own}"
    # At the small encoders' rate it forgets all it knows.
    gently = "--epochs 15 --blr 8e-4 --layer-decay 0.75 --pooling cls"
    own = f"{gently} --image-size 56 --seed 0 --out runs/teacher-fine"
    found["teacher-fine"] = f"{_FINETUNE} {_CLOTHING} {teacher} {own}"
    own = "--image-size 112 --no-untrained --out runs/teacher-tiny"
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
        found = {name: proof.collected(asked.runs, own) for name, own in commands().items()}
        harness.write_results("tokens", found | of_raw_pixels(asked.runs))
    else:
        PAGE.write_text(with_table(PAGE.read_text(), read_results()))


def read_results() -> dict[str, Any]:
    """The results by name."""
    results: dict[str, Any] = json.loads((harness.RESULTS / "tokens.json").read_text())["results"]
    return results


def of_raw_pixels(root: Path) -> dict[str, Any]:
    """The images themselves, 16 x 16, measured as `semmae knn` and `semmae evaluate` measure an encoder."""
    clothing, tiny = str(root / "clothing"), str(root / "tiny-imagenet-100")
    single = open_sets(clothing, limit=None, seed=0, workers=0)
    found = {"raw-knn": knn_of_pixels(voters(clothing, single, limit=None))}
    for seed in SEEDS:
        divided = train_val(clothing, single, val_share=VAL_SHARE, limit=None, seed=seed)
        found[f"raw-{seed}-evaluate"] = probe_of_pixels(divided, seed)
    divided = train_val(tiny, open_sets(tiny, limit=4000, seed=0, workers=0), val_share=VAL_SHARE, limit=4000, seed=0)
    found["raw-tiny-evaluate"] = knn_of_pixels(divided) | probe_of_pixels(divided, 0)
    return {name: {"results": figures} for name, figures in found.items()}


def pixels_of(data: TrainVal) -> list[torch.Tensor]:
    """Vectors of the images that are learned from, and of those that are measured on."""
    return [raw_pixels(make_loader(WholeDataset(images, 64, fit="centre"), 64)) for images in (data.train, data.val)]


def knn_of_pixels(data: TrainVal) -> dict[str, Any]:
    """As the protocol "knn"."""
    train, val = pixels_of(data)
    figures = Knn(View(64, "mean")).figures(train, val, data, torch.device("cpu"))
    return {f"knn_{name}": value for name, value in figures.items()}


def probe_of_pixels(data: TrainVal, seed: int) -> dict[str, Any]:
    """As the protocol "probe"."""
    train, val = pixels_of(data)
    spec, chosen_on = (
        HeadSpec(train.shape[1], tuple(data.classes), "mean"),
        choice_rows(data.train, ProbeRecipe(seed=seed)),
    )
    head = probe_features(train, data.train_targets, spec, chosen_on, seed=seed).head
    ranks = classify_features(head.eval(), val, data.val_targets).ranks
    return {f"probe_{name}": value for name, value in class_figures(ranks, data.val_targets, len(data.classes)).items()}


# Protocol, data, the figure, and the results that have it: of tokens, of pixels, of the teacher, of raw pixels.
_KNN, _PROBE, _FINE = "k-NN", "linear probe on features", "fine-tuning"
_ROWS = (
    (f"{_KNN}, each photo among the others", "clothing", "knn_top1",
     "tokens-*-knn", "pixels-0-knn", "teacher-knn", "raw-knn"),
    (f"{_PROBE}, 68 held out", "clothing", "probe_top1",
     "tokens-*-evaluate", "pixels-*-evaluate", "teacher-*-evaluate", "raw-*-evaluate"),
    (f"{_FINE}, 68 held out", "clothing", "top1", "tokens-0-fine", "pixels-0-fine", "teacher-fine", None),
    (_KNN, "tiny-imagenet-100", "knn_top1",
     "tiny-tokens-evaluate", "tiny-pixels-evaluate", "teacher-tiny-evaluate", "raw-tiny-evaluate"),
    (_PROBE, "tiny-imagenet-100", "probe_top1",
     "tiny-tokens-evaluate", "tiny-pixels-evaluate", "teacher-tiny-evaluate", "raw-tiny-evaluate"),
    (f"{_FINE}, 20 epochs", "tiny-imagenet-100", "top1", "tiny-tokens-fine", "tiny-pixels-fine", None, None),
    ("segmentation, linear head, mIoU %", "street-fashion", "segment_miou",
     "street-tokens-evaluate", "street-pixels-evaluate", "teacher-street-evaluate", None),
)  # fmt: skip


def with_table(text: str, found: Mapping[str, Any]) -> str:
    """The text of the page with its table as `found` has it."""
    lines = ["| top-1 % | data | tokens | pixels | new weights | the teacher | raw pixels |", "|---" * 7 + "|"]
    for protocol, data, figure, tokens, pixels, teacher, raw in _ROWS:
        asked = ((tokens, OWN), (pixels, OWN), (tokens, UNTRAINED), (teacher, OWN), (raw, OWN))
        cells = ["–" if name is None else figures(found, name, figure, method) for name, method in asked]
        lines.append(f"| {protocol} | {data} | {' | '.join(cells)} |")
    return proof.between("tokens.py: table", text, lines)


def figures(found: Mapping[str, Any], name: str, figure: str, method: str) -> str:
    """A figure of a result, with its interval; of several (`*`: the seed) one after the other, without."""
    names = [name.replace("*", str(seed)) for seed in SEEDS] if "*" in name else [name]
    each = [proof.methods_of(found[own])[method] for own in names]
    figure = figure if figure in each[0] else figure.removeprefix("knn_")  # as the verb alone calls it
    return ", ".join(f"{own[figure]:.1f}" for own in each) if len(each) > 1 else proof.with_interval(each[0], figure)


if __name__ == "__main__":
    main()
