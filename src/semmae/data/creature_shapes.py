"""Shapes of the drawn creatures: the outlines of eight classes, made of six kinds of parts, and how they move."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Posed = list[tuple[int, Floats]]  # code = label * TONES + tone, and polygon (n, 2)

PARTS = ("background", "body", "head", "limb", "tail-wing", "ear-top", "eye")
BODY, HEAD, LIMB, WING, TOP, EYE = range(1, 7)
PLAIN, FAR, INK, PATTERN = range(4)  # a part's tones: its colour, in shade, the line around it, stripes or spots
TONES = 4


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


def outline(kind: str, numbers: tuple[float, ...]) -> Floats:
    """The polygon (n, 2) of a piece, x and y in the units of `numbers`."""
    if kind == "oval":
        x, y, across, down, tilt = numbers
        turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        return turned(np.stack([x + across * np.cos(turn), y + down * np.sin(turn)], 1), (x, y), tilt)
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


def turned(points: Floats, pivot: tuple[float, float], degrees: float, scale: float = 1.0) -> Floats:
    """Points (n, 2) turned and scaled about a pivot."""
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.asarray((points - pivot) @ np.array([[c, s], [-s, c]]) + pivot)


def pose(creature: Creature, rng: np.random.Generator) -> Posed:
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
            points = turned(outline(piece.kind, piece.numbers), pivot, swing) * (side, 1)
            if piece.joint:
                joint = creature.joints[piece.joint]
                points = turned(points, (joint.x, joint.y), *turns[piece.joint])
            posed.append((piece.part * TONES + piece.tone, points))
    return posed
