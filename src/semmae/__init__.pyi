"""What type checkers and editors see of semmae; `__init__.py` looks the same names up on first use.

Written by `make stub`. `= ...` is an option that a verb needs, but that --config, or the run to --resume, may tell.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from semmae import losses as losses
from semmae import masking as masking
from semmae import patches as patches
from semmae.data.augment import LabelledCrops as LabelledCrops
from semmae.data.augment import augmentation as augmentation
from semmae.data.coding import Coding as _MaskCoding
from semmae.data.loaders import CropDataset as CropDataset
from semmae.data.loaders import EpochSampler as EpochSampler
from semmae.data.loaders import WholeDataset as WholeDataset
from semmae.data.loaders import denormalise as denormalise
from semmae.data.loaders import make_loader as make_loader
from semmae.data.loaders import normalise as normalise
from semmae.data.manifest import ImageSet as ImageSet
from semmae.data.manifest import open_images as open_images
from semmae.data.part_store import PartStore as PartStore
from semmae.data.segment_crops import SegmentCrops as SegmentCrops
from semmae.data.segment_crops import WholeLabelled as WholeLabelled
from semmae.data.segmentation import LabelledImages as LabelledImages
from semmae.data.segmentation import SegmentationData as SegmentationData
from semmae.data.segmentation import open_segmentation as open_segmentation
from semmae.data.splits import held_out as held_out
from semmae.errors import UserError as UserError
from semmae.evaluation.accuracy import class_report as class_report
from semmae.evaluation.accuracy import confusion_matrix as confusion_matrix
from semmae.evaluation.baselines import cluster_labels as cluster_labels
from semmae.evaluation.baselines import fit_clusters as fit_clusters
from semmae.evaluation.baselines import head_labels as head_labels
from semmae.evaluation.features import extract as extract
from semmae.evaluation.features import raw_pixels as raw_pixels
from semmae.evaluation.keypoints import keypoint_quality as keypoint_quality
from semmae.evaluation.keypoints import read_keypoints as read_keypoints
from semmae.evaluation.knn import knn_accuracy as knn_accuracy
from semmae.evaluation.knn import knn_scores as knn_scores
from semmae.evaluation.linear import probe_features as probe_features
from semmae.evaluation.quality import fixed_grid as fixed_grid
from semmae.evaluation.quality import quality as _part_quality
from semmae.evaluation.quality import read_masks as read_masks
from semmae.evaluation.segmentation import evaluate as _segmentation_table
from semmae.evaluation.segmentation import figures as _segmentation_figures
from semmae.evaluation.segmentation import slide as _sliding_logits
from semmae.evaluation.tokens import image_tokens as image_tokens
from semmae.evaluation.tokens import pool_parts as pool_parts
from semmae.formats.folders import digest as digest
from semmae.formats.folders import read_learner as read_learner
from semmae.formats.folders import save_autoencoder as save_autoencoder
from semmae.formats.folders import save_classifier as save_classifier
from semmae.formats.folders import save_encoder as save_encoder
from semmae.formats.folders import save_head as save_head
from semmae.formats.folders import save_learner as save_learner
from semmae.formats.folders import save_segmenter as save_segmenter
from semmae.formats.open import load_classifier as load_classifier
from semmae.formats.open import load_encoder as load_encoder
from semmae.formats.open import load_head as load_head
from semmae.formats.open import load_mae as load_mae
from semmae.formats.open import load_segmenter as load_segmenter
from semmae.losses import concentration_loss as concentration_loss
from semmae.losses import diversity_loss as diversity_loss
from semmae.losses import feature_loss as feature_loss
from semmae.losses import masked_pixel_loss as masked_pixel_loss
from semmae.losses import mutual_information_loss as mutual_information_loss
from semmae.losses import reconstruction_loss as reconstruction_loss
from semmae.losses import total_variation_loss as total_variation_loss
from semmae.masking import attention_mask as attention_mask
from semmae.masking import block_mask as block_mask
from semmae.masking import hide_highest as hide_highest
from semmae.masking import most_attended as most_attended
from semmae.masking import num_hidden as num_hidden
from semmae.masking import part_counts as part_counts
from semmae.masking import part_quotas as part_quotas
from semmae.masking import random_mask as random_mask
from semmae.masking import semantic_mask as semantic_mask
from semmae.memory import keep_freed_memory as keep_freed_memory
from semmae.models.classifier import Classifier as Classifier
from semmae.models.head import HeadSpec as HeadSpec
from semmae.models.head import LinearHead as LinearHead
from semmae.models.head import pool as pool
from semmae.models.mae import DecoderSpec as DecoderSpec
from semmae.models.mae import MAEOutput as MAEOutput
from semmae.models.mae import MaskedAutoencoder as MaskedAutoencoder
from semmae.models.parts import PartLearner as PartLearner
from semmae.models.parts import PartsOutput as PartsOutput
from semmae.models.parts import PartsSpec as PartsSpec
from semmae.models.segmenter import Segmenter as Segmenter
from semmae.models.segmenter import SegmenterSpec as SegmenterSpec
from semmae.models.vit import Encoder as Encoder
from semmae.models.vit import EncoderSpec as EncoderSpec
from semmae.models.vit import Features as Features
from semmae.reporting.pictures import masks_picture as masks_picture
from semmae.reporting.pictures import parts_picture as parts_picture
from semmae.reporting.pictures import reconstructions_picture as reconstructions_picture
from semmae.reporting.pictures import segmentation_picture as segmentation_picture
from semmae.train.masks import MaskContext as MaskContext
from semmae.train.masks import draw_mask as draw_mask
from semmae.train.masks import mask_seed as mask_seed
from semmae.train.optimizer import adamw as adamw
from semmae.train.optimizer import warmup_cosine_rate as warmup_cosine_rate
from semmae.train.part_losses import PartsRecipe as PartsRecipe
from semmae.train.part_losses import agreement_loss as agreement_loss
from semmae.train.part_losses import parts_losses as parts_losses
from semmae.train.precision import resolve_precision as resolve_precision

__version__: str
VERBS: dict[str, str]
BLOCKS: dict[str, tuple[str, str]]

_OwnMask = Callable[[MaskContext], Tensor]
MaskCoding = _MaskCoding
part_quality = _part_quality
segmentation_figures = _segmentation_figures
segmentation_table = _segmentation_table
sliding_logits = _sliding_logits

def load_verb(verb: str) -> tuple[type[Any], Callable[[Any], Path]]: ...
def teacher(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 64,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, model: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] = "vit_small",
    image_size: int = 224, patch_size: int = 16, preset: str | Path | None = None, epochs: int = 100,
    blr: float = 0.004, warmup_share: float = 0.1, weight_decay: float = 0.04, weight_decay_end: float = 0.4,
    clip: float = 3.0, momentum: float = 0.97, crop_scale: float = 0.25, local_crops: int = 0,
    local_size: int | None = None, ibot: float = 1.0, masking: Literal["block", "random"] = "block",
    mask_ratio: float = 0.3, mask_spread: float = 0.2, mask_share: float = 0.5, koleo: float = 0.5,
    centering: Literal["centering", "sinkhorn"] = "centering", teacher_temp: float = 0.04,
    warmup_teacher_temp: float = 0.04, temp_warmup_share: float = 0.1, prototypes: int = 1024, head_width: int = 1024,
    shared_head: bool = True, norm_last_layer: bool = True, frozen_share: float = 0.1, learned_positions: bool = False,
    init: str | Path | None = None, num_heads: int | None = None, knn_every: int = 10,
) -> Path:  # fmt: skip
    """Train an encoder on your own images, without labels (DINO and iBOT self-distillation)."""

def parts(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 64,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, teacher: str | Path | None = None, num_heads: int | None = None, image_size: int | None = None,
    grid: int = 28, learner: str | Path | None = None, tokens: str | Path | None = None, labels_only: bool = False,
    quality_only: bool = False, export_png: str | Path | None = None, export_size: Literal["grid", "image"] = "grid",
    preset: str | Path | None = None, epochs: int = 20, sample: int | None = None, num_parts: int = 6,
    background: bool = True, start: Literal["heads", "random"] = "heads",
    normalise: Literal["parts", "patches"] = "parts", blur: int = 3, decoder_width: int = 96,
    output: Literal["half", "full"] = "half", reconstruction: Literal["mse", "l1", "features"] = "mse",
    diversity: float = 0.1, agreement: float = 0.3, concentration: float = 0.0, total_variation: float = 0.0,
    hue: float = 0.5, lr: float = 0.003, weight_decay: float = 0.0, warmup_share: float = 0.05,
    schedule: Literal["cosine", "constant"] = "cosine", masks: str | Path | None = None,
    keypoints: str | Path | None = None, quality_images: int = 2000,
) -> Path:  # fmt: skip
    """Learn semantic parts from a frozen encoder and label every image with them."""

def pretrain(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 64,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, model: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] = "vit_small",
    image_size: int = 224, patch_size: int = 16,
    masking: Literal["semantic", "intra", "inter", "random", "block", "attention"] | str | Path | _OwnMask = "semantic",
    mask_ratio: float = 0.75, gamma: float = 2.0, blend: float | None = None, attention_hint: float = 0.0,
    token_subset: int | None = None, parts: str | Path | None = None, teacher: str | Path | None = None,
    preset: str | Path | None = None, epochs: int = 400, blr: float = 0.00015, weight_decay: float = 0.05,
    warmup_share: float = 0.05, clip: float = 0.0, checkpointing: bool = False,
    compile: Literal["auto", "on", "off"] = "auto", crop_scale: float = 0.2, norm_pix_loss: bool = True,
    decoder_width: int | None = None, decoder_depth: int | None = None, decoder_heads: int | None = None,
    init: str | Path | None = None, num_heads: int | None = None, num_parts: int = 6, masks: str | Path | None = None,
    teacher_epochs: int | None = None, teacher_image_size: int | None = None, parts_epochs: int | None = None,
    parts_preset: str | Path | None = None,
) -> Path:  # fmt: skip
    """Pre-train a masked autoencoder with semantic-guided masking, learning the parts first if need be."""

def knn(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, encoder: str | Path = ..., data: str | Path = ..., num_heads: int | None = None,
    image_size: int | None = None, limit: int | None = None, batch_size: int = 128, crop_pct: float = 1.0,
    pooling: Literal["auto", "cls", "mean"] = "auto", precision: Literal["auto", "float32", "bf16", "fp16"] = "auto",
    k: int = 20, temperature: float = 0.07, untrained: bool = False, preset: str | Path | None = None,
) -> Path:  # fmt: skip
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""

def probe(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 256,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, encoder: str | Path = ..., num_heads: int | None = None, image_size: int | None = None,
    preset: str | Path | None = None, protocol: Literal["features", "mae"] = "features",
    pooling: Literal["auto", "cls", "mean"] = "auto", epochs: int | None = None, blr: float = 0.1,
    warmup_share: float = 0.1111111111111111, crop_scale: float = 0.08, crop_pct: float | None = None,
    lr: float | None = None, choice_share: float = 0.1, flip: bool = False, val_share: float = 0.2,
    untrained: bool = False,
) -> Path:  # fmt: skip
    """Measure an encoder by a linear head on its features: MAE's linear probe, or a fast one."""

