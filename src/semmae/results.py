"""What a verb returns in Python: where it wrote, and the figures that stand there.

`reporting/results.py` writes these figures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from semmae.files import read_json, read_records

Figures = Mapping[str, Any]
_UNTRAINED = "untrained"


@dataclass(frozen=True, repr=False)
class Result:
    """Where a verb wrote: a folder, or the file that --out named."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)  # so that a result is the path of the next call: knn(encoder=run, …)

    @classmethod
    def of(cls, path: Path) -> Self:
        """The result that lies at `path`; a figure that was not measured is None."""
        known = cls.figures_in(path)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "path"]
        return cls(path, **{name: known.get(name) for name in names})

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        """By name, what the files of a run say."""
        return {}

    def __repr__(self) -> str:
        figures = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.repr}
        del figures["path"]
        ordered = sorted(figures.items(), key=lambda figure: figure[0] == _UNTRAINED)  # its own figures first
        shown = [f"{name}={_shown(value, figures)}" for name, value in ordered if value is not None]
        return f"{type(self).__name__}({', '.join([str(self.path), *shown])})"


def _shown(value: Any, declared: Figures) -> str:
    """A figure; of those of another encoder the ones that the result has a place for itself."""
    if isinstance(value, Mapping):
        inner = (f"{name}={value[name]:.4g}" for name in declared if isinstance(value.get(name), float))
        return f"({', '.join(inner)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, repr=False)
class TeacherResult(Result):
    """A run of `teacher`: k-NN accuracy in percent when it ended, where the images have classes."""

    knn_top1: float | None = None
    loss: float | None = None

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        return _last(path)


@dataclass(frozen=True, repr=False)
class PartsResult(Result):
    """A run of `parts`: quality of the learned parts in percent, where true ones were given."""

    nmi: float | None = None
    ari: float | None = None
    foreground_iou: float | None = None

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        quality: Figures = _read(path / "quality.json").get("learned", {})
        return quality


@dataclass(frozen=True, repr=False)
class PretrainResult(Result):
    """A run of `pretrain`: its last loss."""

    loss: float | None = None

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        return _last(path)


@dataclass(frozen=True, repr=False)
class MeasuredResult(Result):
    """A run that has measured: figures in percent, `untrained` those of the same encoder with new weights."""

    untrained: Figures | None = None

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        return _read(path / "results.json")


@dataclass(frozen=True, repr=False)
class ClassResult(MeasuredResult):
    """A run of `knn`, `probe` or `finetune`; `_low` and `_high` are the ends of a 95 % interval."""

    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    top5: float | None = None
    mean_class: float | None = None
    images: int | None = None
    classes: int | None = None


@dataclass(frozen=True, repr=False)
class SegmentResult(MeasuredResult):
    """A run of `segment`; `_low` and `_high` are the ends of a 95 % interval."""

    miou: float | None = None
    miou_low: float | None = None
    miou_high: float | None = None
    pixel_accuracy: float | None = None
    images: int | None = None


@dataclass(frozen=True, repr=False)
class EvaluateResult(MeasuredResult):
    """A run of `evaluate`; every figure is in `figures` too."""

    knn_top1: float | None = None
    probe_top1: float | None = None
    segment_miou: float | None = None
    figures: Figures | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        found = _read(path / "results.json")
        own: Figures = found.get("this encoder", {})
        return {**own, "figures": own or None, _UNTRAINED: found.get(_UNTRAINED)}


@dataclass(frozen=True, repr=False)
class CompareResult(Result):
    """A run of `compare`: the verdict in words, a mapping of figures for each row, and one for each of its runs."""

    verdict: str | None = None
    rows: Sequence[Figures] | None = dataclasses.field(default=None, repr=False)
    runs: Sequence[Figures] | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        return _read(path / "results.json")


@dataclass(frozen=True, repr=False)
class DemoResult(MeasuredResult):
    """A run of `demo`: k-NN and linear probe of the encoder that it trained; every figure is in `figures` too."""

    knn_top1: float | None = None
    probe_top1: float | None = None
    figures: Figures | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def figures_in(cls, path: Path) -> Figures:
        return EvaluateResult.figures_in(path / "run")


def _read(path: Path) -> Figures:
    return read_json(path) if path.is_file() else {}


def _last(run: Path) -> Figures:
    """Of every figure in metrics.jsonl the last value."""
    path = run / "metrics.jsonl"
    found: dict[str, Any] = {}
    for record in read_records(path) if path.is_file() else ():
        found |= record
    return found
