"""Part quality of a labelled data set: learned parts beside their baselines."""

import json
import logging
from pathlib import Path

from semmae.commands.run import write_text
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.evaluation.quality import compare, fixed_grid, read_masks

_log = logging.getLogger("semmae")


def measure(store: PartStore, images: ImageSet, masks_dir: Path, path: Path) -> dict[str, dict[str, float]]:
    """Part quality against true parts, beside a fixed grid and bands of as many cells; writes quality.json."""
    rows, masks = read_masks(images.names, masks_dir)
    grid = fixed_grid(store.num_labels, store.grid)
    bands = fixed_grid(store.num_labels, store.grid, rows=store.num_labels)
    table = compare({"learned": store.labels[rows], "grid": grid, "bands": bands}, masks)
    rounded = {name: {key: round(value, 2) for key, value in row.items()} for name, row in table.items()}
    write_text(path, json.dumps(rounded, indent=1) + "\n")
    for name, row in rounded.items():
        scores = f"NMI {row['nmi']:.1f}, ARI {row['ari']:.1f}, foreground IoU {row['foreground_iou']:.1f}"
        _log.info("%s: %s (%d images with masks)", name, scores, len(masks))
    return rounded
