"""Draws a small data set of creatures and objects whose true parts are known.

Notable:
- eight classes that differ in shape, not in colour, and share six part labels;
- one rule orders the colours of an image (heads are paler than bodies, limbs darker, wings of another hue),
  so that parts can be learned from pixels;
- `patterned` ones are easier to take apart and harder to classify: a kind of part has a pattern and a family of hues
  through all images; a creature is turned any way, before scenery of cool hues, in a light of the
  image's own: how two of its parts differ holds in all images, while a colour by itself says less;
- picture and annotation come from one drawing, a canvas of codes (label and tone) at three times the size: the
  picture is its coloured average, the annotation its centre pixels, so that it has no blended labels;
- image i is a pure function of (seed, i): asking for more images keeps the first ones.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from semmae.data.creature_shapes import (
    BODY,
    CREATURES,
    EYE,
    FAR,
    HEAD,
    INK,
    LIMB,
    PARTS,
    PATTERN,
    PLAIN,
    TONES,
    TOP,
    WING,
    Floats,
    Posed,
    outline,
    pose,
    turned,
)
from semmae.errors import UserError
from semmae.files import whole_folder, write_json

Bytes = NDArray[np.uint8]

OVERSAMPLING = 3  # odd, so that every pixel has a centre sample for the annotation
SMALLEST = 32  # pixels; below this an eye is less than one


class Look(NamedTuple):
    """How a kind of part looks in all patterned images."""

    hue: float  # the middle of its family, in turns of the colour circle
    kind: str  # "plain", "stripes" or "spots"
    wavelength: float  # of these, as a share of the image's side


LOOKS = {
    BODY: Look(0.07, "spots", 0.125),
    HEAD: Look(0.3, "plain", 1),
    LIMB: Look(0.98, "stripes", 0.07),
    WING: Look(0.89, "stripes", 0.125),
    TOP: Look(0.16, "spots", 0.07),
}


LIGHT = 0.2  # of a patterned image: each of its colours is stronger or weaker, by a factor of up to e^0.2
COOL = (0.5, 0.7)  # hues of what lies behind a patterned creature; those of its parts are warm and green

# What lies about behind a creature: kind, how many, length and width in image sides.
CLUTTER: tuple[tuple[str, tuple[int, int], tuple[float, float], tuple[float, float]], ...] = (
    ("oval", (2, 5), (0.12, 0.35), (0.08, 0.25)),  # hills and bushes
    ("oval", (8, 18), (0.012, 0.035), (0.012, 0.035)),  # confetti
    ("tube", (2, 5), (0.5, 1.4), (0.012, 0.025)),  # wires
    ("tube", (2, 4), (0.8, 2.0), (0.06, 0.16)),  # bands
    ("tube", (3, 6), (0.12, 0.4), (0.03, 0.07)),  # sticks, which could be limbs
)


def _place(posed: Posed, side: int, rng: np.random.Generator, turn: float) -> tuple[Posed, float]:
    """The pieces turned by `turn` degrees at most, mirrored, moved into a canvas `side` wide; one unit in pixels."""
    stretch = rng.uniform(0.9, 1.1, 2) * (rng.choice([-1, 1]), 1)
    tilt = rng.uniform(-turn, turn)
    moved = [(code, turned(points * stretch, (0, 0), tilt)) for code, points in posed]
    everything = np.concatenate([points for _, points in moved])
    low, extent = everything.min(0), np.ptp(everything, 0)
    unit = side * rng.uniform(0.5, 0.9) / extent.max()
    margin = 0.03 * side  # room for half a line
    corner = rng.uniform(margin, side - margin - extent * unit)
    return [(code, (points - low) * unit + corner) for code, points in moved], float(unit)


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)))


def _palette(rng: np.random.Generator) -> Floats:
    """Colours (labels, TONES, 3), 0-255, of one image, drawn by the same rule for every class."""
    hue, value = rng.uniform(0, 1), rng.uniform(0.5, 0.8)
    near, away = rng.uniform(-0.06, 0.06), rng.uniform(0.33, 0.67)
    plain = np.zeros((len(PARTS), 3))
    plain[BODY] = _rgb(hue, rng.uniform(0.6, 0.85), value)
    plain[HEAD] = _rgb(hue + near, rng.uniform(0.2, 0.35), rng.uniform(0.9, 1.0))
    plain[LIMB] = _rgb(hue - near, rng.uniform(0.55, 0.8), 0.62 * value)
    plain[WING] = _rgb(hue + away, rng.uniform(0.6, 0.85), rng.uniform(0.7, 0.9))
    plain[TOP] = _rgb(hue + rng.choice([-0.2, 0.2]) + near, rng.uniform(0.75, 0.95), rng.uniform(0.85, 1.0))
    plain[EYE] = 250
    ink = 0.3 * plain
    ink[EYE] = _rgb(hue, 0.5, 0.14)
    pattern = plain.copy()
    pattern[BODY] = 0.72 * plain[BODY] + 0.28 * rng.choice([0, 255])
    pattern[WING] = 0.5 * plain[WING] + 0.5 * plain[rng.choice([HEAD, TOP, BODY])]
    return np.stack([plain, 0.75 * plain, ink, pattern], 1)


def _patterned_palette(rng: np.random.Generator) -> Floats:
    """Colours (labels, TONES, 3), 0-255, of one image: every kind of part in its family of hues, in any class."""
    turn = rng.uniform(-0.02, 0.02)  # of the hues of all parts of an image
    plain = np.full((len(PARTS), 3), 250.0)
    for part, look in LOOKS.items():
        hue = look.hue + turn + rng.uniform(-0.03, 0.03)
        plain[part] = _rgb(hue, rng.uniform(0.5, 0.95), rng.uniform(0.6, 1))
    ink = 0.3 * plain
    ink[EYE] = 30
    share = rng.uniform(0.4, 0.7, (len(PARTS), 1))
    pattern = share * plain + (1 - share) * rng.choice([0, 255], (len(PARTS), 1))
    return np.stack([plain, 0.75 * plain, ink, pattern], 1)


def _drawn_pattern(unit: float, rng: np.random.Generator) -> tuple[str, float, float]:
    """Kind, angle and wavelength of the pattern of a part whose look is its image's own."""
    kind, angle = rng.choice(["plain", "stripes", "spots"]), rng.uniform(0, np.pi)
    return str(kind), angle, rng.uniform(20, 30) * unit


