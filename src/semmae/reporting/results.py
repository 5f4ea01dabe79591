"""The files of a measuring verb: results.json for programs; results.md, per_class.csv and confusion.png for people."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.manifest import ImageSet, write_skipped
from semmae.evaluation.accuracy import confusion_matrix
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Classified, Measured, Segmented
from semmae.files import make_folder, write_csv, write_json, write_text
from semmae.levels import in_rgb
from semmae.reporting.confusion import confusion_picture
from semmae.reporting.page import figure_rows, figures_table, flat
from semmae.reporting.pictures import segmentation_picture

MOST_IN_PICTURE = 4096  # classes; a matrix of more takes gigabytes


def write_measured(
    out: Path, protocol: Mapping[str, Any], methods: Mapping[str, Measured], sets: Iterable[ImageSet]
) -> None:
    """Write all that a single protocol found: results.json and .md, tables and pictures of classes, skipped.csv.

    `methods`: the encoder under `OWN`, first, and what it is compared with by name.
    """
    figures = {name: measured.figures for name, measured in methods.items()}
    details: list[str] = []
    if isinstance(methods[OWN].details, Segmented):
        details = ["IoU of each class, in percent:", "", *markdown_table(class_rows(figures)), ""]
    write_results(out, protocol, figures.pop(OWN), figures, details)
    write_details(out, methods)
    write_skipped(sets, out / "skipped.csv")


def write_details(out: Path, methods: Mapping[str, Measured]) -> None:
    """Write what lies behind the figures: per_class.csv with confusion.png or predictions.png; nothing of k-NN.

    Of classes of images, each method but `OWN` has a folder of its own; of pixels, all are in the same files.
    """
    for name, measured in methods.items():
        if isinstance(measured.details, Classified):
            folder, found = out if name == OWN else out / name, measured.details
            make_folder(folder)
            write_per_class(folder / "per_class.csv", found.classes, found.chosen, found.targets)
            draw_confusion(folder / "confusion.png", found.classes, found.chosen, found.targets)
    if isinstance(methods[OWN].details, Segmented):
        rows = class_rows({name: each.figures for name, each in methods.items()})
        lines = [["class", *next(iter(rows.values()))]]
        for name, values in rows.items():  # empty where a figure is undefined
            lines.append([name, *("" if value is None else round(value, 3) for value in values.values())])
        write_csv(out / "per_class.csv", lines)
        draw_predictions(out / "predictions.png", methods)


def class_rows(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A row a class of pixels: IoU and share of its pixels that are right, of every method, and its share of all."""
    rows: dict[str, dict[str, Any]] = {}
    for title, figures in methods.items():
        before = "" if title == OWN else f"{title}, "
        for facts in figures["per_class"]:
            row = rows.setdefault(facts["class"], {})
            row |= {f"{before}IoU %": facts["iou"], f"{before}right %": facts["accuracy"]}
    pixels = {facts["class"]: facts["pixels"] for facts in figures["per_class"]}
    for name, row in rows.items():
        row["pixels %"] = 100 * pixels[name] / sum(pixels.values())
    return rows


def draw_predictions(path: Path, methods: Mapping[str, Measured]) -> None:
    """A sheet of the images whose predictions were kept, and what every method says of their pixels."""
    found = {name: each.details for name, each in methods.items() if isinstance(each.details, Segmented)}
    shown = sorted(found[OWN].predictions)
    if not shown:
        return
    pairs = [found[OWN].images.read(row) for row in shown]
    columns = [("truth", [labels for _, labels in pairs])]
    for name, details in found.items():
        columns.append(("prediction" if name == OWN else name, [details.predictions[row] for row in shown]))
    classes = [facts["class"] for facts in methods[OWN].figures["per_class"]]
    segmentation_picture([in_rgb(image) for image, _ in pairs], columns, classes, path)


def write_results(
    out: Path,
    protocol: Mapping[str, Any],
    figures: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]] | None = None,
    details: Sequence[str] = (),
) -> None:
    """Write `out`/results.json and `out`/results.md, whose first table is what a verb shows at its end.

    `figures` are of the encoder itself, `others` of what it is compared with, by name, such as "untrained"; `details`
    are lines of Markdown for below the table.
    """
    others = others or {}
    lines = [*markdown_table({OWN: figures, **others}), "", *details]
    _write_both(out, protocol, {**figures, **others}, lines)


def write_comparison(out: Path, protocol: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> None:
    """As `write_results`, for many figures of few encoders: a row a figure that has a name, a column an encoder.

    `protocol` holds a mapping for each protocol that was used, under its name.
    """
    _write_both(out, protocol, methods, [*markdown_table(figure_rows(methods)), ""])


def _write_both(out: Path, protocol: Mapping[str, Any], content: Mapping[str, Any], lines: Sequence[str]) -> None:
    """results.json, and results.md with these lines above the protocol."""
    write_json(out / "results.json", {"protocol": dict(protocol), **content})
    text = ["# Results", "", *lines, "Protocol:", "", *protocol_lines(protocol)]
    write_text(out / "results.md", "\n".join(text) + "\n")


def protocol_lines(protocol: Mapping[str, Any]) -> list[str]:
    """A line of Markdown for each setting of a protocol, nested or not; of a digest its beginning."""
    facts = ((name, value[:12] if name == "encoder_digest" else value) for name, value in flat(protocol))
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in facts if value is not None]


def write_per_class(path: Path, classes: Sequence[str], chosen: Tensor, targets: Tensor) -> None:
    """Write a CSV of each class: its images, how many were classified right, what share that is, and its usual mistake.

    `chosen`: what every image was taken for, int64 (N,); `targets`: its true class.
    """
    counts = (torch.bincount(found, minlength=len(classes)).tolist() for found in (targets, targets[chosen == targets]))
    mistaken = most_often_taken_for(targets, chosen)
    rows: list[Sequence[Any]] = [("class", "images", "right", "right_percent", "most_taken_for", "times")]
    for number, (name, images, right) in enumerate(zip(classes, *counts, strict=True)):
        other, times = mistaken.get(number, (None, 0))
        share = f"{100 * right / images:.2f}" if images else ""
        rows.append((name, images, right, share, "" if other is None else classes[other], times))
    write_csv(path, rows)


def most_often_taken_for(targets: Tensor, chosen: Tensor) -> dict[int, tuple[int, int]]:
    """Of each class that was mistaken: the class that it was most often taken for, and how many times."""
    wrong = targets != chosen
    counts = Counter(zip(targets[wrong].tolist(), chosen[wrong].tolist(), strict=True))
    # The most frequent last, where it stays; of equally frequent ones the lower class.
    ordered = sorted(counts.items(), key=lambda pair: (pair[1], -pair[0][1]))
    return {true: (other, times) for (true, other), times in ordered}


def draw_confusion(path: Path, classes: Sequence[str], chosen: Tensor, targets: Tensor) -> None:
    """As `write_per_class`: a PNG of which class is taken for which; none of more classes than `MOST_IN_PICTURE`."""
    if len(classes) <= MOST_IN_PICTURE:
        confusion_picture(confusion_matrix(chosen, targets, len(classes)), classes, path)


def markdown_table(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table, a row a method, a column each figure that is a single number or text."""
    table = figures_table(methods)
    rows = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
