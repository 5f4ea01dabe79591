"""SemMAE (arXiv 2206.10207): semantic-guided masking for masked autoencoders.

Each verb of the command line is a function here, with the same names:
`semmae.pretrain(data="photos", out="runs/a", epochs=100)`. Building blocks are here too, each usable alone in a
plain PyTorch loop: `from semmae import semantic_mask, PartLearner, load_encoder`.

All of them are looked up on first use, so that importing semmae imports no network library. What type checkers and
editors see of them is in `__init__.pyi`, which `make stub` writes from what is declared here and at the verbs.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In the order of work; the text is the verb's line in `semmae --help`.
VERBS = {
    "teacher": "train an encoder on your own images, to learn parts from",
    "parts": "learn semantic parts from a frozen encoder, label every image",
    "pretrain": "pre-train a masked autoencoder with semantic-guided masking",
    "knn": "measure an encoder by k-NN",
    "probe": "measure an encoder by a linear head on its features",
    "finetune": "train an encoder on to tell classes, and measure how well it does",
    "segment": "train an encoder to tell the class of every pixel, and measure how well it does",
    "evaluate": "measure an encoder by k-NN, probe and, with masks, segmentation and parts: one table",
    "embed": "write features of every image: class, mean, patch or part tokens",
    "reconstruct": "draw what a masked autoencoder makes of hidden patches",
    "export": "the encoder, or the autoencoder, for timm, MAE, Hugging Face or ONNX",
    "report": "one HTML page about a run",
    "demo": "the whole way in minutes, without data of your own",
}
# Building blocks by the module below semmae that defines them; "a as b": its `a` is `semmae.b`.
_FROM = {
    "masking": (
        *("attention_mask", "block_mask", "hide_highest", "most_attended", "num_hidden", "part_counts", "part_quotas"),
        *("random_mask", "semantic_mask"),
    ),
    "train.masks": ("MaskContext", "draw_mask", "mask_seed"),
    "models.vit": ("Encoder", "EncoderSpec", "Features"),
    "models.classifier": ("Classifier",),
    "models.head": ("HeadSpec", "LinearHead", "pool"),
    "models.mae": ("DecoderSpec", "MAEOutput", "MaskedAutoencoder"),
    "models.parts": ("PartLearner", "PartsOutput", "PartsSpec"),
    "models.segmenter": ("Segmenter", "SegmenterSpec"),
    "losses": (
        *("concentration_loss", "diversity_loss", "feature_loss", "masked_pixel_loss", "mutual_information_loss"),
        *("reconstruction_loss", "total_variation_loss"),
    ),
    "train.part_losses": ("PartsRecipe", "agreement_loss", "parts_losses"),
    "train.optimizer": ("adamw", "warmup_cosine_rate"),
    "train.precision": ("resolve_precision",),
    "data.augment": ("LabelledCrops", "augmentation"),
    "data.manifest": ("ImageSet", "open_images"),
    "data.loaders": ("CropDataset", "EpochSampler", "WholeDataset", "denormalise", "make_loader", "normalise"),
    "data.transform": ("ImageTransform",),
    "data.part_store": ("PartStore",),
    "data.splits": ("held_out",),
    "data.coding": ("Coding as MaskCoding",),
    "data.segmentation": ("LabelledImages", "SegmentationData", "open_segmentation"),
    "data.segment_crops": ("SegmentCrops", "WholeLabelled"),
    "evaluation.features": ("embed_images", "extract", "raw_pixels"),
    "evaluation.knn": ("knn_accuracy", "knn_scores"),
    "evaluation.accuracy": ("class_report", "confusion_matrix"),
    "evaluation.linear": ("probe_features",),
    "evaluation.tokens": ("image_tokens", "pool_parts"),
    "evaluation.segmentation": (
        "evaluate as segmentation_table",
        "figures as segmentation_figures",
        "slide as sliding_logits",
    ),
    "evaluation.quality": ("fixed_grid", "quality as part_quality", "read_masks"),
    "evaluation.keypoints": ("keypoint_quality", "read_keypoints"),
    "evaluation.baselines": ("cluster_labels", "fit_clusters", "head_labels"),
    "formats.folders": (
        *("digest", "read_learner", "save_autoencoder", "save_classifier", "save_encoder", "save_head", "save_learner"),
        "save_segmenter",
    ),
    "formats.open": ("load_classifier", "load_encoder", "load_head", "load_mae", "load_segmenter"),
    "reporting.pictures": ("masks_picture", "parts_picture", "reconstructions_picture", "segmentation_picture"),
    "memory": ("keep_freed_memory",),
    "errors": ("UserError",),
}
# Name here → (module, name there).
BLOCKS = {
    entry.split(" as ")[-1]: (f"semmae.{module}", entry.split(" as ")[0])
    for module, entries in _FROM.items()
    for entry in entries
}
_MODULES = ("losses", "masking", "patches")  # also reached as semmae.masking.random_mask

__all__ = [*VERBS, *BLOCKS, *_MODULES, "__version__"]


def load_verb(verb: str) -> tuple[type[Any], Callable[[Any], Path]]:
    """A verb's options (a frozen dataclass) and its function."""
    module = importlib.import_module(f"semmae.verbs.{verb}")
    return getattr(module, f"{verb.capitalize()}Options"), getattr(module, verb)


def __getattr__(name: str) -> Any:
    """Verbs and building blocks on first use."""
    if name in VERBS:
        found: Any = _as_call(name)
    elif name in BLOCKS:
        module, there = BLOCKS[name]
        found = getattr(importlib.import_module(module), there)
    elif name in _MODULES:
        found = importlib.import_module(f"semmae.{name}")
    else:
        raise AttributeError(f"module 'semmae' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _as_call(verb: str) -> Callable[..., Path]:
    """The Python call of a verb: its options as keyword arguments, from the one declaration."""
    from semmae.memory import memory_given_back
    from semmae.presets import preset_options
    from semmae.verbs.options import as_kwargs

    kind, function = load_verb(verb)
    preset = functools.partial(preset_options, verb)

    def call(*args: Any, **options: Any) -> Path:
        bound = inspect.signature(kind).bind_partial(*args)
        with memory_given_back():
            return function(kind(**as_kwargs({**bound.arguments, **options}, kind, preset)))

    call.__name__ = call.__qualname__ = verb
    call.__doc__ = function.__doc__
    call.__signature__ = inspect.signature(kind).replace(return_annotation=Path)  # type: ignore[attr-defined]
    return call
