"""Experiment C: what masks bring to segmentation. Street photos with 8 classes of pixels, parts from a public encoder.

    python experiments/street_fashion.py --data street-fashion --teacher dinov2-small --work runs/street --best NAME

Pre-trained on the 1,094 photos without annotations: ViT-mini with patches of 8 on crops of 96 pixels, 60 epochs. Then a
linear head and UPerNet learn from 604 photos and are measured on 200, by mIoU, as `semmae segment` does. `--best`: the
row of experiment A that is to be tried beside random and semantic. Hardly any training at all stands beside them, by
the linear head and one seed.

Budget: 9 runs of some 13 minutes of two slow cores, two hours in all; `--minutes 9` a piece. Found: random masks 22 %
mIoU by the linear head and 37 % by UPerNet, all rows within 0.3 points of it (docs/evidence.md).
"""

import json
from pathlib import Path

import pieces
import true_parts

RANDOM = {"name": "random", "masking": "random"}
SEMANTIC = {"name": "semantic", "masking": "semantic"}
UNTRAINED = {"name": "untrained", "masking": "random", "epochs": 1, "blr": 1e-9}  # as good as
SHARED = (
    *("--model", "vit_mini", "--image-size", "96", "--patch-size", "8", "--epochs", "60", "--batch-size", "32"),
    *("--blr", "0.012", "--crop-scale", "0.4", "--teacher-image-size", "224", "--workers", "0", "--measure", "segment"),
)


def main() -> None:
    """A piece of the experiment, and what is there of it so far."""
    parser = pieces.arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images and masks")
    parser.add_argument("--teacher", required=True, help="what parts are learned from, as for semmae parts")
    parser.add_argument("--best", choices=[row["name"] for row in true_parts.ROWS], help="a row of experiment A")
    asked = parser.parse_args()
    minutes, out = pieces.Minutes(asked.minutes), asked.work / "compared"
    photos = ["--data", str(asked.data / "images" / "unlabelled"), "--eval-data", str(asked.data)]
    best = [
        {**row, "parts": "learned"} if "parts" in row else row for row in true_parts.ROWS if row["name"] == asked.best
    ]
    rows, given = [RANDOM, SEMANTIC, *best], [*photos, "--teacher", asked.teacher, *SHARED]
    done = pieces.compare(asked, minutes, out, rows, 3, given)
    done = pieces.compare(asked, minutes, out, [UNTRAINED], 1, given) and done
    runs = pieces.found(out)
    names = [row["name"] for row in rows]
    for run in (run for run in runs if run["name"] in names):
        measured = asked.work / "upernet" / f"{run['name']}-{run['seed']}"
        encoder = out / "runs" / run["name"] / f"seed-{run['seed']}"
        own = ["--preset", "small", "--encoder", str(encoder), "--data", str(asked.data), "--seed", str(run["seed"])]
        if pieces.is_mine(asked, run["seed"] * len(names) + names.index(run["name"])):
            pieces.made(minutes, "segment", measured, [*own, "--workers", "0"])
        if (measured / "results.json").is_file():
            run["upernet_miou"] = json.loads((measured / "results.json").read_text())["miou"]
        done = done and "upernet_miou" in run
    pieces.write("street_fashion", runs, asked, parser)
    if done:
        print("all runs are there")


if __name__ == "__main__":
    main()
