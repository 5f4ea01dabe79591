"""The ways in which an encoder is measured: a row each in `PROTOCOLS`, a class of this name each in a file.

Names alone stand here, which pages and tables read without what computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

OWN, UNTRAINED = "this encoder", "untrained"  # what is measured: the encoder, and the same one with new weights
TEACHER, RAW = "teacher", "raw_pixels"  # the encoder that its parts were learned from, and no encoder at all

_OF_CLASSES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mean_class": "mean of classes %",
    "images": "images",
    "classes": "classes",
}
# Where part labels come from, in the order of tables → words; grid and bands see no image.
PART_METHODS = {
    "learned": "learned parts",
    "heads": "attention heads",
    "heads_background": "attention heads and background",
    "kmeans": "k-means of tokens",
    "kmeans_centred": "k-means of tokens, image mean removed",
    "kmeans_two_steps": "k-means in two steps, object and parts",
    "grid": "fixed grid",
    "bands": "horizontal bands",
}
_COMPARED_PARTS = ("kmeans_centred", "heads", "grid")  # in tables of several protocols


@dataclass(frozen=True)
class Row:
    """What a protocol is called, and what its figures are.

    Attributes:
        title: in a table of several protocols.
        figures: every figure that it may give → words in a table. One in percent that has an interval has it under
            the same name with `_low` and `_high`.
        summary: those that stand in tables of several protocols; the first is the one by which encoders are compared.
        prefix: before the names of its figures where they stand beside those of other protocols.
    """

    title: str
    figures: Mapping[str, str]
    summary: tuple[str, ...]
    prefix: str = ""

    def words(self, figure: str) -> str:
        """What a figure is called in a table."""
        return self.figures.get(figure) or figure.replace("_", " ")

    def full_words(self, figure: str) -> str:
        """Likewise in a table of several protocols."""
        return f"{self.title}, {self.words(figure)}" if self.prefix else self.words(figure)


_SCORES = ("nmi", "ari")

PROTOCOLS: Mapping[str, Row] = MappingProxyType(
    {
        "knn": Row("k-NN", _OF_CLASSES, ("top1", "top5"), "knn_"),
        "probe": Row(
            "linear probe",
            {**_OF_CLASSES, "rate": "learning rate", "sweep": "top-1 % of each learning rate"},
            ("top1", "top5", "mean_class"),
            "probe_",
        ),
        "probe-mae": Row("linear probe as in MAE", _OF_CLASSES, ("top1", "top5", "mean_class")),
        "finetune": Row("fine-tuning", _OF_CLASSES, ("top1", "top5", "mean_class"), "finetune_"),
        "segment": Row(
            "segmentation, linear head",
            {
                "miou": "mIoU %",
                "pixel_accuracy": "pixels right %",
                "mean_class": "mean of classes %",
                "per_class": "each class",
                "images": "images",
            },
            ("miou", "pixel_accuracy"),
            "segment_",
        ),
        "parts": Row(
            "parts",
            {
                f"{method}_{score}": f"parts by {PART_METHODS[method]}, {score.upper()}"
                for method in PART_METHODS
                if method != "learned"
                for score in _SCORES
            },
            tuple(f"{method}_{score}" for method in _COMPARED_PARTS for score in _SCORES),
        ),
    }
)
