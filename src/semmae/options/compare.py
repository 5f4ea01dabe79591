"""Options of `semmae compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semmae.errors import UserError
from semmae.names import shown
from semmae.options import pretrain
from semmae.options.fields import again, option
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import VAL_SHARE, Gradients, Strategy

# Where part labels come from, beside the folder of a run → in words.
PART_KINDS = {
    "learned": "learned from the teacher",
    "kmeans": "the teacher's tokens clustered in two steps, object and parts, without learning",
    "grid": "cells of a fixed grid, which see no image",
    "shuffled": "the learned labels of another image",
    "annotations": "the true parts of --masks",
}
MEASURES = ("knn", "probe", "finetune", "segment", "parts")


def share_of(part: str | None) -> tuple[int, int]:
    """Which of how many shares of the runs are made here, from 0 on."""
    if part is None:
        return 0, 1
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= 10**6):
        raise UserError(f"--part {shown(part)}: must be which of how many, such as 2/4")
    return int(index) - 1, int(count)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(PretrainOptions):
    """Compare maskings: the same weights, crops and budget for each, several seeds, one table with intervals."""

    maskings: str | None = option(None, several=True, on_resume="more")
    """Maskings to compare, the first with all others: names that semmae pretrain --masking takes; default, without \
--grid: random semantic."""
    grid: Path | None = option(None, reads="rows", on_resume="more")
    """YAML file with a list of rows, each with options of semmae pretrain by name, such as masking, parts, target, \
gamma, mask_ratio; a list of values makes a row of each."""
    seeds: int = option(5, low=1, high=1000, on_resume="more")
    """How many seeds each row is trained with, from --seed on."""
    eval_data: str | None = option(None, reads="images")
    """Images to measure on; default: --data. Where these have splits, encoders are trained on the first one, and \
measured on the second."""
    measure: str = option("auto", several=True, on_resume="more")
    """What to measure: knn, probe, finetune, segment (a linear head), parts (clusters of the encoder's tokens); auto: \
knn and probe where images have classes, else segment."""
    finetune_recipe: str | None = option(None, on_resume="more")
    """Recipe of fine-tuning: a preset of semmae finetune, or a YAML file of its options."""
    segment_recipe: str | None = option(None, on_resume="more")
    """Recipe of segmentation: a preset of semmae segment, or a YAML file of its options; default: a linear head, 500 \
steps."""
    val_share: float = option(VAL_SHARE, low=0.01, high=0.99)
    """Share of each class, or of the images with annotations, that is held out to measure on, without splits."""
    masks: Path | None = option(None, reads="annotations", on_resume="more")
    """Folder of PNG annotations of the images: for rows of true parts, part quality and segmentation; default: where \
--data holds images and annotations side by side, those."""
    part: str | None = option(None, control=True, on_resume="free", excludes=("overwrite",), check=share_of)
    """Which share of the runs this process makes, such as 2/4: of four that are given the same --out, the second."""
    masking: str = again(PretrainOptions, "masking", dropped=True)
    devices: int = again(PretrainOptions, "devices", dropped=True)
    nodes: int = again(PretrainOptions, "nodes", dropped=True)
    strategy: Strategy = again(PretrainOptions, "strategy", dropped=True)
    gradients: Gradients = again(PretrainOptions, "gradients", dropped=True)
    callbacks: tuple[Any, ...] = again(PretrainOptions, "callbacks", dropped=True)

    @property
    def learns_parts(self) -> bool:
        """That rows may need a teacher, which they alone know."""
        return True

    @property
    def shares_folder(self) -> bool:
        """Whether other processes work in the same folder."""
        return self.part is not None


PRESETS = pretrain.PRESETS
