"""Options of `semmae segment`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from semmae.options.fields import about, again, option
from semmae.options.shared import (
    PIXELS,
    RATE,
    STEPS,
    VAL_SHARE,
    WEIGHT,
    CompileOptions,
    EncoderOptions,
    PresetOptions,
    SeedOptions,
    TrainOptions,
)
from semmae.sizes import Size

Head = Literal["upernet", "linear"]
_UPERNET = {"head": "upernet"}


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(PresetOptions, SeedOptions):
    """The head and the optimisation."""

    GROUP: ClassVar[str] = "training"

    head: Head = option("upernet")
    """UPerNet with the whole encoder trained, or one linear layer on the frozen encoder's last patch tokens."""
    steps: int = option(2000, low=1, high=STEPS)
    """Optimiser steps to train."""
    val_steps: int | None = option(None, low=1, high=STEPS)
    """Steps between validations; must divide --steps; default: about a tenth."""
    lr: float | None = option(None, low=0, high=RATE)
    """Learning rate, of any batch size; default: 1e-4, of a linear head 1e-2."""
    warmup_share: float = option(0.05, low=0, high=1)
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to 0."""
    layer_decay: float = option(0.65, low=0.01, high=1, only=_UPERNET)
    """Learning rate of a block, as a share of that of the block above it."""
    weight_decay: float = option(0.05, low=0, high=100)
    """Weight decay, but for biases, norms and tokens."""
    clip: float = option(0.0, low=0, high=10**6)
    """Highest norm of the gradient; 0 = unlimited."""
    drop_path: float = option(0.1, low=0, high=0.95, only=_UPERNET)
    """Chance that the last block is left out for an image in training; less in those below it."""
    blocks: str | None = option(None, only=_UPERNET)
    """Four blocks whose tokens UPerNet reads, counted from 0; default: 3,5,7,11 of twelve."""
    decoder_channels: int | None = option(None, low=1, high=2**16, only=_UPERNET)
    """Channels of UPerNet; default: 512, for vit_small 256, for vit_tiny 128."""
    aux_weight: float = option(0.4, low=0, high=WEIGHT, only=_UPERNET)
    """Weight of the loss of a second, small head that helps to train; 0 = without."""
    checkpointing: bool = again(CompileOptions, "checkpointing", only=_UPERNET)
    min_scale: float = option(0.5, low=0.1, high=10)
    """Short side of an image in training, in sides of the crop (what just covers one that is no square), at least."""
    max_scale: float = option(2.0, low=0.1, high=10)
    """And at most."""
    most_of_one: float = option(0.75, low=0.01, high=1)
    """Share of a crop that one class may fill; others are drawn instead, ten times at most. 1 = no limit."""
    colour: bool = option(True)
    """Change brightness, contrast, saturation and hue in training."""


@dataclass(frozen=True, kw_only=True)
class CodingOptions:
    """Annotations of pixels."""

    ignore_index: int = option(255, low=0, high=255)
    """Number in the annotations of pixels that neither train nor count."""
    reduce_zero_label: bool = option(False)
    """Ignore 0 too and count classes from 1: the annotations of ADE20K."""


@dataclass(frozen=True, kw_only=True)
class WindowOptions(CodingOptions):
    """Measuring."""

    GROUP: ClassVar[str] = "measuring"

    stride: float = option(2 / 3, low=0.1, high=1)
    """Distance of the windows in measuring, in sides of a window."""
    pictures: int = option(8, low=0, high=10**4, on_resume="more")
    """Validation images to show in predictions.png."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(SegmentRecipe, WindowOptions, EncoderOptions, TrainOptions):
    """Train semantic segmentation on an encoder, or only measure it: mIoU, IoU of each class, pictures."""

    GROUP: ClassVar[str] = "training"

    encoder: str = field(metadata=about(reads="network", objects=True, group="measuring"))
    """Encoder: a run of semmae, timm:NAME, hf:NAME, or a checkpoint file; with --eval-only a run of semmae segment."""
    data: str = field(metadata=about(reads="images", group="measuring"))
    """Folder with images/train, images/val and masks/train, masks/val (or as ADE20K names them); \
annotations are 8-bit PNGs of class numbers."""
    image_size: Size | None = option(None, low=8, high=PIXELS)
    """Pixels of the crops to train on and the windows to measure with, a square's side or height and width; \
default: as the encoder was trained."""
    batch_size: int = option(16, low=1, high=2**20)
    """Images per optimiser step, over all devices."""
    val_share: float = option(VAL_SHARE, low=0.01, high=0.99)
    """Share of the images held out to measure on, where the data has no folders of splits."""
    untrained: bool = option(False, on_resume="more")
    """Train beside it the same encoder with new weights, by the same recipe but for layer decay, to see what \
pre-training brought."""
    eval_only: bool = option(False, group="measuring", idles=("training", "num_heads"))
    """Only measure the run of semmae segment that --encoder names, on images that it was not trained on."""


