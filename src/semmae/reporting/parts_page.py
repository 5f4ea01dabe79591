"""The page about learned parts: parts.html, self-contained, made of the files of a parts run.

- Images, soft maps and crops come from pictures/parts.npz (see part_samples.py), the rest from what else the run
  wrote: the page can be made again without the images or any model; a missing file leaves its section out.
- A part has one colour throughout, the one that it has in parts.png.
- The text and the layout live in parts.html.jinja; this file prepares numbers and pictures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from semmae.reporting import charts
from semmae.reporting.charts import number
from semmae.reporting.page import (
    Record,
    by_step,
    duration,
    quality,
    read_config,
    read_facts,
    read_records,
    write_page,
)
from semmae.reporting.part_samples import FILE, PartSamples, read_samples, spread
from semmae.reporting.pictures import (
    BACKGROUND,
    BACKGROUND_SWATCH,
    heat,
    label_colours,
    overlay,
    spotlight,
    webp,
)
from semmae.reporting.verdicts import verdicts
from semmae.sizes import size_shown

_HEAT_SIDE = 160  # pixels a side of a soft map's picture
_UNFOLDED = 6  # images seen at once: on a phone, more would bury what follows
_MOST_MAPS = 12  # of one image; with more parts, those that cover most of it


@dataclass(frozen=True)
class Part:
    """A label, its colour in CSS, how much of the images it covers, and the crops that show it best."""

    name: str
    colour: str
    area: float  # mean share of an image, from 0 to 1
    low: float  # 10th percentile over the images
    high: float  # 90th
    present: float  # share of the images that have it at all
    crops: tuple[tuple[str, str, str], ...]  # data URI, name of the image, strength


@dataclass(frozen=True)
class Shown:
    """An image, its hard parts over it, and (label's number, picture, share) of its soft maps."""

    name: str
    aspect: float  # width / height, from 1/2 to 2: a narrower picture could not be seen beside others
    picture: str
    parts: str
    maps: tuple[tuple[int, str, str], ...]


def write_parts_page(run: Path) -> Path:
    """Writes `run`/parts.html and returns its path. UserError when pictures/parts.npz is missing or damaged."""
    run = Path(run)
    samples = read_samples(run / FILE)
    config, summary, meta = read_config(run), read_facts(run / "summary.json"), read_facts(run / "parts.json")
    parts = list(_parts(samples))
    shown = list(_shown(samples))
    first = spread(len(shown), _UNFOLDED)
    return write_page(
        run,
        "parts.html",
        notices=(),
        verdicts=verdicts(run),
        lead=_lead(samples, summary, meta),
        facts=_facts(config, summary, meta, parts),
        parts=parts,
        shown=[shown[i] for i in first],
        more=[image for i, image in enumerate(shown) if i not in first],
        most_maps=_MOST_MAPS,
        percent=_percent,
        scanned=len(samples.shares),
        # The first whole tenth that no bar and no spread passes.
        bar_end=max(math.ceil(10 * max(part.area, part.high)) / 10 for part in parts),
        quality=quality(read_facts(run / "quality.json")),
        losses=charts.loss_charts(by_step(read_records(run / "metrics.jsonl"))),
    )


def _lead(samples: PartSamples, summary: Record, meta: Record) -> str:
    """One sentence: how many parts, in how many images, in what time."""
    names = samples.label_names.tolist()
    count = len(names) - (BACKGROUND in names)
    deed = f"{count} part{'s' if count != 1 else ''}"
    deed += " and a background were" if BACKGROUND in names else " were" if count != 1 else " was"
    deed += " learned from a frozen encoder, without labels"
    if "images" in meta:
        deed += f", and found in {number(meta['images'])} image{'s' if meta['images'] != 1 else ''}"
    return f"{deed}, in {duration(summary['minutes'])}." if "minutes" in summary else f"{deed}."


def _facts(config: Record, summary: Record, meta: Record, parts: list[Part]) -> dict[str, Any]:
    """The tiles at the top."""
    size = summary.get("image_size") or config.get("image_size")
    return {
        "Images": meta.get("images"),
        "Image size": size and size_shown(size),
        "Labels in use": f"{_in_use(parts):.1f} of {len(parts)}",
        "Epochs": summary.get("epochs"),
        "Time": duration(summary["minutes"]) if "minutes" in summary else None,
        "Data": config.get("data"),
        "Teacher": meta.get("extra", {}).get("teacher"),
    }


def _in_use(parts: list[Part]) -> float:
    """The exponential of the entropy of the areas: 1 when one label covers everything."""
    areas = [part.area for part in parts if part.area > 0]
    return math.exp(-sum(area * math.log(area) for area in areas))


def _parts(samples: PartSamples) -> Iterator[Part]:
    colours = [colour or BACKGROUND_SWATCH for colour in label_colours(samples.label_names.tolist())]
    outlines = [colours[label] for label in samples.crop_labels]
    crops = spotlight(torch.from_numpy(samples.crops), samples.regions, outlines)
    for label, (name, colour) in enumerate(zip(samples.label_names.tolist(), colours, strict=True)):
        own, shares = np.flatnonzero(samples.crop_labels == label).tolist(), samples.shares[:, label]
        low, high = np.percentile(shares, (10, 90)).tolist()
        yield Part(
            name,
            "#{:02x}{:02x}{:02x}".format(*colour),
            float(shares.mean()),
            low,
            high,
            float((shares > 0).mean()),
            tuple((webp(crops[i]), str(samples.crop_names[i]), _percent(float(samples.strengths[i]))) for i in own),
        )


def _shown(samples: PartSamples) -> Iterator[Shown]:
    names = samples.label_names.tolist()
    colours = label_colours(names)
    images = torch.from_numpy(samples.images)
    hard = overlay(images, samples.labels, names)
    small = interpolate(images, _HEAT_SIDE, mode="bilinear", antialias=True)
    highest = float(samples.maps.max())  # one scale, so that all maps can be compared
    for i, name in enumerate(samples.names.tolist()):
        shares = samples.maps[i].astype(np.float32).mean((1, 2))
        largest = sorted(np.argsort(-shares, kind="stable")[:_MOST_MAPS].tolist())
        soft = heat(small[i], samples.maps[i, largest] / highest, [colours[label] for label in largest])
        maps = tuple(
            (label, webp(picture), _percent(float(shares[label]))) for label, picture in zip(largest, soft, strict=True)
        )
        yield Shown(name, min(max(float(samples.aspects[i]), 0.5), 2.0), webp(images[i]), webp(hard[i]), maps)


def _percent(share: float) -> str:
    """7 %, 0.4 %, 0 %."""
    percent = 100 * share
    return f"{percent:.1f} %" if 0.05 <= percent < 0.95 else f"{percent:.0f} %"