def finetune(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 64,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, encoder: str | Path = ..., num_heads: int | None = None, image_size: int | None = None,
    crop_pct: float | None = None, preset: str | Path | None = None, epochs: int = 100, blr: float = 0.0005,
    min_lr: float = 1e-06, warmup_share: float = 0.05, layer_decay: float = 0.65, weight_decay: float = 0.05,
    clip: float = 0.0, pooling: Literal["cls", "mean"] = "mean", drop_path: float = 0.1,
    augment: str | Path = "rand-m9-mstd0.5-inc1", crop_scale: float = 0.08, mixup: float = 0.8, cutmix: float = 1.0,
    erasing: float = 0.25, label_smoothing: float = 0.1, ema: float = 0.0, balanced: bool = False,
    val_share: float = 0.2, val_every: int = 5, checkpointing: bool = False,
    compile: Literal["auto", "on", "off"] = "auto", untrained: bool = False, eval_only: bool = False,
) -> Path:  # fmt: skip
    """Fine-tune an encoder to tell classes (the first folders, or the label column), and measure it."""

def segment(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path = ..., limit: int | None = None, batch_size: int = 16,
    accumulate: int = 1, precision: Literal["auto", "float32", "bf16", "fp16"] = "auto", devices: int = 1,
    nodes: int = 1, encoder: str | Path = ..., num_heads: int | None = None, image_size: int | None = None,
    preset: str | Path | None = None, head: Literal["upernet", "linear"] = "upernet", steps: int = 2000,
    val_steps: int | None = None, lr: float | None = None, weight_decay: float = 0.05, layer_decay: float = 0.65,
    drop_path: float = 0.1, warmup_share: float = 0.05, clip: float = 0.0, checkpointing: bool = False,
    blocks: str | Path | None = None, decoder_channels: int | None = None, aux_weight: float = 0.4,
    ignore_index: int = 255, reduce_zero_label: bool = False, val_share: float = 0.2, min_scale: float = 0.5,
    max_scale: float = 2.0, most_of_one: float = 0.75, colour: bool = True, stride: float = 0.6666666666666666,
    pictures: int = 8, untrained: bool = False, eval_only: bool = False,
) -> Path:  # fmt: skip
    """Train semantic segmentation on an encoder, or only measure it: mIoU, IoU of each class, pictures."""

