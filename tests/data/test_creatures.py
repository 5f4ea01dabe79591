"""The drawn data set: reproducible, fully labelled, and not to be solved by colour or position."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from semmae.data import creatures
from semmae.data.creature_shapes import CREATURES, PARTS, outline
from semmae.data.creatures import draw_creature, draw_creatures

PER_CLASS = 40


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (N, 48, 48, 3), masks (N, 48, 48) and classes (N,), PER_CLASS of each class."""
    pairs = [
        draw_creature(name, 48, np.random.default_rng([7, k, i]))
        for k, name in enumerate(CREATURES)
        for i in range(PER_CLASS)
    ]
    pictures, masks = (np.stack(column) for column in zip(*pairs, strict=True))
    return pictures, masks, np.repeat(np.arange(len(CREATURES)), PER_CLASS)


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def nearest_centroid_accuracy(features: np.ndarray, classes: np.ndarray) -> float:
    """Fitted on every second image, measured on the others."""
    fit = np.arange(len(classes)) % 2 == 0
    centroids = np.stack([features[fit & (classes == k)].mean(0) for k in np.unique(classes)])
    distance = np.square(features[~fit, None] - centroids).sum(2)
    return float((distance.argmin(1) == classes[~fit]).mean())


def test_same_seed_same_bytes_and_more_images_keep_the_first(tmp_path: Path) -> None:
    draw_creatures(tmp_path / "a", count=9, size=32, seed=3)
    draw_creatures(tmp_path / "b", count=9, size=32, seed=3)
    draw_creatures(tmp_path / "more", count=21, size=32, seed=3)
    draw_creatures(tmp_path / "other", count=9, size=32, seed=4)
    first, more, other = files(tmp_path / "a"), files(tmp_path / "more"), files(tmp_path / "other")
    assert first == files(tmp_path / "b")
    assert first.items() <= more.items()
    assert all(first[name] != other[name] for name in first if name.startswith("images/"))


def test_what_is_written(tmp_path: Path) -> None:
    draw_creatures(tmp_path / "new" / "set", count=17, size=40)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"], "no scratch folder is left"
    root = tmp_path / "new" / "set"
    listed = json.loads((root / "classes.json").read_text())
    assert listed == {"classes": list(CREATURES), "parts": list(PARTS)}
    names = sorted(path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("*.png"))
    first = listed["classes"][0]
    assert len(names) == 17 and f"{first}/0003.png" in names
    for name in names:
        with Image.open(root / "images" / name) as picture, Image.open(root / "masks" / name) as mask:
            assert (picture.mode, picture.size) == ("RGB", (40, 40))
            assert (mask.mode, mask.size) == ("L", (40, 40))
            assert np.asarray(mask).max() < len(PARTS)


def test_an_empty_folder_is_filled_and_a_full_one_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    draw_creatures(out, count=1, size=32)
    before = files(out)
    with refused(out):
        draw_creatures(out, count=2, size=32)
    assert files(out) == before


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 8}, {"seed": -1}])
def test_numbers_out_of_their_limits_leave_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    ((option, value),) = wrong.items()
    with refused(option, value):
        draw_creatures(tmp_path / "out", **wrong)
    assert not list(tmp_path.iterdir())


def test_masks_hold_every_part_and_stay_inside(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, masks, classes = drawn
    assert masks.max() < len(PARTS)
    share = (masks > 0).mean((1, 2))
    assert share.min() > 0.06 and share.max() < 0.6
    edge = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1)
    assert not edge.any(), "a creature is cut off"
    holds = np.stack([(masks == part).any((1, 2)) for part in range(len(PARTS))], 1)  # (N, parts)
    for k, name in enumerate(CREATURES):
        # The octopus alone has no tail; otherwise every image shows all parts, so that none is rare.
        assert (holds[classes == k].mean(0) >= 0.95).sum() == len(PARTS) - (name == "octopus"), name


def test_parts_and_background_differ_in_colour(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Else they could not be learned. Eyes are left out: white with a dark pupil, they have no one colour."""
    pictures, masks, _ = drawn
    apart = []
    for picture, mask in zip(pictures, masks, strict=True):
        colours = np.stack([np.median(picture[mask == k], 0) for k in np.unique(mask) if PARTS[k] != "eye"])
        distance = np.linalg.norm(colours[:, None] - colours, axis=2)
        apart.append(distance[np.triu_indices(len(colours), 1)].min())
    # Of 255, between the two closest labels of an image: body and limb, most often.
    assert np.median(apart) > 30


def test_colour_and_position_do_not_give_the_class(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pictures, masks, classes = drawn
    chance = 1 / len(CREATURES)
    assert nearest_centroid_accuracy(pictures.mean((1, 2)), classes) < chance + 0.1
    rows, columns = np.mgrid[:48, :48]
    area = (masks > 0).sum((1, 2))
    centres = np.stack([((masks > 0) * axis).sum((1, 2)) / area for axis in (rows, columns)], 1)
    assert nearest_centroid_accuracy(centres, classes) < chance + 0.15


def test_patterned_parts_have_hues_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all images: the mean colour of a part says which it is, far more often than without patterns.

    An image's own light takes some of that away, and not much.
    """
    right = {}
    usual = creatures.LIGHT
    for drawn, light in (("flat", 0.0), ("patterned", 0.0), ("lit", usual)):
        monkeypatch.setattr(creatures, "LIGHT", light)
        pairs = [
            draw_creature(name, 48, np.random.default_rng([3, i]), drawn != "flat")
            for i in range(13)
            for name in CREATURES
        ]
        found = [
            (picture[mask == part].mean(0), part - 1)
            for picture, mask in pairs
            for part in range(1, len(PARTS) - 1)
            if (mask == part).any()
        ]
        right[drawn] = nearest_centroid_accuracy(*(np.stack(column) for column in zip(*found, strict=True)))
    assert right["patterned"] > right["flat"] + 0.2, right
    assert 0.6 < right["lit"] < right["patterned"] and right["lit"] > right["flat"] + 0.15, right


def test_a_rounded_outline_passes_through_its_corners() -> None:
    corners = (0.0, 0.0, 10.0, 2.0, 8.0, 9.0, -3.0, 7.0)
    curve = outline("blob", corners)
    distance = np.linalg.norm(curve[:, None] - np.reshape(corners, (-1, 2)), axis=2)
    np.testing.assert_allclose(distance.min(0), 0, atol=1e-12)
