"""Options of `semmae parts`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from semmae.options.fields import MOST, again, option
from semmae.options.shared import (
    EPOCHS,
    PIXELS,
    RATE,
    STEPS,
    WEIGHT,
    HeadsOptions,
    PresetOptions,
    TrainOptions,
    teacher_option,
)
from semmae.sizes import Size

Rebuild = Literal["tokens", "pixels"]
PngSize = Literal["grid", "image"]

_TOKENS, _PIXELS = {"rebuild": "tokens"}, {"rebuild": "pixels"}


@dataclass(frozen=True, kw_only=True)
class PartsRecipe:
    """The objective and the optimisation of stage 1. The paper gives no numbers: every value is ours."""

    GROUP: ClassVar[str] = "training"

    total_variation: float = option(0.4, low=0, high=WEIGHT, only=_TOKENS)
    """Weight of the total variation of the maps (PDiscoFormer): larger, smoother, and fewer."""
    diversity: float = option(0.1, low=0, high=WEIGHT, only=_PIXELS)
    """Weight of the diversity loss, λ_d."""
    lr: float = option(3e-3, low=0, high=RATE)
    """Learning rate at its highest."""
    weight_decay: float = option(0.0, low=0, high=100)
    """Weight decay of AdamW."""
    warmup_share: float = option(0.05, low=0, high=1)
    """Share of the steps in which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(HeadsOptions, TrainOptions):
    """Labels."""

    teacher: str = teacher_option()
    """Frozen encoder to learn from: timm:NAME, hf:NAME, a run of semmae, or a checkpoint file; auto: DINOv2 small of \
timm's hub, downloaded once (88 MB)."""
    image_size: Size | None = option(None, low=8, high=PIXELS)
    """Pixels, a square's side or height and width; default: as the encoder was trained, but at most 224, \
in whole patches. More shows finer parts, and takes longer."""
    grid: int = option(32, low=2, high=1024)
    """Cells a side of the stored part labels."""
    learner: Path | None = option(None, reads="learner", idles=("training",), excludes=("tokens",))
    """Run of `semmae parts` whose learner labels the images, with its own encoder: nothing is trained."""
    tokens: Path | None = option(
        None,
        reads="file",
        idles=("training", "batches", "labelling", "image_size", "grid", "num_heads", "precision"),
        excludes=("teacher", "learner"),
    )
    """Folder of the SemMAE authors' .npy token files to take the labels from: nothing is trained or labelled."""
    labels_only: bool = option(False, control=True, continues=True, on_resume="free")
    """Label what the run in --out has not labelled yet, by its own learner; train nothing."""
    quality_only: bool = option(False, control=True, continues=True, on_resume="free", excludes=("labels_only",))
    """Measure the labels of the run in --out again; train and label nothing."""
    export_png: Path | None = option(None, writes=True, on_resume="more")
    """Folder to write the labels to as well: one PNG with a palette an image, under its name."""
    export_size: PngSize = option("grid", on_resume="more", beside=("export_png",))
    """Pixels of these PNGs: the stored cells, or the image's own, by nearest neighbour."""


@dataclass(frozen=True, kw_only=True)
class PartsOptions(PartsRecipe, PresetOptions, LabelOptions):
    """Learn semantic parts from a frozen encoder and label every image with them."""

    GROUP: ClassVar[str] = "training"

    batch_size: int = option(32, low=1, high=2**20, group="batches")
    """Images per optimiser step, over all devices."""
    devices: int = again(TrainOptions, "devices", group="labelling")  # labelling is shared by several processes too
    nodes: int = again(TrainOptions, "nodes", group="labelling")
    rebuild: Rebuild = option("tokens")
    """What part maps have to rebuild: the encoder's tokens, from each part's mean token in the image; or pixels, by \
    SemMAE's decoder (see --preset semmae-published)."""
    steps: int = option(100, low=1, high=STEPS, only=_TOKENS)
    """Optimiser steps on tokens; three times as many changed nothing."""
    epochs: int = option(20, low=1, high=EPOCHS, only=_PIXELS)
    """Passes over the images."""
    sample: int | None = option(2000, low=1, high=MOST)
    """Learn from so many of the images at most, drawn by the seed; all are labelled."""
    num_parts: int = option(6, low=1, high=254)  # a label is a byte: one is the background, one "not yet computed"
    """Parts to learn, besides the background."""
    map_keys: bool = option(True, only=_TOKENS)
    """Start from clusters of what keys say of values; else of the keys as they are."""
    refine: bool = option(True, only=_TOKENS)
    """Borders of labels follow those of the image (guided filter)."""
    background: bool = option(True, only=_PIXELS)
    """One more label for what belongs to no part."""
    start: Literal["heads", "random"] = option("heads", only=_PIXELS)
    """Where part tokens start: the heads of the encoder's last block, or random."""
    blur: int = option(3, low=1, high=255, only=_PIXELS)
    """Patches a side of the low-pass filter over the maps, odd; 1: none."""
    decoder_width: int = option(96, low=4, high=2**16, only=_PIXELS)
    """Channels of the style decoder at the patch grid; halved at every doubling of its side, down to 32."""
    masks: Path | None = option(None, reads="annotations", on_resume="more", group="measuring")
    """Folder of PNG annotations of true parts (same names, 0 = background), to measure against."""
    keypoints: Path | None = option(None, reads="file", on_resume="more", group="measuring")
    """CSV of true keypoints to measure against: columns image, part, x, y (pixels) and, if need be, visible; or \
    CUB's parts/part_locs.txt."""
    quality_images: int = option(
        2000, low=1, high=MOST, on_resume="more", group="measuring", beside=("masks", "keypoints")
    )
    """Images with true parts that are measured at most, drawn by the seed."""


# Presets


def semmae_published() -> dict[str, Any]:
    """SemMAE as published: pixel reconstruction and diversity.

    Source: section 3.1 of the paper (arXiv 2206.10207): L = L_r + λ_d·L_d, six parts that start as the heads of iBOT's
    ViT-S/16. It gives no weight, rate or length, and no part quality: λ_d, the rate, and the 64 images of a step that
    the rate was found with are ours. Its parts, beside those of the defaults: docs/parts-measured.md.

    Not taken over, as nothing is published of it: how logits are scaled (here centred image by image), where the
    background comes from (here a logit from the mean of the parts'), and what the decoder's style is read from (here
    the last block's input).
    """
    return {
        "rebuild": "pixels", "num_parts": 6, "background": True, "start": "heads", "batch_size": 64, "diversity": 0.1,
        "grid": 28, "sample": None,
    }  # fmt: skip


def small_drawings() -> dict[str, Any]:
    """Drawn creatures of the demo, and an encoder with patches of 8, of a minute.

    At the usual rate learning stopped with two or three parts in use; see docs/results.md for what it gives.
    """
    return {"total_variation": 0.1, "lr": 3e-2, "map_keys": False, "quality_images": 500}


PRESETS = (semmae_published, small_drawings)