# Presets


def ade20k_vit_b16() -> dict[str, Any]:
    """UPerNet as MAE and BEiT are measured: ADE20K, 160,000 steps, 8 GPUs.

    Source: mmsegmentation, configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py; two images on each of 8
    GPUs, windows 341 pixels apart. The authors report 48.13 mIoU of it for MAE's ViT-B/16 of 1600 epochs (metafile of
    the same folder); SemMAE's paper 46.3 for theirs.
    ADE20K as it is downloaded is read as it lies:

        semmae segment --preset ade20k-vit-b16 --data ADEChallengeData2016 --encoder mae_pretrain_vit_base.pth --out D

    Not taken over: layer scale of 1 in the encoder; a loss divided by the number of all pixels, here by that of those
    that have a class, so that steps with many unknown pixels weigh as much as others. The decoder norms the maps that
    it is given; there it does not.
    """
    return {
        **_ADE20K, "head": "upernet", "steps": 160_000, "val_steps": 16_000, "lr": 1e-4, "weight_decay": 0.05,
        "layer_decay": 0.65, "drop_path": 0.1, "warmup_share": 1500 / 160_000, "decoder_channels": 768,
        "aux_weight": 0.4, "stride": 2 / 3,
    }  # fmt: skip


def linear() -> dict[str, Any]:
    """One linear layer on frozen patch tokens: ADE20K, 160,000 steps, 4 GPUs.

    Source: bytedance/ibot, evaluation/semantic_segmentation/configs/linear/vit_base_512_ade20k_160k.py, with the rate
    that evaluation/README.md gives in its place (8e-4 for 7e-4); four images on each of 4 GPUs, windows 341 pixels
    apart. For ViT-S/16 its configuration has a rate of 3e-5. The iBOT paper (arXiv 2111.07832) reports 38.3 mIoU of its
    ViT-B/16.

    Not taken over: there the layer reads tokens of four blocks side by side (3, 5, 7, 11), and no BatchNorm stands
    before it; here, after DINOv2 (arXiv 2304.07193, section 7.4), it reads those of the last alone, below one. So that
    figure cannot be expected; compare encoders with each other. The loss is divided as in ade20k-vit-b16.

    For other data: --no-reduce-zero-label, fewer steps and a higher rate (`semmae segment --head linear` alone).
    """
    return {
        **_ADE20K, "head": "linear", "steps": 160_000, "val_steps": 16_000, "lr": 8e-4, "weight_decay": 0.05,
        "warmup_share": 1500 / 160_000, "stride": 2 / 3,
    }  # fmt: skip


def small() -> dict[str, Any]:
    """Hundreds of photos on a laptop, minutes: small encoders at 96 pixels.

    Ours, for patches of 8 pixels. Measured on `street-fashion` (604 photos to train on, 200 to measure, 8 classes)
    with a ViT-Ti/8 pre-trained on other images (`pretrain --preset small-images`, tiny-imagenet-100, 32 pixels),
    seed 0, one core of a Xeon whose units compute in bf16, 6.5 minutes on a machine that others used too:

        semmae segment --preset small --encoder runs/a --data street-fashion --out runs/a-segment --workers 0

    | seed 0                                         | mIoU %     | pixels right % |
    |------------------------------------------------|------------|----------------|
    | this; the same encoder untrained               | 34.0; 31.9 | 86.5; 86.2     |
    | untrained, all layers at the full rate         | 27.9       | 85.0           |
    | 200 training images, 150 steps, rate 1e-3      | 20.2       | 82.8           |
    | the same with scales 0.5 to 2, rate 1e-3; 3e-3 | 19.1; 20.1 | 81.5; 81.3     |
    | background everywhere                          | 9.6        | 76.9           |

    The settings were chosen on the 200 images that these figures are of, which flatters them a little; the other rows
    were tried with hues turned half as far. One seed each. Large things are found first: clothes after 150 steps, hair,
    skin and shoes after 600, bags and dresses not yet.
    """
    return {
        "head": "upernet", "image_size": 96, "batch_size": 8, "steps": 600, "val_steps": 200, "lr": 2e-3,
        "layer_decay": 0.75, "min_scale": 0.8, "max_scale": 1.5,
    }  # fmt: skip


_ADE20K: dict[str, Any] = {
    "image_size": 512, "batch_size": 16, "min_scale": 0.5, "max_scale": 2.0, "most_of_one": 0.75, "colour": True,
    "reduce_zero_label": True, "ignore_index": 255,
}  # fmt: skip


PRESETS = (ade20k_vit_b16, linear, small)
