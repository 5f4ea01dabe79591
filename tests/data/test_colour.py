"""Colours are compared with torchvision's adjustments and Pillow's, and how often they are drawn with DINO's."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from semmae.data.colour import (
    GLOBAL_CHANCES,
    Chances,
    Changes,
    blurred,
    changes_of,
    colour_matrices,
    draw_changes,
    recoloured,
    shift_colours,
)

UNCHANGED = (1.0, 1.0, 1.0, 0.0)


def muted(seed: int = 0, side: int = 24) -> Tensor:
    """Colours in the middle, so that nothing is cut off."""
    return torch.from_numpy(np.random.default_rng(seed).integers(70, 150, (3, side, side), np.uint8))


def shifted(views: Tensor, *factors: tuple[float, ...], gray: bool = False) -> Tensor:
    """Views with these factors of brightness, contrast and saturation, and turns of hue."""
    return shift_colours(views, colour_matrices(torch.tensor(factors), torch.full((len(factors),), float(gray))))


def many(image: Tensor, count: int, **chances: float) -> Tensor:
    """An image under changes of so many seeds."""
    return recoloured(image.expand(count, -1, -1, -1), drawn(count, Chances(**chances)))


def drawn(count: int, chances: Chances) -> Changes:
    """What so many seeds draw for a view each."""
    return changes_of(torch.cat([draw_changes(np.random.default_rng(seed), [chances]) for seed in range(count)]))


@pytest.mark.parametrize(
    ("name", "factor", "place"),
    [
        ("brightness", 1.3, 0),
        ("brightness", 0.6, 0),
        ("contrast", 0.7, 1),
        ("contrast", 1.4, 1),
        ("saturation", 0.0, 2),
        ("saturation", 1.2, 2),
    ],
)
def test_agrees_with_torchvision(name: str, factor: float, place: int) -> None:
    """Of floats to a twentieth of a step, for it weighs red with 0.2989; of whole numbers its own are cut to such."""
    factors = [factor if at == place else value for at, value in enumerate(UNCHANGED)]
    bright = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    for image in (muted(), bright):
        found, adjust = shifted(image[None], tuple(factors))[0], getattr(F, f"adjust_{name}")
        assert torch.allclose(found / 255, adjust(image / 255, factor), atol=2e-4)
        assert (found - adjust(image, factor)).abs().max() < 1.2


def test_all_in_turn_are_torchvisions_in_turn() -> None:
    wanted = muted() / 255
    for name, factor in (("brightness", 1.2), ("contrast", 0.8), ("saturation", 1.1)):
        wanted = getattr(F, f"adjust_{name}")(wanted, factor)
    factors = (1.2, 0.8, 1.1, 0.0)
    assert torch.allclose(shifted(muted()[None], factors)[0] / 255, wanted, atol=2e-4)
    gray = F.rgb_to_grayscale(wanted, num_output_channels=3)
    assert torch.allclose(shifted(muted()[None], factors, gray=True)[0] / 255, gray, atol=2e-4)


def test_hue_turns_as_on_the_colour_circle() -> None:
    red = torch.tensor([150, 60, 60], dtype=torch.uint8).view(1, 3, 1, 1)

    def turned(turns: float) -> list[float]:
        found: list[float] = shifted(red, (1, 1, 1, turns)).flatten().tolist()
        return found

    assert turned(1 / 3) == pytest.approx([60, 150, 60], abs=1e-3)
    assert turned(-1 / 3) == pytest.approx([60, 60, 150], abs=1e-3)
    assert colorsys.rgb_to_hsv(*turned(0.1))[0] == pytest.approx(0.1, abs=0.03)


def test_hues_are_nearly_torchvisions() -> None:
    """Which keeps the largest and the least of a pixel's colours in place of their mean."""
    image = muted()
    for turns in (-0.1, 0.05, 0.1):
        found, wanted = shifted(image[None], (1, 1, 1, turns))[0] / 255, F.adjust_hue(image / 255, turns)
        hues = [colorsys.rgb_to_hsv(*pixel)[0] for each in (found, wanted) for pixel in each.flatten(1).T.tolist()]
        apart = (np.subtract(*np.split(np.array(hues), 2)) + 0.5) % 1 - 0.5
        assert np.abs(apart).max() < 0.007
        assert torch.allclose(found.mean(0), image.float().mean(0) / 255, atol=1e-5)


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(shifted(muted()[None], UNCHANGED)[0], muted().float())
    nothing = Changes(torch.eye(3, 4)[None], torch.zeros(1), torch.tensor([False]))
    bright = torch.arange(256).expand(1, 3, 256, 256).to(torch.uint8)
    assert torch.equal(recoloured(bright, nothing), bright.float())


@pytest.mark.parametrize("side", [8, 96, 224])
def test_blurs_are_torchvisions(side: int) -> None:
    """Each view by its own sigma; weights reach as far as the largest needs."""
    images = torch.stack([muted(seed, side).float() for seed in range(3)])
    sigmas = [0.0, 0.7 * side / 224, 2 * side / 224]
    found = blurred(images, torch.tensor(sigmas) / side)
    assert torch.equal(found[0], images[0])
    width = 2 * int(np.ceil(4 * side / 224)) + 1
    for image, sigma, own in zip(images[1:], sigmas[1:], found[1:], strict=True):
        assert torch.allclose(own, F.gaussian_blur(image, [width, width], [sigma, sigma]), atol=1e-3)


def test_colours_under_autocast_are_those_of_float32() -> None:
    changes = changes_of(draw_changes(np.random.default_rng(0), GLOBAL_CHANCES))
    views = torch.stack([muted(), muted(1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recoloured(views, changes)
    assert found.dtype == torch.float32 and torch.equal(found, recoloured(views, changes))


def test_changes_are_functions_of_their_generator() -> None:
    image, again = many(muted(1), 40), many(muted(1), 40)
    assert torch.equal(image, again) and image.min() >= 0 and image.max() <= 255
    gray = sum(torch.allclose(view[0], view[1], atol=1e-3) for view in image)
    same = sum(torch.equal(view, muted(1).float()) for view in image)
    assert 2 <= gray <= 16 and same <= 8


def test_hue_turns_as_far_as_dinos() -> None:
    red = torch.tensor([150, 60, 60], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    seen = many(red, 60).mean((2, 3)).tolist()
    turned = [abs((colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5) for colour in seen]
    assert 0.05 <= max(turned) <= 0.12


def test_views_are_blurred_as_often_as_given() -> None:
    """Of DINO's: the first view always, the second one in ten times, small ones every other."""

    def share(chances: Chances) -> float:
        return float((drawn(200, chances).blurs > 0).double().mean())

    assert (Chances(1.0, 0.0), Chances(0.1, 0.2)) == GLOBAL_CHANCES
    assert [share(own) for own in (*GLOBAL_CHANCES, Chances())] == pytest.approx([1.0, 0.1, 0.5], abs=0.06)


def test_solarisation_inverts_the_bright_half_as_pillow_does() -> None:
    whole = torch.arange(256).expand(1, 3, 256, 256).to(torch.uint8)
    found = recoloured(whole, Changes(torch.eye(3, 4)[None], torch.zeros(1), torch.tensor([True])))
    wanted = np.asarray(ImageOps.solarize(Image.fromarray(whole[0].permute(1, 2, 0).numpy())))
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), wanted)

    assert float(drawn(200, Chances(0.0, 0.2)).solarised.double().mean()) == pytest.approx(0.2, abs=0.06)
