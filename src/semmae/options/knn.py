"""Options of `semmae knn`."""

from dataclasses import dataclass
from typing import Any

from semmae.options.fields import option
from semmae.options.shared import (
    DeviceOptions,
    EncoderOptions,
    PoolingOptions,
    PrecisionOptions,
    PresetOptions,
    ViewOptions,
)


@dataclass(frozen=True, kw_only=True)
class KnnRecipe:
    """Nearest neighbours."""

    k: int = option(20, low=1, high=10**6)
    """Neighbours that vote."""
    temperature: float = option(0.07, low=0.0001, high=1000)
    """Votes weigh exp(cosine similarity / temperature)."""


@dataclass(frozen=True, kw_only=True)
class KnnOptions(
    KnnRecipe, PresetOptions, PoolingOptions, PrecisionOptions, DeviceOptions, ViewOptions, EncoderOptions
):
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""

    untrained: bool = option(False, on_resume="more")
    """Measure beside it the same encoder with new weights, to see what training brought."""


# Presets


def dino() -> dict[str, Any]:
    """DINO's k-NN protocol: 20 neighbours, temperature 0.07, class token.

    Source: arXiv 2104.14294, section 4.1, and facebookresearch/dino, eval_knn.py. On ImageNet-1k the authors report
    74.5 % for DINO's ViT-S/16 of 800 epochs (README: 78.3 % for ViT-S/8, 76.1 % for ViT-B/16).
    """
    return {"k": 20, "temperature": 0.07, "pooling": "cls", "crop_pct": 224 / 256}


PRESETS = (dino,)
