"""The options of every verb, one file a verb: each declared once, with its limits, its help and its presets.

The standard library only, so that `--help` and mistakes are answered at once: the command line, the Python call,
`config.yaml`, `--help`, the checks and the tasks all read these declarations.
"""

import importlib
from typing import Any, Literal, NamedTuple


class Verb(NamedTuple):
    """What is known of a verb beside its options and its function, for whoever meets it or its runs by name."""

    help: str  # its line in `semmae --help`
    # Patterns of the files in the folder of its run, beside those of every run: what --overwrite may delete.
    leaves: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()  # folders there that are runs themselves
    many: str = ""  # the folder there whose folders hold runs
    within: str = ""  # the one of these whose figures and networks are all that it leaves
    product: tuple[str, ...] = ()  # files that are there at its good end; none: its results show it
    checkpoint: str = ""  # how names of its encoder's tensors begin in a checkpoint; "": it keeps no encoder there
    pooling: Literal["cls", "mean"] = "cls"  # which vector says most of an image, of an encoder that it has trained
    title: str = ""  # of its curves on a page; "": its name
    # What its page says: {encoder} is "A vit_small" or "An encoder", {masking} " with semantic masking" or nothing.
    deed: str = "An encoder was measured"

    @property
    def network(self) -> str:
        """The folder of the network that it leaves; empty where it leaves none."""
        return (*self.product, "")[0].rpartition("/")[0]


def _weights(*folders: str) -> tuple[str, ...]:
    """The files of these folders of networks."""
    return tuple(
        f"{folder}/{name}" for folder in folders for name in ("model.safetensors", "config.json", "learned.txt")
    )


def _networks(*folders: str) -> tuple[str, ...]:
    """What must be in these folders for their networks to be read."""
    return tuple(f"{folder}/{name}" for folder in folders for name in ("model.safetensors", "config.json"))


_RESULTS = ("results.json", "results.md")
_CLASSES = (*_RESULTS, "per_class.csv", "confusion.png")
_COMPARED = (*_RESULTS, "results.jsonl", "minutes.json", "comparison.json", "comparison.png")

# In the order of work.
VERBS = {
    "teacher": Verb(
        "train an encoder on your own images, to learn parts from",
        leaves=_weights("encoder"),
        product=_networks("encoder"),
        checkpoint="teacher.vit.",  # of its two networks the averaged one is kept
        title="Teacher",
        deed="{encoder} was trained as a teacher, by self-distillation without labels,",
    ),
    "parts": Verb(
        "learn semantic parts from a frozen encoder, label every image",
        leaves=(
            *_weights("learner"),
            *("parts.npy", "attention.npy", "parts.json", "quality.json"),
            *("parts.html", "parts.png", "pictures/parts.npz"),
        ),
        product=("parts.npy", "parts.json"),
        title="Parts",
        deed="Semantic parts were learned from a frozen encoder",
    ),
    "pretrain": Verb(
        "pre-train a masked autoencoder with semantic-guided masking",
        leaves=(
            *_weights("encoder", "autoencoder"),
            *("pictures/masks.png", "pictures/reconstructions.png", "teacher_tokens/tokens.safetensors"),
        ),
        runs=("teacher", "parts"),
        product=_networks("encoder", "autoencoder"),
        checkpoint="mae.encoder.vit.",
        pooling="mean",
        title="Masked autoencoder",
        deed="{encoder} was pre-trained as a masked autoencoder{masking}",
    ),
    "knn": Verb("measure an encoder by k-NN", leaves=_RESULTS),
    "probe": Verb(
        "measure an encoder by a linear head on its features",
        leaves=(*_weights("head"), *_CLASSES),
        runs=("untrained",),
        product=_networks("head"),
    ),
    "finetune": Verb(
        "train an encoder on to classify, and measure how well it does",
        leaves=(*_weights("classifier"), *_CLASSES),
        runs=("untrained",),
        product=_networks("classifier"),
        title="Fine-tuning",
        deed="An encoder was fine-tuned to classify images",
    ),
    "segment": Verb(
        "train an encoder to classify every pixel, and measure how well it does",
        leaves=(*_weights("segmenter"), *_RESULTS, "per_class.csv", "predictions.png"),
        runs=("untrained",),
        product=_networks("segmenter"),
        title="Segmentation",
        deed="An encoder was trained to classify every pixel",
    ),
    "evaluate": Verb(
        "measure an encoder by k-NN, probe and, with annotations, segmentation and parts: one table",
        leaves=(*_RESULTS, "figures.json"),
        runs=("untrained", "knn", "probe", "segment"),
    ),
    "compare": Verb(
        "compare maskings: equal weights, crops and budget, several seeds, intervals",
        leaves=(
            *_COMPARED,
            *(f"labels/*/{name}" for name in ("parts.npy", "attention.npy", "parts.json")),
            *(f"finetune/{name}" for name in ("metrics.jsonl", "summary.json", "skipped.csv", "checkpoints/last.ckpt")),
            *_weights("finetune/classifier"),
        ),
        runs=("teacher", "parts", "measured"),
        many="runs",
        deed="The maskings were compared",
    ),
    "embed": Verb(
        "write features of every image: class, mean, patch or part tokens",
        leaves=("features.safetensors", "state.json"),
    ),
    "reconstruct": Verb("draw what a masked autoencoder makes of hidden patches"),
    "export": Verb("the encoder, or the autoencoder, for timm, MAE, Hugging Face or ONNX"),
    "pack": Verb("images in tar shards: smaller, fast to read from any disk or store"),
    "report": Verb("one HTML page about a run"),
    "demo": Verb(
        "the whole way in minutes, without data of your own",
        leaves=("creatures/images/*/*.png", "creatures/masks/*/*.png", "creatures/classes.json"),
        runs=("teacher", "run"),
        within="run",
        deed="The demo was run",
    ),
}


def kind_of(verb: str) -> type[Any]:
    """The frozen dataclass of a verb's options; its docstring says what the verb does."""
    kind: type[Any] = getattr(importlib.import_module(f"semmae.options.{verb}"), f"{verb.capitalize()}Options")
    return kind
