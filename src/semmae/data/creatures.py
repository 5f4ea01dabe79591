"""Draws a small data set of creatures and objects whose true parts are known.

Notable:
- eight classes that differ in shape, not in colour, and share six part labels;
- one rule orders the colours of an image (heads are paler than bodies, limbs darker, wings of another hue),
  so that parts can be learned from pixels;
- `patterned` ones are easier to take apart and harder to classify: a kind of part has a pattern and a family of hues
  through all images; a creature is turned any way, before scenery of cool hues;
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

from semmae.errors import UserError
from semmae.files import whole_folder, write_json

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Posed = list[tuple[int, Floats]]  # code = label * TONES + tone, and polygon (n, 2)

PARTS = ("background", "body", "head", "limb", "tail-wing", "ear-top", "eye")
BODY, HEAD, LIMB, WING, TOP, EYE = range(1, 7)
PLAIN, FAR, INK, PATTERN = range(4)  # a part's tones: its colour, in shade, the line around it, stripes or spots
TONES = 4
OVERSAMPLING = 3  # odd, so that every pixel has a centre sample for the annotation
SMALLEST = 32  # pixels; below this an eye is less than one


class Piece(NamedTuple):
    """One outline of a creature that looks to the right, about 200 units long; y points down."""

    part: int
    kind: str  # "oval", "tube", "poly" or "blob": see `outline`
    numbers: tuple[float, ...]
    swing: float = 0.0  # degrees it may turn either way about its first point
    joint: str = ""  # the joint it moves with, if any
    pair: bool = False  # drawn a second time mirrored left to right, with a swing of its own
    tone: int = PLAIN


class Joint(NamedTuple):
    """A point about which several pieces turn and grow together."""

    x: float
    y: float
    swing: float  # degrees either way


class Creature(NamedTuple):
    """The pieces of one class, and the joints about which some of them move."""

    joints: dict[str, Joint]
    pieces: tuple[Piece, ...]  # from back to front


def _eye(x: float, y: float, radius: float, joint: str = "", pair: bool = False) -> tuple[Piece, Piece]:
    pupil = (x + 0.3 * radius, y, 0.5 * radius, 0.5 * radius, 0)
    return (
        Piece(EYE, "oval", (x, y, radius, radius, 0), joint=joint, pair=pair),
        Piece(EYE, "oval", pupil, joint=joint, pair=pair, tone=INK),
    )


# oval: x, y, radius, radius, tilt.  tube: x, y, length, width at its root, width at its tip, angle, bend.
# poly, blob: x, y of each corner; a blob is rounded.  Angles in degrees: 0 is to the right, 90 down.
CREATURES: dict[str, Creature] = {
    "fish": Creature(
        {"tail": Joint(-60, 0, 22)},
        (
            Piece(WING, "blob", (-50, 0, -98, -50, -112, -42, -95, 0, -112, 42, -98, 50), joint="tail"),
            Piece(TOP, "blob", (30, -30, 18, -66, -10, -76, -42, -60, -40, -26), 6),
            Piece(LIMB, "tube", (-30, 28, 36, 20, 10, 115, 10), 15),
            Piece(BODY, "oval", (2, 0, 74, 45, 0)),
            Piece(HEAD, "blob", (26, -44, 52, -36, 74, -14, 80, 5, 70, 22, 50, 37, 26, 44, 36, 0)),
            Piece(LIMB, "tube", (12, 12, 42, 26, 14, 140, 10), 28),
            *_eye(53, -11, 13),
        ),
    ),
    "bird": Creature(
        {"head": Joint(32, -20, 16), "wing": Joint(10, 0, 20)},
        (
            Piece(LIMB, "tube", (14, 36, 44, 14, 12, 95, 0), 16, tone=FAR),
            Piece(LIMB, "tube", (-12, 36, 46, 14, 12, 90, 0), 16),
            Piece(WING, "blob", (-40, 0, -86, -18, -100, 0, -94, 20, -46, 26), 14),
            Piece(BODY, "oval", (0, 10, 56, 44, -18)),
            Piece(TOP, "poly", (62, -60, 102, -42, 62, -26), joint="head"),
            Piece(TOP, "blob", (36, -60, 10, -98, 34, -88, 46, -106, 56, -68), joint="head"),
            Piece(HEAD, "oval", (40, -44, 32, 30, 0), joint="head"),
            Piece(WING, "blob", (12, -2, 8, 24, -28, 34, -66, 10, -36, -10), joint="wing"),
            *_eye(50, -48, 12, "head"),
        ),
    ),
    "fox": Creature(
        {"head": Joint(42, -20, 16)},
        (
            Piece(LIMB, "tube", (26, 12, 60, 20, 14, 80, 8), 24, tone=FAR),
            Piece(LIMB, "tube", (-50, 12, 60, 20, 14, 80, 8), 24, tone=FAR),
            Piece(WING, "blob", (-52, -2, -86, -6, -104, -44, -92, -72, -78, -42, -58, -24), 18),
            Piece(LIMB, "tube", (36, 12, 62, 21, 15, 92, 0), 24),
            Piece(LIMB, "tube", (-42, 12, 62, 23, 15, 92, 0), 24),
            Piece(BODY, "blob", (-64, -6, -30, -28, 30, -30, 56, -12, 50, 24, 0, 26, -52, 30)),
            Piece(TOP, "poly", (42, -50, 50, -96, 70, -60), 6, "head", tone=FAR),
            Piece(HEAD, "blob", (28, -40, 50, -64, 80, -54, 108, -28, 106, -18, 70, -10, 40, -12), 0, "head"),
            Piece(TOP, "poly", (32, -42, 24, -94, 58, -58), 6, "head"),
            *_eye(68, -42, 11, "head"),
        ),
    ),
    "robot": Creature(
        {"head": Joint(0, -22, 12)},
        (
            Piece(WING, "tube", (-25, 35, 75, 12, 12, 160, 130), 18),
            Piece(LIMB, "tube", (21, 42, 48, 22, 24, 90, 0), 14, pair=True),
            Piece(LIMB, "tube", (40, -6, 56, 17, 19, 50, 20), 45, pair=True),
            Piece(TOP, "tube", (0, -70, 28, 9, 9, -90, 0), 0, "head"),
            Piece(TOP, "oval", (0, -102, 12, 12, 0), 0, "head"),
            Piece(TOP, "poly", (30, -62, 48, -62, 48, -36, 30, -36), 0, "head", pair=True),
            Piece(BODY, "poly", (-42, -20, 42, -20, 38, 50, -38, 50)),
            Piece(HEAD, "poly", (-36, -78, 36, -78, 36, -24, -36, -24), joint="head"),
            *_eye(16, -56, 12, "head", pair=True),
            Piece(HEAD, "poly", (-14, -37, 14, -37, 14, -32, -14, -32), joint="head", tone=INK),
        ),
    ),
    "snail": Creature(
        {"head": Joint(55, 30, 14)},
        (
            Piece(WING, "blob", (-30, 30, -70, 42, -112, 62, -70, 64, -30, 62), 5),
            Piece(LIMB, "blob", (-50, 40, 60, 30, 78, 50, 66, 64, -55, 64)),
            Piece(TOP, "tube", (72, -10, 40, 10, 8, -105, 0), 14, "head", tone=FAR),
            Piece(TOP, "tube", (82, -8, 40, 10, 8, -65, 0), 14, "head"),
            Piece(HEAD, "blob", (50, 50, 52, 0, 72, -22, 98, -12, 98, 14, 82, 30, 80, 50), joint="head"),
            Piece(BODY, "oval", (-10, -6, 56, 54, 0)),
            Piece(BODY, "oval", (-5, 0, 36, 34, 0)),
            Piece(BODY, "oval", (-10, 2, 17, 16, 0)),
            *_eye(83, -2, 11, "head"),
        ),
    ),
    "butterfly": Creature(
        {"head": Joint(0, -30, 8)},
        (
            Piece(WING, "blob", (5, 5, 50, 10, 72, 40, 50, 78, 22, 60), 10, pair=True),
            Piece(WING, "blob", (5, -2, 30, -60, 80, -86, 102, -50, 80, 2, 40, 14), 10, pair=True),
            *_eye(64, -40, 13, pair=True),  # the spots on its wings
            Piece(LIMB, "tube", (12, 34, 30, 10, 8, 40, 40), 15, pair=True),
            Piece(LIMB, "tube", (8, 50, 30, 10, 8, 70, 40), 15, pair=True),
            Piece(TOP, "tube", (8, -56, 50, 9, 13, -68, 30), 12, "head", pair=True),
            Piece(BODY, "oval", (0, 16, 19, 52, 0)),
            Piece(HEAD, "oval", (0, -44, 29, 25, 0), joint="head"),
            *_eye(13, -46, 11, "head", pair=True),
        ),
    ),
    "octopus": Creature(
        {},
        (
            Piece(LIMB, "tube", (12, 20, 78, 22, 11, 75, -40), 14, pair=True, tone=FAR),
            Piece(LIMB, "tube", (34, 12, 85, 25, 11, 20, 60), 20, pair=True),
            Piece(LIMB, "tube", (24, 22, 78, 25, 11, 50, 60), 14, pair=True),
            Piece(TOP, "blob", (40, -62, 70, -96, 88, -72, 74, -46, 46, -40), 14, pair=True),
            Piece(BODY, "blob", (0, -110, 45, -94, 62, -50, 46, 10, -46, 10, -62, -50, -45, -94)),
            Piece(HEAD, "blob", (0, -46, 40, -36, 50, 10, 30, 32, 0, 36, -30, 32, -50, 10, -40, -36)),
            *_eye(20, 0, 15, pair=True),
        ),
    ),
    "car": Creature(
        {},
        (
            Piece(WING, "poly", (-72, -2, -86, -36, -110, -42, -108, -28, -98, -22, -94, 5), 8),
            Piece(TOP, "blob", (-24, -48, -24, -72, 16, -72, 16, -48), 5),
            Piece(HEAD, "blob", (-66, 2, -50, -46, -30, -54, 22, -54, 40, -44, 62, 2)),
            Piece(HEAD, "poly", (0, -40, 24, -40, 38, -8, 0, -8), tone=FAR),
            Piece(HEAD, "poly", (-10, -40, -34, -40, -46, -8, -10, -8), tone=FAR),
            Piece(BODY, "blob", (-100, 0, -60, -6, 60, -6, 98, 6, 106, 32, 95, 42, -95, 42, -104, 30)),
            Piece(LIMB, "oval", (55, 40, 26, 26, 0)),
            Piece(LIMB, "oval", (-55, 40, 26, 26, 0)),
            Piece(LIMB, "oval", (55, 40, 9, 9, 0), tone=INK),
            Piece(LIMB, "oval", (-55, 40, 9, 9, 0), tone=INK),
            *_eye(88, 13, 12),
        ),
    ),
}


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


COOL = (0.5, 0.7)  # hues of what lies behind a patterned creature; those of its parts are warm and green

# What lies about behind a creature: kind, how many, length and width in image sides.
CLUTTER: tuple[tuple[str, tuple[int, int], tuple[float, float], tuple[float, float]], ...] = (
    ("oval", (2, 5), (0.12, 0.35), (0.08, 0.25)),  # hills and bushes
    ("oval", (8, 18), (0.012, 0.035), (0.012, 0.035)),  # confetti
    ("tube", (2, 5), (0.5, 1.4), (0.012, 0.025)),  # wires
    ("tube", (2, 4), (0.8, 2.0), (0.06, 0.16)),  # bands
    ("tube", (3, 6), (0.12, 0.4), (0.03, 0.07)),  # sticks, which could be limbs
)


def outline(kind: str, numbers: tuple[float, ...]) -> Floats:
    """The polygon (n, 2) of a piece, x and y in the units of `numbers`."""
    if kind == "oval":
        x, y, across, down, tilt = numbers
        turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        return _turned(np.stack([x + across * np.cos(turn), y + down * np.sin(turn)], 1), (x, y), tilt)
    if kind == "tube":
        return _tube(*numbers)
    corners = np.reshape(np.array(numbers), (-1, 2))
    if kind == "poly":
        return corners
    assert kind == "blob", kind
    before, after, beyond = (np.roll(corners, shift, 0) for shift in (1, -1, -2))
    t = np.linspace(0, 1, 6, endpoint=False)[:, None, None]
    # Catmull-Rom: smooth and through every corner, so that a table's numbers are points one can see.
    cubic, square = 3 * (corners - after) + beyond - before, 2 * before - 5 * corners + 4 * after - beyond
    curve = corners + t / 2 * (after - before + t * (square + t * cubic))  # (t, corner, 2)
    return np.reshape(curve.swapaxes(0, 1), (-1, 2))


def _tube(x: float, y: float, length: float, root: float, tip: float, angle: float, bend: float) -> Floats:
    """A limb with round ends whose middle line is an arc."""
    way = np.radians(angle + bend * np.linspace(-0.5, 0.5, 10))
    heading = np.stack([np.cos(way), np.sin(way)], 1)
    middle = np.array([x, y]) + np.cumsum(heading, 0) * length / len(way)
    side = np.stack([-heading[:, 1], heading[:, 0]], 1) * np.linspace(root, tip, len(way))[:, None] / 2
    cap = np.radians(np.linspace(-60, 60, 5))[:, None]
    end = middle[-1] + tip / 2 * (np.cos(cap) * heading[-1]) - np.sin(cap) * side[-1]
    start = middle[0] - root / 2 * (np.cos(cap) * heading[0]) + np.sin(cap) * side[0]
    return np.concatenate([middle + side, end, (middle - side)[::-1], start])


def _turned(points: Floats, pivot: tuple[float, float], degrees: float, scale: float = 1.0) -> Floats:
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.asarray((points - pivot) @ np.array([[c, s], [-s, c]]) + pivot)


def _pose(creature: Creature, rng: np.random.Generator) -> Posed:
    """The pieces from back to front, limbs and joints moved."""
    turns = {
        name: (rng.uniform(-joint.swing, joint.swing), rng.uniform(0.9, 1.15))
        for name, joint in creature.joints.items()
    }
    posed = []
    for piece in creature.pieces:
        for side in (1, -1) if piece.pair else (1,):
            swing = rng.uniform(-piece.swing, piece.swing)
            pivot = (piece.numbers[0], piece.numbers[1])
            points = _turned(outline(piece.kind, piece.numbers), pivot, swing) * (side, 1)
            if piece.joint:
                joint = creature.joints[piece.joint]
                points = _turned(points, (joint.x, joint.y), *turns[piece.joint])
            posed.append((piece.part * TONES + piece.tone, points))
    return posed


def _place(posed: Posed, side: int, rng: np.random.Generator, turn: float) -> tuple[Posed, float]:
    """The pieces turned by `turn` degrees at most, mirrored, moved into a canvas `side` wide; one unit in pixels."""
    stretch = rng.uniform(0.9, 1.1, 2) * (rng.choice([-1, 1]), 1)
    tilt = rng.uniform(-turn, turn)
    moved = [(code, _turned(points * stretch, (0, 0), tilt)) for code, points in posed]
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
    light = rng.uniform(-0.02, 0.02)  # of which all parts of an image turn
    plain = np.full((len(PARTS), 3), 250.0)
    for part, look in LOOKS.items():
        hue = look.hue + light + rng.uniform(-0.03, 0.03)
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
    placed, unit = _place(_pose(CREATURES[name], rng), side, rng, 180 if patterned else 15)
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
