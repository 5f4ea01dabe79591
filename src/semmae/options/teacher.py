"""Options of `semmae teacher`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from semmae.options.fields import again, option
from semmae.options.shared import (
    EPOCHS,
    PIXELS,
    RATE,
    WEIGHT,
    Compile,
    CompileOptions,
    PresetOptions,
    SeedOptions,
    SizeOptions,
)
from semmae.sizes import Size

Centering = Literal["centering", "sinkhorn"]
PatchMasking = Literal["block", "random"]


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(SeedOptions):
    """The optimisation: DINO (arXiv 2104.14294) and iBOT (2111.07832), KoLeo of DINOv2 (2304.07193)."""

    warmup_share: float = option(0.1, low=0, high=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = option(0.04, low=0, high=100)
    """Weight decay at the start, but for biases and norms."""
    weight_decay_end: float = option(0.4, low=0, high=100)
    """Weight decay at the end; a cosine leads there."""
    clip: float = option(3.0, low=0, high=10**6)
    """Highest norm of each parameter's gradient; 0 = unlimited."""
    momentum: float = option(0.97, low=0, high=1)
    """Momentum of the averaged encoder at the start; it ends at 1. Long runs on large data want 0.996."""
    ibot: float = option(1.0, low=0, high=WEIGHT)
    """Weight of the loss on hidden patches (iBOT); 0 = DINO alone, nothing is hidden."""
    masking: PatchMasking = option("block", beside=("ibot",))
    """What to hide from the student: rectangles of patches, or single ones."""
    mask_ratio: float = option(0.3, low=0, high=1, open=True, beside=("ibot",))  # the grid decides which hides a patch
    """Share of the patches to hide in a masked crop."""
    mask_spread: float = option(0.2, low=0, high=1, beside=("ibot",))
    """How far --mask-ratio moves up and down from crop to crop."""
    mask_share: float = option(0.5, low=0, high=1, beside=("ibot",))
    """Share of the global crops that are masked."""
    koleo: float = option(0.5, low=0, high=WEIGHT)
    """Weight of KoLeo, which keeps the images of a batch apart; DINOv2's is 0.1."""
    centering: Centering = option("centering")
    """What keeps the teacher from giving all images one answer: a moving centre, or the Sinkhorn algorithm."""
    teacher_temp: float = option(0.04, low=0.001, high=1)
    """Temperature of the teacher's answers after warm-up; lower is sharper."""
    warmup_teacher_temp: float = option(0.04, low=0.001, high=1)
    """Temperature of the teacher's answers at the start."""
    temp_warmup_share: float = option(0.1, low=0, high=1)
    """Share of the steps in which the temperature moves from the one to the other."""
    prototypes: int = option(1024, low=2, high=2**20)
    """Outputs of the head; the papers have 8,192 to 65,536 for millions of images."""
    head_width: int = option(1024, low=1, high=2**16)
    """Width of the head's hidden layers."""
    shared_head: bool = option(True, beside=("ibot",))
    """One head for class tokens and for patches."""
    norm_last_layer: bool = option(True)
    """Keep the weights of the head's last layer at norm 1: steadier, and a little weaker in long runs."""
    frozen_share: float = option(0.1, low=0, high=1)
    """Share of the steps at the start in which the head's last layer does not learn."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TeacherRecipe, PresetOptions, SizeOptions):
    """Train an encoder on your own images, without labels (DINO and iBOT self-distillation)."""

    epochs: int = option(100, low=1, high=EPOCHS)
    """Passes over the images."""
    blr: float = option(4e-3, low=0, high=RATE)
    """Base learning rate: multiplied by batch size / 256."""
    crop_scale: float = option(0.25, low=0.05, high=1)  # between them lie the local crops
    """Share of an image's area: global crops show at least so much, local crops at most."""
    local_crops: int = option(0, low=0, high=256)
    """Small crops of each image, beside two global ones."""
    local_size: Size | None = option(None, low=2, high=PIXELS, beside=("local_crops",))
    """Pixels of local crops, a square's side or height and width; default: 3/7 of --image-size, as 96 of 224, in \
whole patches."""
    learned_positions: bool = option(False)
    """Learn the positions of patches, as the papers do; fixed sine-cosine ones suit small data. Those of --init are \
learned."""
    init: str | None = option(None, reads="network", objects=True)
    """Encoder to begin with: a run of semmae, timm:NAME, hf:NAME, or a checkpoint file; of --model's size."""
    num_heads: int | None = option(None, low=1, high=1024, beside=("init",))
    """Heads of --init, where its file does not say."""
    knn_every: int = option(10, low=0, high=EPOCHS, on_resume="free")
    """Measure k-NN accuracy every so many epochs and at the end, where images have classes; 0 = never."""
    compile: Compile = again(CompileOptions, "compile")

    @property
    def makes_a_new_encoder(self) -> bool:
        """Whether it begins with none of --init."""
        return self.init is None


# Presets


