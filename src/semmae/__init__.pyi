"""What type checkers and editors see of semmae; `__init__.py` looks the same names up on first use.

A verb takes its options as keyword arguments: those of its dataclass, `semmae.commands.VERB.VerbOptions`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from semmae import losses as losses
from semmae import masking as masking
from semmae import patches as patches
from semmae.checkpoint import read_learner as read_learner
from semmae.checkpoint import save_autoencoder as save_autoencoder
from semmae.checkpoint import save_classifier as save_classifier
from semmae.checkpoint import save_encoder as save_encoder
from semmae.checkpoint import save_learner as save_learner
from semmae.data.augment import LabelledCrops as LabelledCrops
from semmae.data.augment import augmentation as augmentation
from semmae.data.loaders import CropDataset as CropDataset
from semmae.data.loaders import EpochSampler as EpochSampler
from semmae.data.loaders import WholeDataset as WholeDataset
from semmae.data.loaders import denormalise as denormalise
from semmae.data.loaders import make_loader as make_loader
from semmae.data.loaders import normalise as normalise
from semmae.data.manifest import ImageSet as ImageSet
from semmae.data.manifest import open_images as open_images
from semmae.data.part_store import PartStore as PartStore
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
from semmae.evaluation.quality import quality as _quality
from semmae.evaluation.quality import read_masks as read_masks
from semmae.evaluation.tokens import image_tokens as image_tokens
from semmae.evaluation.tokens import pool_parts as pool_parts
from semmae.loading import load_classifier as load_classifier
from semmae.loading import load_encoder as load_encoder
from semmae.loading import load_head as load_head
from semmae.loading import load_mae as load_mae
from semmae.loading import load_segmenter as load_segmenter
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
from semmae.models.vit import Encoder as Encoder
from semmae.models.vit import EncoderSpec as EncoderSpec
from semmae.models.vit import Features as Features
from semmae.tasks.masks import MaskContext as MaskContext
from semmae.tasks.masks import draw_mask as draw_mask
from semmae.tasks.masks import mask_seed as mask_seed
from semmae.tasks.optimizer import adamw as adamw
from semmae.tasks.optimizer import warmup_cosine_rate as warmup_cosine_rate
from semmae.tasks.part_losses import PartsRecipe as PartsRecipe
from semmae.tasks.part_losses import agreement_loss as agreement_loss
from semmae.tasks.part_losses import parts_losses as parts_losses

__version__: str
VERBS: dict[str, str]
BLOCKS: dict[str, tuple[str, str]]

part_quality = _quality

def load_verb(verb: str) -> tuple[type[Any], Callable[[Any], Path]]: ...
def teacher(*args: Any, **options: Any) -> Path: ...
def parts(*args: Any, **options: Any) -> Path: ...
def pretrain(*args: Any, **options: Any) -> Path: ...
def knn(*args: Any, **options: Any) -> Path: ...
def probe(*args: Any, **options: Any) -> Path: ...
def finetune(*args: Any, **options: Any) -> Path: ...
def segment(*args: Any, **options: Any) -> Path: ...
def evaluate(*args: Any, **options: Any) -> Path: ...
def embed(*args: Any, **options: Any) -> Path: ...
def reconstruct(*args: Any, **options: Any) -> Path: ...
def export(*args: Any, **options: Any) -> Path: ...
def report(*args: Any, **options: Any) -> Path: ...
def demo(*args: Any, **options: Any) -> Path: ...
