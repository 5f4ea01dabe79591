"""The options of every verb, one file a verb: each declared once, with its limits, its help and its presets.

The standard library only, so that `--help` and mistakes are answered at once: the command line, the Python call,
`config.yaml`, `--help`, the checks and the tasks all read these declarations.
"""

import importlib
from typing import Any

# In the order of work; the text is the verb's line in `semmae --help`.
VERBS = {
    "teacher": "train an encoder on your own images, to learn parts from",
    "parts": "learn semantic parts from a frozen encoder, label every image",
    "pretrain": "pre-train a masked autoencoder with semantic-guided masking",
    "knn": "measure an encoder by k-NN",
    "probe": "measure an encoder by a linear head on its features",
    "finetune": "train an encoder on to classify, and measure how well it does",
    "segment": "train an encoder to classify every pixel, and measure how well it does",
    "evaluate": "measure an encoder by k-NN, probe and, with annotations, segmentation and parts: one table",
    "embed": "write features of every image: class, mean, patch or part tokens",
    "reconstruct": "draw what a masked autoencoder makes of hidden patches",
    "export": "the encoder, or the autoencoder, for timm, MAE, Hugging Face or ONNX",
    "report": "one HTML page about a run",
    "demo": "the whole way in minutes, without data of your own",
}


def kind_of(verb: str) -> type[Any]:
    """The frozen dataclass of a verb's options; its docstring says what the verb does."""
    kind: type[Any] = getattr(importlib.import_module(f"semmae.options.{verb}"), f"{verb.capitalize()}Options")
    return kind