def ibot_vit_s16() -> dict[str, Any]:
    """iBOT as published: ViT-S/16, ImageNet-1k, 800 epochs, 16 GPUs.

    Source: bytedance/ibot, README, "iBOT Pre-Training with ViTs", and the defaults of its main_ibot.py; two nodes
    of 8 GPUs, 64 images each. The authors report 75.2 % k-NN, 77.9 % linear probing and 82.3 %
    fine-tuning.

    Not taken over: stochastic depth (0.1), a last rate of 1e-6 (here 0), and smaller things listed in docs/teacher.md.
    """
    return {
        "model": "vit_small", "image_size": 224, "patch_size": 16, "epochs": 800, "batch_size": 1024,
        "blr": 5e-4, "warmup_share": 10 / 800, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0,
        "momentum": 0.996, "crop_scale": 0.25, "local_crops": 10, "local_size": 96,
        "ibot": 1.0, "masking": "block", "mask_ratio": 0.3, "mask_spread": 0.2, "mask_share": 0.5,
        "koleo": 0.0, "centering": "centering", "warmup_teacher_temp": 0.04, "teacher_temp": 0.07,
        "temp_warmup_share": 30 / 800, "prototypes": 8192, "head_width": 2048, "shared_head": True,
        "norm_last_layer": False, "frozen_share": 1 / 800, "learned_positions": True,
    }  # fmt: skip


def dino_vit_s16() -> dict[str, Any]:
    """DINO as published: ViT-S/16, ImageNet-1k, 300 epochs, 16 GPUs, 2.6 days.

    Source: facebookresearch/dino, README, "Boosting DINO performance", and the defaults of its main_dino.py; two
    nodes of 8 GPUs, 64 images each. The authors report 73.3 % k-NN and about 76.1 % linear probing.

    Not taken over: stochastic depth (0.1), a last rate of 1e-6 (here 0), and smaller things listed in docs/teacher.md.
    """
    return {
        "model": "vit_small", "image_size": 224, "patch_size": 16, "epochs": 300, "batch_size": 1024,
        "blr": 5e-4, "warmup_share": 10 / 300, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0,
        "momentum": 0.996, "crop_scale": 0.4, "local_crops": 8, "local_size": 96, "ibot": 0.0, "koleo": 0.0,
        "centering": "centering", "warmup_teacher_temp": 0.04, "teacher_temp": 0.07,
        "temp_warmup_share": 30 / 300, "prototypes": 65536, "head_width": 2048, "norm_last_layer": False,
        "frozen_share": 1 / 300, "learned_positions": True,
    }  # fmt: skip


def small_photos() -> dict[str, Any]:
    """A few hundred photos on a laptop, minutes: ViT-Ti/8, DINO + iBOT.

    Ours. Measured on `clothing` (341 photos of 10 classes, CC0), seed 0, one thread of a machine of two cores that
    others used too, 4.9 minutes:

        semmae teacher --preset small-photos --data clothing --out runs/clothing --knn-every 5 --workers 0

    | leave-one-out k-NN, class token | top-1 % after 5, 10, 15, 20 epochs |
    |---------------------------------|------------------------------------|
    | this                            | 25.2, 30.8, 30.5, 32.3             |
    | without iBOT (`--ibot 0`)       | 27.9, 29.6, 27.9, 27.9             |
    | without iBOT, KoLeo 0.5         | 29.3, 29.6, 30.5 (stopped)         |
    | untrained; raw pixels           | 28.4; 45.5                         |

    Measured when first weights, views, masks and limits of gradients were not yet those of the papers, and not since.
    One seed of 341 photos: differences below 5 points are within chance. Raw pixels stay ahead of anything that
    200 steps can learn: this is a start for small machines, not an encoder to rely on.
    """
    return {**_SMALL, "epochs": 20, "ibot": 1.0}


def small_drawings() -> dict[str, Any]:
    """A few hundred flat drawings on a laptop, minutes: ViT-Ti/8, DINO alone.

    Ours. Measured on 600 of 1,000 drawn creatures of 8 classes (`draw_creatures(folder, count=1000, size=96)`),
    seed 0, one thread of a machine of two cores that others used too, 1.6 minutes:

        semmae teacher --preset small-drawings --data creatures/images --limit 600 --out runs/creatures --workers 0

    | leave-one-out k-NN, class token, after 8 epochs           | top-1 %    |
    |-----------------------------------------------------------|------------|
    | this; with KoLeo 0.5                                      | 25.7; 24.7 |
    | KoLeo 0.5 with 4 local crops; --crop-scale 0.4            | 23.7; 21.8 |
    | KoLeo 0.5 with 256 prototypes; momentum 0.9               | 21.5; 24.0 |
    | KoLeo 0.5 with --blr 1e-3; teacher temperature 0.02       | 19.7; 18.2 |
    | KoLeo 0.5 with iBOT of weight 0.2; 1                      | 20.5; 19.3 |
    | iBOT and Sinkhorn, KoLeo 0.5; 0.1                         | 16.8; 14.0 |
    | untrained; raw pixels                                     | 12.5; 38.7 |

    Measured when first weights, views, masks and limits of gradients were not yet those of the papers, and not since.
    25 epochs instead of 8, KoLeo 0.5: 23.7 without iBOT, 20.7 with it. k-NN looks at the class token alone: k-means
    of the patch tokens finds parts as well with iBOT (NMI 4.5 and 4.8, two seeds) as without (4.3, 4.3).
    """
    return {**_SMALL, "epochs": 8, "ibot": 0.0}


# What both have: settings under which a few hundred steps leave the uniform answer, see the table above.
_SMALL: Mapping[str, Any] = {
    "model": "vit_tiny", "image_size": 32, "patch_size": 8, "batch_size": 32, "blr": 4e-3, "momentum": 0.97,
    "koleo": 2.0, "centering": "centering", "prototypes": 1024, "local_crops": 0, "crop_scale": 0.25,
}  # fmt: skip


PRESETS = (ibot_vit_s16, dino_vit_s16, small_photos, small_drawings)
