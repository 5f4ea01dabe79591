"""Options of `semmae pretrain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semmae.options.fields import option
from semmae.options.maskings import MASKINGS
from semmae.options.shared import (
    AUTO_TEACHER,
    EPOCHS,
    OWN_TEACHER,
    PIXELS,
    PUBLIC_TEACHER,
    RATE,
    CompileOptions,
    PresetOptions,
    SeedOptions,
    SizeOptions,
    StrategyOptions,
    teacher_option,
)
from semmae.sizes import Size

Target = Literal["pixels", "tokens"]
Residual = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(SeedOptions):
    """What to hide, and the optimisation: MAE's, of which SemMAE changes the mask alone."""

    masking: str = option("semantic", function=True)
    """What to hide: from a share of every part to whole parts (semantic), a share of every part (intra), whole parts \
    (inter), any patches (random), rectangles (block), blobs of filtered noise (colour), the most attended \
    (attention), or what package.module:function of your own returns."""
    mask_ratio: float = option(
        0.75, low=0, high=1, open=True
    )  # which ratio hides a patch and leaves one depends on the grid
    """Share of the patches to hide."""
    gamma: float = option(2.0, low=0, high=1000, only={"masking": "semantic", "blend": None})
    """Exponent of the schedule of semantic masking: the blend is (step / steps)^gamma."""
    blend: float | None = option(None, low=0, high=1, only={"masking": "semantic"})
    """Blend of semantic masking throughout, in place of the schedule: 0 a share of every part, 1 whole parts."""
    blend_end: float = option(1.0, low=0, high=1, only={"masking": "semantic", "blend": None})
    """Blend at which the schedule of semantic masking ends, in place of 1; not of the paper."""
    keep_background: bool = option(False, beside=("hides_whole_parts",))
    """Hide the same share of the background throughout, and whole parts among the others alone; not of the paper."""
    hints: int = option(0, low=0, high=2**24, beside=("masks_by_parts",))
    """Patches that stay visible of every part with more than so many, the background included; not of the paper."""
    attention_hint: float = option(0.0, low=0, high=1, only={"masking": "attention"})
    """Share of the most attended patches (a tenth of all) that masking by attention leaves visible."""
    token_subset: int | None = option(None, low=2, high=2**24)
    """Encode and predict only so many patches of an image, the most attended, whatever the masking; default: all."""
    weight_decay: float = option(0.05, low=0, high=100)
    """Weight decay, but for biases and norms."""
    warmup_share: float = option(0.05, low=0, high=1)  # 40 of 800 epochs
    """Share of the steps in which the learning rate rises."""

    @property
    def is_own_masking(self) -> bool:
        """Whether one's own function masks, `package.module:name`; it is given what there is."""
        return ":" in self.masking

    @property
    def masks_by_parts(self) -> bool:
        """Whether a masking of ours hides shares of parts, or whole ones."""
        return self.masking in MASKINGS and MASKINGS[self.masking].reads == "parts"

    @property
    def hides_whole_parts(self) -> bool:
        """Whether parts are hidden whole at some time, or partly so."""
        return self.masks_by_parts and 0.0 not in (MASKINGS[self.masking].blend, self.blend)

    @property
    def needs(self) -> frozenset[str]:
        """What nothing can be masked without: "parts", "attention"."""
        reads = {"attention"} if self.token_subset is not None else set()
        if self.masking in MASKINGS and (own := MASKINGS[self.masking].reads):
            reads.add(own)
        return frozenset(reads)


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(PretrainRecipe, PresetOptions, CompileOptions, StrategyOptions, SizeOptions):
    """Pre-train a masked autoencoder with semantic-guided masking, learning the parts first if need be."""

    target: Target = option("pixels")
    """What to predict: the pixels of hidden patches, as the paper does, or the tokens that the teacher has of all \
    patches and of the image, to learn from a public encoder with hundreds or thousands of images."""
    parts: Path | None = option(None, reads="labels")
    """Part labels of these images: a run of `semmae parts` or `pretrain`."""
    teacher: str = teacher_option(beside=("learns_parts", "predicts_tokens"))
    """Encoder to learn parts from, when --parts is not given, and to predict the tokens of (beside --parts, auto is \
the one that they were learned from): timm:NAME, hf:NAME, a run of semmae, or a checkpoint file; own: one trained \
first, on these images; auto: DINOv2 small of timm's hub, downloaded once (88 MB), or own where it cannot be had."""
    epochs: int = option(400, low=1, high=EPOCHS)
    """Passes over the images."""
    blr: float = option(1.5e-4, low=0, high=RATE)
    """Base learning rate: multiplied by batch size / 256."""
    clip: float = option(0.0, low=0, high=10**6)
    """Highest norm of the gradient; 0 = unlimited."""
    crop_scale: float = option(0.2, low=0.05, high=1)
    """Share of an image's area that a crop shows at least; 1 = whole images."""
    residual: Residual = option("float32", group="training")
    """Arithmetic of the sum that every block adds to; bf16, for --precision bf16, moves fewer bytes, and rounds it."""
    norm_pix_loss: bool = option(True, only={"target": "pixels"})
    """Predict pixels normalised per patch."""
    decoder_width: int | None = option(None, low=4, high=2**16)
    """Width of the decoder; default: 512, for vit_small 256, for vit_tiny 192, for vit_mini 96."""
    decoder_depth: int | None = option(None, low=1, high=256)
    """Blocks of the decoder; default: 8, for vit_small and vit_tiny 4, for vit_mini 1."""
    decoder_heads: int | None = option(None, low=1, high=1024)
    """Heads of the decoder; default: 16, for vit_small 8, for vit_tiny 6, for vit_mini 3."""
    init: str | None = option(None, reads="network", objects=True)
    """Encoder to begin with: a run of semmae, timm:NAME, hf:NAME, or a checkpoint file; of --model's size; \
    with its decoder, if it has one of this run's sizes. Read again by --resume."""
    num_heads: int | None = option(None, low=1, high=1024, beside=("names_a_teacher", "init"))
    """Heads of --teacher, or else of --init, where its file does not say."""
    num_parts: int = option(6, low=1, high=254, beside=("learns_parts",))
    """Parts to learn, when --parts is not given."""
    masks: Path | None = option(None, reads="annotations", on_resume="more")
    """Folder of PNG annotations of true parts, to measure learned parts against."""
    teacher_epochs: int | None = option(
        None, low=1, high=EPOCHS, only={"teacher": OWN_TEACHER}, beside=("learns_parts", "predicts_tokens")
    )
    """Epochs of one's own teacher; default: a quarter of --epochs."""
    teacher_image_size: Size | None = option(None, low=8, high=PIXELS, beside=("learns_parts", "predicts_tokens"))
    """Pixels of the images the teacher sees, a square's side or height and width; default: as it was trained, but at \
most 224, in whole patches; or of the crops that one's own is trained on; default: as --image-size. \
Smaller is faster."""
    parts_epochs: int | None = option(None, low=1, high=EPOCHS, beside=("parts_preset",))
    """Epochs of the part learner of --parts-preset semmae-published; default: an eighth of --epochs, at least 5."""
    parts_preset: str | None = option(None, beside=("learns_parts",))
    """Recipe of semmae parts, by name, when parts are learned; semmae-published: as the paper learns them."""

    @property
    def learns_parts(self) -> bool:
        """Whether part labels are made here; one's own mask function gets some where --teacher is not left at auto."""
        asked = self.is_own_masking and self.teacher != AUTO_TEACHER
        return self.parts is None and (asked or bool(self.needs))

    @property
    def predicts_tokens(self) -> bool:
        """Whether a teacher's tokens are predicted, and not pixels."""
        return self.target == "tokens"

    @property
    def needs_teacher(self) -> bool:
        """Whether an encoder is needed that --parts do not bring along."""
        brought = self.parts is not None and self.teacher == AUTO_TEACHER
        return self.learns_parts or (self.predicts_tokens and not brought)

    @property
    def makes_a_new_encoder(self) -> bool:
        """Whether the encoder is one, or that of a teacher which is trained here: asked for, or for want of another."""
        own = self.teacher == OWN_TEACHER or (self.teacher == AUTO_TEACHER and self.channels != 3)
        return self.init is None or (own and self.needs_teacher)

    @property
    def names_a_teacher(self) -> bool:
        """Whether the teacher is a given one, which --num-heads is then of."""
        return self.teacher not in (AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER)