def evaluate(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, encoder: str | Path = ..., data: str | Path = ..., num_heads: int | None = None,
    image_size: int | None = None, limit: int | None = None, batch_size: int = 128, crop_pct: float = 1.0,
    pooling: Literal["auto", "cls", "mean"] = "auto", precision: Literal["auto", "float32", "bf16", "fp16"] = "auto",
    k: int = 20, temperature: float = 0.07, untrained: bool = True, val_share: float = 0.2,
    masks: str | Path | None = None, ignore_index: int = 255, reduce_zero_label: bool = False, steps: int = 500,
) -> Path:  # fmt: skip
    """Measure an encoder by k-NN, linear probe and, where masks are given, segmentation and part quality."""

def embed(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, encoder: str | Path = ..., data: str | Path = ..., num_heads: int | None = None,
    image_size: int | None = None, limit: int | None = None, batch_size: int = 128, crop_pct: float = 1.0,
    tokens: str | Path = "auto", parts: str | Path | None = None, dtype: Literal["float32", "float16"] = "float32",
) -> Path:  # fmt: skip
    """Write features of every image to a .parquet, .npz or .safetensors file."""

def reconstruct(
    *, autoencoder: str | Path, data: str | Path, out: str | Path, images: int = 8, mask_ratio: float = 0.75,
    token_subset: int | None = None, image_size: int | None = None, num_heads: int | None = None,
    decoder_num_heads: int | None = None, seed: int = 0, workers: int = 2, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Draw images, what is visible of them, and what a masked autoencoder makes of the rest."""

def export(
    *, encoder: str | Path, to: Literal["timm", "mae", "hf", "onnx"], out: str | Path,
    decoder: Literal["auto", "with", "without"] = "auto", head: bool = True, num_heads: int | None = None,
    decoder_num_heads: int | None = None, image_size: int | None = None, results: str | Path | None = None,
    push_to_hub: str | Path | None = None, private: bool = False, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write an encoder, with its decoder or the head of a classifier, for timm, MAE, Hugging Face or ONNX."""

def report(
    run: str | Path,
) -> Path:  # fmt: skip
    """Write report.html for a run: losses, learning rate, parts, masks, reconstructions; and its parts.html."""

def demo(
    *, out: str | Path = ..., seed: int = 0, workers: int = 2, config: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, data: str | Path | None = None, masks: str | Path | None = None, images: int = 800,
    model: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] = "vit_tiny", image_size: int = 64,
    patch_size: int = 8, epochs: int = 10, teacher_epochs: int = 6, teacher_image_size: int = 32, parts_epochs: int = 6,
    batch_size: int = 32, blr: float = 0.004,
) -> Path:  # fmt: skip
    """Show the whole way in minutes: teacher, parts, masked autoencoder, k-NN, report."""
