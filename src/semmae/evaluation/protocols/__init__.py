"""The ways in which an encoder is measured: a row each in `PROTOCOLS`, a class each in a file of this folder.

Names alone stand here, which pages and tables read without what computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from semmae.evaluation.protocols.shape import Protocol

OWN, UNTRAINED = "this encoder", "untrained"  # what is measured: the encoder, and the same one with new weights

_OF_CLASSES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mean_class": "mean of classes %",
    "images": "images",
    "classes": "classes",
}
_METHODS = {
    "kmeans_centred": "k-means of tokens, image mean removed",
    "heads": "attention heads",
    "grid": "a fixed grid (sees no image)",
    "heads_background": "attention heads and background",
    "kmeans": "k-means of tokens",
    "bands": "horizontal bands (see no image)",
}


@dataclass(frozen=True)
class Row:
    """What a protocol is called, and what its figures are.

    Attributes:
        title: in a table of several protocols.
        place: its class, `module:name` in this package.
        reads: what it measures by: classes of whole images, or annotations of their pixels.
        figures: every figure that it may give → words in a table. One in percent that has an interval has it under
            the same name with `_low` and `_high`.
        summary: those that stand in tables of several protocols; the first is the one by which encoders are compared.
        prefix: before the names of its figures where they stand beside those of other protocols.
    """

    title: str
    place: str
    reads: Literal["classes", "annotations"]
    figures: Mapping[str, str]
    summary: tuple[str, ...]
    prefix: str = ""

    @property
    def protocol(self) -> "type[Protocol[Any]]":
        """Its class, imported only now."""
        module, _, name = self.place.partition(":")
        found: type[Protocol[Any]] = getattr(import_module(f"{__name__}.{module}"), name)
        return found

    def words(self, figure: str) -> str:
        """What a figure is called in a table."""
        return self.figures.get(figure) or figure.replace("_", " ")

    def full_words(self, figure: str) -> str:
        """Likewise in a table of several protocols."""
        return f"{self.title}, {self.words(figure)}" if self.prefix else self.words(figure)


PROTOCOLS: Mapping[str, Row] = MappingProxyType(
    {
        "knn": Row("k-NN", "knn:Knn", "classes", _OF_CLASSES, ("top1", "top5"), "knn_"),
        "probe": Row(
            "linear probe",
            "probe:Probe",
            "classes",
            {**_OF_CLASSES, "rate": "learning rate", "sweep": "top-1 % of each learning rate"},
            ("top1", "top5", "mean_class"),
            "probe_",
        ),
        "probe-mae": Row(
            "linear probe as in MAE", "mae_probe:MaeProbe", "classes", _OF_CLASSES, ("top1", "top5", "mean_class")
        ),
        "finetune": Row("fine-tuning", "finetune:Finetune", "classes", _OF_CLASSES, ("top1", "top5", "mean_class")),
        "segment": Row(
            "segmentation, linear head",
            "segment:Segment",
            "annotations",
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
            "parts:Parts",
            "annotations",
            {
                f"{method}_{score}": f"parts by {words}, {score.upper()}"
                for method, words in _METHODS.items()
                for score in ("nmi", "ari")
            },
            tuple(f"{method}_{score}" for method in list(_METHODS)[:3] for score in ("nmi", "ari")),
        ),
    }
)