# Presets


def semmae_vit_b16() -> dict[str, Any]:
    """SemMAE as published: ViT-B/16, ImageNet-1k, 800 epochs, 16 GPUs.

    Source: arXiv 2206.10207, which changes the mask of MAE and no other setting, and the authors' repository
    (ucasligang/SemMAE). The paper reports 16 A100 for 3 days; its parts come from iBOT's ViT-S/16 (--teacher, or
    --parts made with it) and took 2 hours on one, which with --teacher are five epochs of `parts --preset
    semmae-published`. The authors report 83.35 % fine-tuning (released checkpoint) and
    65.0 % linear probing.

    Not taken over: rounding and blend of the released code, whose quotas miss the mask ratio by a few patches.
    """
    stage = {"parts_preset": "semmae-published", "parts_epochs": 5}
    return {**_MAE, "model": "vit_base", "masking": "semantic", "gamma": 2.0, **stage}


def semmae_vit_b8() -> dict[str, Any]:
    """SemMAE as published: ViT-B/8 on 196 of 784 patches, 800 epochs, 16 GPUs.

    Source and remarks as for semmae-vit-b16. The 196 patches of an image are chosen by attention and cost what those
    of ViT-B/16 do. The authors report 84.5 % fine-tuning (released checkpoint: 84.44 %).
    """
    return {**semmae_vit_b16(), "patch_size": 8, "token_subset": 196}


