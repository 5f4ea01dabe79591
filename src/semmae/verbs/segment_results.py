"""What `semmae segment` measures of a trained network, and the files in which it tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import make_loader
from semmae.data.manifest import sample_rows
from semmae.data.segment_crops import WholeLabelled
from semmae.data.segmentation import LabelledImages, MeasuredData
from semmae.evaluation.segmentation import evaluate, figures
from semmae.files import write_csv
from semmae.models.segmenter import Segmenter
from semmae.options.segment import Head, SegmentOptions
from semmae.reporting.pictures import segmentation_picture
from semmae.reporting.results import markdown_table, write_results
from semmae.train.precision import resolve_precision
from semmae.verbs.segment_options import rate_of, stride_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Found:
    """What a measurement found: the table of classes, and the predictions to be shown, by row."""

    figures: dict[str, Any]
    predictions: dict[int, Tensor]


def measure_segmenter(options: SegmentOptions, segmenter: Segmenter, val: LabelledImages) -> Found:
    """Slide the segmenter over the validation images."""
    spec = segmenter.encoder.spec
    size = spec.image_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts, predictions = evaluate(
        segmenter.to(device),
        make_loader(WholeLabelled(val, size), 1, workers=options.workers),
        classes=len(segmenter.spec.classes),
        size=size,
        stride=stride_of(options, size),
        mean=spec.mean,
        std=spec.std,
        device=device,
        dtype=_DTYPES.get(resolve_precision(options.precision)),
        keep=shown_rows(options, val),
        total=len(val),
    )
    return Found({**figures(counts, segmenter.spec.classes), "images": len(val)}, predictions)


def shown_rows(options: SegmentOptions, val: LabelledImages) -> list[int]:
    """The validation images in predictions.png."""
    return sample_rows(len(val), options.pictures, options.seed) if options.pictures else []


def protocol(options: SegmentOptions, head: Head, size: int, data: MeasuredData) -> dict[str, Any]:
    """How it was trained and measured: the kind of head, and on windows of how many pixels."""
    trained = {
        "steps": options.steps, "batch_size": options.batch_size, "lr": rate_of(options),
        "weight_decay": options.weight_decay, "weights": "of the last step",
        **({"layer_decay": options.layer_decay, "drop_path": options.drop_path} if head == "upernet" else {}),
    }  # fmt: skip
    return {
        "method": "UPerNet, encoder fine-tuned" if head == "upernet" else "linear head on frozen patch tokens",
        "image_size": size,
        "measured": f"windows of {size} pixels every {stride_of(options, size)}, short side {size}; masks' own size",
        "classes": len(data.names),
        **({} if options.eval_only else trained),
        "arithmetic": resolve_precision(options.precision),
        "interval": "95 %, bootstrap over images",
        "ignore_index": options.ignore_index,
        "reduce_zero_label": options.reduce_zero_label,
        "preset": options.preset,
        "encoder": options.encoder,
        "data": options.data,
        "split": data.split,
        "seed": options.seed,
    }


def write_all(out: Path, how: Mapping[str, Any], methods: Mapping[str, Found], val: LabelledImages) -> None:
    """Write results.json, results.md, per_class.csv and predictions.png."""
    (_, own), *others = methods.items()
    rows = class_rows(methods)
    details = ["IoU of each class, in percent:", "", *markdown_table(rows), ""]
    write_results(out, how, own.figures, {name: other.figures for name, other in others}, details)
    write_classes(out / "per_class.csv", rows)
    shown = sorted(own.predictions)
    if shown:
        pairs = [val.read(row) for row in shown]
        columns = [("truth", [labels for _, labels in pairs])]
        for title, method in (("prediction", own), *others):
            columns.append((title, [method.predictions[row] for row in shown]))
        names = [facts["class"] for facts in own.figures["per_class"]]
        segmentation_picture([image for image, _ in pairs], columns, names, out / "predictions.png")


def class_rows(methods: Mapping[str, Found]) -> dict[str, dict[str, Any]]:
    """A row a class: IoU and share of its pixels told right, of every method, and its share of all pixels."""
    rows: dict[str, dict[str, Any]] = {}
    for number, (title, found) in enumerate(methods.items()):
        before = f"{title}, " if number else ""
        for facts in found.figures["per_class"]:
            row = rows.setdefault(facts["class"], {})
            row |= {f"{before}IoU %": facts["iou"], f"{before}right %": facts["accuracy"]}
    pixels = {facts["class"]: facts["pixels"] for facts in found.figures["per_class"]}
    for name, row in rows.items():
        row["pixels %"] = 100 * pixels[name] / sum(pixels.values())
    return rows


def write_classes(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """per_class.csv: a line a class, empty where a figure is undefined."""
    lines = [["class", *next(iter(rows.values()))]]
    for name, values in rows.items():
        lines.append([name, *("" if value is None else round(value, 3) for value in values.values())])
    write_csv(path, lines)
