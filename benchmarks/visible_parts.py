"""What masks by parts leave visible of objects, on the part labels of real images.

    python benchmarks/visible_parts.py --parts runs/parts

Prints a table, one line a way to mask: what share of the patches of objects (all but the background) is visible, in how
many images none, and of how many labels any patch is; on average over all images, seen whole, and draws. Seconds.
`--name street` keeps the figures in results/visible_parts_street.json.
"""

import argparse
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from semmae import PartStore, part_counts, semantic_mask
from semmae.data.crop import WHOLE, crop_parts

WAYS: dict[str, dict[str, Any]] = {
    "`--masking intra`": {"blend": 0.0},
    "`--masking inter`": {"blend": 1.0},
    "`--keep-background`": {"blend": 1.0, "keep_background": True},
    "`--hints 1`": {"blend": 1.0, "hints": 1},
    "`--keep-background --hints 1`": {"blend": 1.0, "keep_background": True, "hints": 1},
    "`--blend-end 0.5`": {"blend": 0.5},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True, help="a run of semmae parts, whose label 0 is background")
    parser.add_argument("--side", type=int, default=14, help="patches a side of an image")
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--draws", type=int, default=50, help="masks of each image")
    parser.add_argument("--name", help="of the images, to keep the figures")
    options = parser.parse_args()
    store = PartStore.open(options.parts)
    once = torch.stack([crop_parts(labels, WHOLE, options.side) for labels in store.labels])
    parts = once.repeat(options.draws, 1)
    background = (once == 0).double().mean()
    present = (part_counts(once, store.num_labels) > 0).sum(1).double().mean()
    print(f"{store.images} images, {background:.1%} background, {present:.1f} of {store.num_labels} labels an image\n")
    print("| | of objects visible | objects with no visible patch | labels with a visible patch |\n|---|---|---|---|")
    found = {name: left_visible(parts, store.num_labels, options.ratio, how) for name, how in WAYS.items()}
    for name, (visible, none, labels) in found.items():
        print(f"| {name} | {visible:.1%} | {none:.1%} | {labels:.1f} |")
    if options.name:
        ways = {
            name.strip("`"): {"objects_visible": visible, "objects_without": none, "labels_visible": labels}
            for name, (visible, none, labels) in found.items()
        }
        images = {"images": store.images, "background": float(background), "labels": float(present)}
        harness.write_results("visible_parts", {**images, "ways": ways}, f"visible_parts_{options.name}")


def left_visible(parts: Tensor, num_labels: int, ratio: float, how: dict[str, Any]) -> tuple[float, float, float]:
    """Share of objects that is visible, share of images where none of it is, labels with a visible patch."""
    generator = torch.Generator().manual_seed(0)
    noise, order = torch.rand(parts.shape, generator=generator), torch.rand(len(parts), num_labels, generator=generator)
    mask = semantic_mask(parts, noise, order, ratio, **how)
    visible = part_counts(parts + num_labels * mask, 2 * num_labels)[:, :num_labels]
    of_objects, objects = visible[:, 1:].sum(1), (parts > 0).sum(1)
    return (
        float(of_objects.sum() / objects.sum()),
        float((of_objects == 0)[objects > 0].double().mean()),
        float((visible > 0).sum(1).double().mean()),
    )


if __name__ == "__main__":
    main()