def mae_vit_b16() -> dict[str, Any]:
    """MAE as published: ViT-B/16, ImageNet-1k, 800 epochs.

    Source: facebookresearch/mae, PRETRAIN.md; a batch of 4096 there is one of 64 on each of 64 GPUs. Fine-tuning
    after 800 epochs: 83.1 %, as the SemMAE paper compares; linear probing: 65.1 %, as mmpretrain reports. After 1600
    epochs the authors report 83.6 % and 67.8 %.
    """
    return {**_MAE, "model": "vit_base", "masking": "random"}


def mae_vit_l16() -> dict[str, Any]:
    """MAE as published: ViT-L/16, ImageNet-1k, 800 epochs, 64 GPUs, 42 hours.

    Source: facebookresearch/mae, PRETRAIN.md, whose GPUs are V100. The authors report 85.5 % fine-tuning; after 1600
    epochs 85.9 % (FINETUNE.md, mean of four) and 76.0 % linear probing.
    """
    return {**_MAE, "model": "vit_large", "masking": "random"}


def small_images() -> dict[str, Any]:
    """Thousands of small images on a laptop, minutes: ViT-Ti/8 at 32 pixels.

    Ours. Measured on `tiny-imagenet-100` (25,000 images of 100 classes at 64 pixels), one core of a Xeon that
    computes in bf16 (AMX), 7.8 minutes:

        semmae pretrain --preset small-images --data tiny-imagenet-100/train.parquet --out runs/a --seed 1 --workers 0

    | top-1 %, 10,000 images of train, 5,000 of val | k-NN, class; mean token | logistic regression, class; mean |
    |-----------------------------------------------|-------------------------|---------------------------------|
    | this, seed 1                                  | 6.5; 7.3                | 10.6; 13.2                      |
    | this, seed 0, 6.7 minutes of the same steps   | 5.1; 7.8                | 9.2; 13.2                       |
    | untrained, seed 0                             | 5.9; 5.7                | 9.0; 8.7                        |
    | untrained, seed 1                             | 5.4; 5.7                | 8.2; 8.4                        |
    | raw pixels, 16 x 16                           | 6.8                     | 8.2                             |

    Use the mean of the patch tokens: the class token hardly gains. Runs of one epoch lie below the untrained encoder.
    What was tried on the way is in docs/small-data.md.
    """
    return {
        "model": "vit_tiny", "image_size": 32, "patch_size": 8, "epochs": 6, "batch_size": 64, "blr": 4e-3,
        "warmup_share": 0.05, "masking": "random", "mask_ratio": 0.5, "norm_pix_loss": True,
        "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3,
    }  # fmt: skip


def small_photos() -> dict[str, Any]:
    """Hundreds of photos and a public teacher, minutes: ViT-mini/16 at 64 pixels.

    Ours. Measured on `clothing` (341 photos of 10 classes), DINOv2 ViT-S/14 as the teacher, one core of an EPYC (AVX2)
    that others used too, some 10 minutes of processor time, of which the teacher takes 2.5 and the autoencoder 7:

        semmae pretrain --preset small-photos --data clothing --out runs/a --workers 0
        semmae knn --encoder runs/a --data clothing --out runs/a-knn --untrained --workers 0

    | k-NN, each photo among the others, top-1 %   | seed 0, 1, 2     |
    |----------------------------------------------|------------------|
    | this                                         | 48.7, 47.8, 46.6 |
    | untrained                                    | 26.1             |
    | raw pixels, 16 x 16                          | 46.0             |
    | the teacher at 224 pixels, class token       | 46.0             |

    It learned from the photos that it is measured on, without their classes; more is in docs/results.md. Epochs, batch
    and rate were chosen on seed 0.
    """
    return {
        "target": "tokens", "model": "vit_mini", "image_size": 64, "patch_size": 16, "epochs": 300, "batch_size": 32,
        "blr": 0.024, "warmup_share": 0.05, "mask_ratio": 0.5, "crop_scale": 0.6,
    }  # fmt: skip


# AdamW with betas 0.9 and 0.95, for all of them. A batch of 1024 works too: the rate follows it.
_MAE: Mapping[str, Any] = {
    "image_size": 224, "patch_size": 16, "epochs": 800, "batch_size": 4096, "blr": 1.5e-4, "warmup_share": 40 / 800,
    "weight_decay": 0.05, "mask_ratio": 0.75, "norm_pix_loss": True,
}  # fmt: skip


PRESETS = (semmae_vit_b16, semmae_vit_b8, mae_vit_b16, mae_vit_l16, small_images, small_photos)
