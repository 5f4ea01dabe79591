"""SemMAE (arXiv 2206.10207): semantic-guided masking for masked autoencoders.

Each verb of the command line is a function here, with the same names:
`semmae.pretrain(data="photos", out="runs/a", epochs=100)`. Building blocks are here too, each usable alone in a
plain PyTorch loop: `from semmae import semantic_mask, PartLearner, load_encoder`.

Both are imported on first use, so that `semmae --help` waits for no network library. Building blocks are declared once,
below TYPE_CHECKING: type checkers read it, and so does `__getattr__`.
"""

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semmae.options import VERBS

if TYPE_CHECKING:
    from semmae import losses as losses, masking as masking, patches as patches
    from semmae.calls import *
    from semmae.data.augment import LabelledCrops as LabelledCrops, augmentation as augmentation
    from semmae.data.coding import Coding as AnnotationCoding
    from semmae.data.loaders import (
        CropDataset as CropDataset,
        WholeDataset as WholeDataset,
        denormalise as denormalise,
        make_loader as make_loader,
        normalise as normalise,
    )
    from semmae.data.manifest import ImageSet as ImageSet, open_images as open_images
    from semmae.data.part_store import PartStore as PartStore
    from semmae.data.samplers import EpochSampler as EpochSampler, StepSampler as StepSampler
    from semmae.data.segment_crops import SegmentCrops as SegmentCrops, WholeLabelled as WholeLabelled
    from semmae.data.segmentation import (
        LabelledImages as LabelledImages,
        SegmentationData as SegmentationData,
        open_segmentation as open_segmentation,
    )
    from semmae.data.splits import held_out as held_out
    from semmae.data.token_store import TokenDataset as TokenDataset
    from semmae.data.transform import ImageTransform as ImageTransform
    from semmae.errors import UserError as UserError
    from semmae.evaluation.accuracy import class_report as class_report, confusion_matrix as confusion_matrix
    from semmae.evaluation.baselines import cluster_labels as cluster_labels, head_labels as head_labels
    from semmae.evaluation.features import embed_images as embed_images, extract as extract, raw_pixels as raw_pixels
    from semmae.evaluation.keypoints import keypoint_quality as keypoint_quality, read_keypoints as read_keypoints
    from semmae.evaluation.knn import knn_accuracy as knn_accuracy, knn_scores as knn_scores
    from semmae.evaluation.linear import probe_features as probe_features
    from semmae.evaluation.quality import (
        fixed_grid as fixed_grid,
        quality as part_quality,
        read_annotations as read_annotations,
    )
    from semmae.evaluation.segmentation import (
        evaluate as segmentation_table,
        figures as segmentation_figures,
        slide as sliding_logits,
    )
    from semmae.evaluation.tokens import image_tokens as image_tokens, pool_parts as pool_parts
    from semmae.filters import guided_filter as guided_filter, guides as guides, refine_maps as refine_maps
    from semmae.formats.folders import (
        digest as digest,
        read_learner as read_learner,
        save_autoencoder as save_autoencoder,
        save_classifier as save_classifier,
        save_encoder as save_encoder,
        save_head as save_head,
        save_learner as save_learner,
        save_segmenter as save_segmenter,
    )
    from semmae.formats.open import (
        load_classifier as load_classifier,
        load_encoder as load_encoder,
        load_head as load_head,
        load_mae as load_mae,
        load_segmenter as load_segmenter,
    )
    from semmae.losses import (
        diversity_loss as diversity_loss,
        masked_pixel_loss as masked_pixel_loss,
        rebuild_loss as rebuild_loss,
        reconstruction_loss as reconstruction_loss,
        total_variation_loss as total_variation_loss,
    )
    from semmae.masking import (
        attention_mask as attention_mask,
        block_mask as block_mask,
        colour_mask as colour_mask,
        green_noise as green_noise,
        hide_highest as hide_highest,
        most_attended as most_attended,
        num_hidden as num_hidden,
        part_counts as part_counts,
        part_quotas as part_quotas,
        random_mask as random_mask,
        semantic_mask as semantic_mask,
    )
    from semmae.memory import keep_freed_memory as keep_freed_memory
    from semmae.models.classifier import Classifier as Classifier
    from semmae.models.head import HeadSpec as HeadSpec, LinearHead as LinearHead, pool as pool
    from semmae.models.mae import (
        DecoderSpec as DecoderSpec,
        MAEOutput as MAEOutput,
        MaskedAutoencoder as MaskedAutoencoder,
    )
    from semmae.models.parts import PartLearner as PartLearner, PartsSpec as PartsSpec, PartTokens as PartTokens
    from semmae.models.published_parts import (
        PublishedPartLearner as PublishedPartLearner,
        PublishedPartsSpec as PublishedPartsSpec,
    )
    from semmae.models.segmenter import Segmenter as Segmenter, SegmenterSpec as SegmenterSpec
    from semmae.models.vit import (
        Encoder as Encoder,
        EncoderSpec as EncoderSpec,
        Features as Features,
        TokenViews as TokenViews,
    )
    from semmae.options.parts import PartsRecipe as PartsRecipe
    from semmae.reporting.pictures import (
        masks_picture as masks_picture,
        parts_picture as parts_picture,
        reconstructions_picture as reconstructions_picture,
        segmentation_picture as segmentation_picture,
    )
    from semmae.train.masks import MaskContext as MaskContext, draw_mask as draw_mask, mask_seed as mask_seed
    from semmae.train.optimizer import adamw as adamw, warmup_cosine_rate as warmup_cosine_rate
    from semmae.train.parts import parts_losses as parts_losses
    from semmae.train.precision import resolve_precision as resolve_precision
    from semmae.train.published_parts import published_parts_losses as published_parts_losses

__version__ = "0.1.0"


@functools.cache
def _blocks() -> dict[str, tuple[str, str]]:
    """By name here, the module of a building block and its name there."""
    import ast

    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    (declared,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in declared.body
        if isinstance(node, ast.ImportFrom) and node.module != "semmae.calls"
        for alias in node.names
    }


def __getattr__(name: str) -> Any:
    """Verbs and building blocks on first use."""
    if name == "__all__":
        return __dir__()
    if name in VERBS:
        found: Any = getattr(importlib.import_module("semmae.calls"), name)
    elif name.startswith("__") or name not in _blocks():
        raise AttributeError(f"module 'semmae' has no attribute {name!r}")
    else:
        module, there = _blocks()[name]
        here = module == "semmae"  # a module of building blocks
        found = importlib.import_module(f"semmae.{name}") if here else getattr(importlib.import_module(module), there)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*VERBS, *_blocks(), "__version__"})
