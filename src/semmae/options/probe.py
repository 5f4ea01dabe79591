"""Options of `semmae probe`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from semmae.options.fields import again, option
from semmae.options.shared import (
    EPOCHS,
    RATE,
    VAL_SHARE,
    EncoderOptions,
    PoolingOptions,
    PresetOptions,
    SeedOptions,
    TrainOptions,
)

Protocol = Literal["features", "mae"]
_MAE, _FEATURES = {"protocol": "mae"}, {"protocol": "features"}
# Defaults of --epochs and --crop-pct by protocol; k-NN shows as much of an image as "features" does.
USUAL_EPOCHS: Mapping[Protocol, int] = {"features": 30, "mae": 90}
USUAL_CROP_PCT: Mapping[Protocol, float] = {"features": 1.0, "mae": 224 / 256}


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe(SeedOptions):
    """A head on features that are computed once."""

    lr: float | None = option(None, low=0, high=RATE, only=_FEATURES)
    """features: this learning rate, instead of the best of several."""
    choice_share: float = option(0.1, low=0.01, high=0.5, only=_FEATURES | {"lr": None})
    """features: share of each class of the training images on which the learning rate is chosen."""
    flip: bool = option(False, only=_FEATURES)
    """features: learn from mirrored training images too; mae mirrors its crops in any case."""


@dataclass(frozen=True, kw_only=True)
class MaeProbeRecipe:
    """MAE's linear probe (facebookresearch/mae, main_linprobe.py)."""

    blr: float = option(0.1, low=0, high=RATE, only=_MAE)
    """mae: base learning rate, multiplied by batch size / 256."""
    warmup_share: float = option(10 / 90, low=0, high=1, only=_MAE)
    """mae: share of the steps in which the learning rate rises."""
    crop_scale: float = option(0.08, low=0.05, high=1, only=_MAE)
    """mae: share of an image's area that a crop shows at least."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(ProbeRecipe, MaeProbeRecipe, PoolingOptions, PresetOptions, EncoderOptions, TrainOptions):
    """Measure an encoder by a linear head on its features: MAE's linear probe, or a fast one."""

    protocol: Protocol = option("features")
    """features: heads on features of one centre crop an image, the best of several rates, minutes; \
    mae: MAE's linear probe on random crops, hours. Figures of the one do not compare with the other's."""
    batch_size: int = option(256, low=1, high=2**20)
    """Images per optimiser step of mae, over all devices; of features: that the encoder sees at a time."""
    accumulate: int = again(TrainOptions, "accumulate", only=_MAE)
    nodes: int = again(TrainOptions, "nodes", only=_MAE)
    epochs: int | None = option(None, low=1, high=EPOCHS)
    """Passes over the training images, or their features; default: 90 of mae, 30 of features."""
    crop_pct: float | None = option(None, low=0.1, high=1)
    """Share of the short side that the centre crop shows on which is measured; default: 1, of mae 0.875."""
    val_share: float = option(VAL_SHARE, low=0.01, high=0.99)
    """Share of each class that is held out to measure on, where --data has no split."""
    untrained: bool = option(False, on_resume="more")
    """Measure beside it the same encoder with new weights, to see what training brought."""


# Presets


def mae_linear() -> dict[str, Any]:
    """MAE's linear probe as published: ImageNet-1k, 90 epochs, 32 GPUs, 2.3 hours.

    Source: facebookresearch/mae, FINETUNE.md and main_linprobe.py; a batch of 16384 there is one of 512 on each of
    32 GPUs (--devices, --accumulate). The authors report 67.8 % for MAE's ViT-B/16 of 1600 epochs and 76.0 % for
    ViT-L/16, for which 50 epochs suffice; mmpretrain 65.1 % for ViT-B/16 of 800 epochs; SemMAE's authors 65.0 % for
    theirs.

    Not taken over: crops of the release cut a box that does not fit at the image's border, as TensorFlow does; here
    it is drawn again, as torchvision does.
    """
    return {
        "protocol": "mae", "pooling": "cls", "epochs": 90, "batch_size": 16384, "blr": 0.1, "warmup_share": 10 / 90,
        "crop_scale": 0.08, "crop_pct": 224 / 256,
    }  # fmt: skip


def mae_small_data() -> dict[str, Any]:
    """MAE's linear probe for thousands of images: batch 256, 20 epochs, mean token.

    Ours. LARS divides by the gradient, so that a head needs the published rate itself, 6.4, whatever the batch; by
    MAE's rule a batch of 256 would have 0.1, with which it hardly moves. Tried on features of centre crops of
    `tiny-imagenet-100` (25,000 images of 100 classes, mean token of pretrain's small-images, seed 1), 20 epochs:

    | top-1 %, 5,000 images of val                      |              |
    |---------------------------------------------------|--------------|
    | this, but for its random crops                    | 15.6         |
    | rate 1; 0.1                                       | 11.0; 6.6    |
    | batch 1024                                        | 13.9         |
    | 2,500 images; these with a batch of 64            | 7.8; 9.0     |
    | the fast protocol, 30 epochs, rates 0.1; 0.3      | 16.3; 16.7   |

    Chosen on the 5,000 images that these figures are of, which flatters the first a little.

        semmae probe --preset mae-small-data --encoder runs/a --data tiny-imagenet-100 --out runs/a-probe

    With its crops, six epochs (`--epochs 6 --untrained`, 5.2 minutes of one core for both rows): 12.0 %, untrained 8.8.
    """
    return {
        "protocol": "mae", "pooling": "mean", "epochs": 20, "batch_size": 256, "blr": 6.4, "warmup_share": 10 / 90,
        "crop_scale": 0.08, "crop_pct": 224 / 256,
    }  # fmt: skip


PRESETS = (mae_linear, mae_small_data)