def _add_pattern(codes: Bytes, of: tuple[int, ...], pattern: tuple[str, float, float]) -> None:
    """Give stripes, spots or nothing to the pieces of these codes in the canvas (side, side), in place."""
    kind, angle, wavelength = pattern
    frequency = 2 * np.pi / wavelength
    y, x = np.nonzero(np.isin(codes, of))
    along = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)))
    across = np.sin(frequency * (y * np.cos(angle) - x * np.sin(angle)))
    shown = {"plain": along > 1, "stripes": along > 0, "spots": along * across > 0.3}[kind]
    codes[y[shown], x[shown]] = of[0] + PATTERN


def _background(side: int, parts: Floats, rng: np.random.Generator, hues: tuple[float, float]) -> Bytes:
    """A cluttered scene (side, side, 3) in muted colours of these hues, unlike those of `parts` (n, 3)."""
    candidates = [_rgb(rng.uniform(*hues), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.95)) for _ in range(6)]
    base = max(candidates, key=lambda colour: np.abs(parts - colour).sum(1).min())
    sky = np.clip(base + rng.normal(0, 20, (3, 3, 1)) + rng.normal(0, 10, (3, 3, 3)), 0, 255)
    scene = Image.fromarray(sky.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for choice in rng.choice(len(CLUTTER), 3, replace=False):
        kind, count, lengths, widths = CLUTTER[choice]
        for _ in range(int(rng.integers(count[0], count[1] + 1))):
            x, y = rng.uniform(-0.1, 1.1, 2)
            length, width = rng.uniform(*lengths), rng.uniform(*widths)
            angle, bend = rng.uniform(0, 360), rng.uniform(-60, 60)
            rest = (angle,) if kind == "oval" else (width, angle, bend)
            points = outline(kind, (x, y, length, width, *rest)) * side
            colour = np.clip(base + rng.normal(0, 26) + rng.normal(0, 14, 3), 0, 255)
            draw.polygon(points.ravel().tolist(), fill=tuple(colour.astype(int).tolist()))
    return np.asarray(scene)


def draw_creature(name: str, size: int, rng: np.random.Generator, patterned: bool = False) -> tuple[Bytes, Bytes]:
    """One creature of class `name`: picture (size, size, 3) and annotation (size, size) of indices into PARTS."""
    side = size * OVERSAMPLING
    placed, unit = _place(pose(CREATURES[name], rng), side, rng, 180 if patterned else 15)
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    line = max(OVERSAMPLING, round((3 if patterned else 4.5) * unit))
    for code, points in placed:
        flat = points.ravel().tolist()
        draw.polygon(flat, fill=code)
        if code % TONES != INK:  # a line around a pupil would fill the eye
            draw.line(flat + flat[:4], fill=code - code % TONES + INK, width=line, joint="curve")
    codes = np.array(canvas)
    if patterned:
        for part, look in LOOKS.items():
            pattern = look.kind, rng.uniform(0, np.pi), look.wavelength * side * rng.uniform(0.9, 1.1)
            _add_pattern(codes, (part * TONES + PLAIN, part * TONES + FAR), pattern)
    else:
        for part in (BODY, WING):
            _add_pattern(codes, (part * TONES + PLAIN,), _drawn_pattern(unit, rng))
    palette = _patterned_palette(rng) if patterned else _palette(rng)
    scene = _background(side, palette[BODY:, PLAIN], rng, COOL if patterned else (0, 1))
    inked = palette.reshape(-1, 3).astype(np.uint8)[codes]
    picture = Image.fromarray(np.where(codes[..., None] > 0, inked, scene)).reduce(OVERSAMPLING)
    light = np.linspace(1.05, 0.85, size)[:, None, None]  # from above, so that no colour is quite flat
    if patterned:
        light = light * np.exp(rng.uniform(-LIGHT, LIGHT, 3))
    middle = slice(OVERSAMPLING // 2, None, OVERSAMPLING)
    return np.clip(np.asarray(picture) * light, 0, 255).astype(np.uint8), codes[middle, middle] // TONES


def draw_creatures(out: Path, *, count: int = 800, size: int = 96, seed: int = 0, patterned: bool = False) -> None:
    """Write `count` images of `size` pixels: out/{images,masks}/CLASS/0001.png and out/classes.json.

    Annotations are 8-bit PNGs of indices into "parts" in classes.json, 0 for the background. Classes take turns.
    `patterned`: every kind of part has its own pattern and family of hues; creatures are turned any way.
    """
    for option, value, low, high in (
        ("count", count, 1, 10_000_000),
        ("size", size, SMALLEST, 4096),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise UserError(f"{option} is {value}, must be from {low} to {high}: choose a number in between")
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is no empty folder, and nothing is overwritten; give a new one")
    names = list(CREATURES)
    with whole_folder(out) as made:
        for kind in ("images", "masks"):
            for name in names:
                (made / kind / name).mkdir(parents=True)
        for i in range(count):
            name = names[i % len(names)]
            picture, parts = draw_creature(name, size, np.random.default_rng([seed, i]), patterned)
            path = f"{name}/{i // len(names) + 1:04d}.png"
            Image.fromarray(picture).save(made / "images" / path)
            Image.fromarray(parts).save(made / "masks" / path)
        write_json(made / "classes.json", {"classes": names, "parts": PARTS})
