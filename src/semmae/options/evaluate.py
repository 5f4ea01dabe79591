"""Options of `semmae evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from semmae.options.fields import option
from semmae.options.knn import KnnRecipe
from semmae.options.segment import CodingOptions
from semmae.options.shared import (
    STEPS,
    VAL_SHARE,
    DeviceOptions,
    EncoderOptions,
    PoolingOptions,
    PrecisionOptions,
    ViewOptions,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(
    CodingOptions, KnnRecipe, PoolingOptions, PrecisionOptions, DeviceOptions, ViewOptions, EncoderOptions
):
    """Measure an encoder by k-NN, linear probe and, where annotations are given, segmentation and part quality."""

    untrained: bool = option(True, on_resume="more")
    """Measure beside it the same encoder with new weights, to see what training brought."""
    val_share: float = option(VAL_SHARE, low=0.01, high=0.99)
    """Share of each class, or of the images with annotations, that is held out where --data has no split."""
    masks: Path | None = option(None, reads="annotations", on_resume="more")
    """Folder of PNG annotations that mirrors --data: segmentation and part quality; default: where --data holds \
images and annotations side by side, those."""
    steps: int = option(500, low=1, high=STEPS)
    """Optimiser steps of the linear head for segmentation."""
