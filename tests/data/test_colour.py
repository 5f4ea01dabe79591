"""Colours are compared with torchvision's adjustments."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from semmae.data.colour import GLOBAL_CHANCES, Chances, jitter, shift_colours


def muted(seed: int = 0) -> torch.Tensor:
    """Colours in the middle, so that nothing is clipped."""
    return torch.from_numpy(np.random.default_rng(seed).integers(70, 150, (3, 24, 24), np.uint8))


@pytest.mark.parametrize(
    ("name", "factor", "arguments"),
    [
        ("brightness", 1.3, (1.3, 1, 1, 0)),
        ("brightness", 0.6, (0.6, 1, 1, 0)),
        ("contrast", 0.7, (1, 0.7, 1, 0)),
        ("contrast", 1.4, (1, 1.4, 1, 0)),
        ("saturation", 0.0, (1, 1, 0, 0)),
        ("saturation", 1.2, (1, 1, 1.2, 0)),
    ],
)
def test_agrees_with_torchvision(name: str, factor: float, arguments: tuple[float, float, float, float]) -> None:
    expected = getattr(F, f"adjust_{name}")(muted(), factor)
    assert (shift_colours(muted(), *arguments).int() - expected.int()).abs().max() <= 2  # they round, or cut off


def test_hue_turns_as_on_the_colour_circle() -> None:
    red = torch.tensor([150, 60, 60], dtype=torch.uint8).view(3, 1, 1)
    assert shift_colours(red, 1, 1, 1, 1 / 3).flatten().tolist() == [60, 150, 60]
    assert shift_colours(red, 1, 1, 1, -1 / 3).flatten().tolist() == [60, 60, 150]
    turned = shift_colours(red, 1, 1, 1, 0.1).flatten().tolist()
    assert colorsys.rgb_to_hsv(*turned)[0] == pytest.approx(0.1, abs=0.03)


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(shift_colours(muted(), 1, 1, 1, 0), muted())


def test_jitter_is_a_function_of_its_generator() -> None:
    image = muted(1)
    views = [jitter(image, np.random.default_rng(seed)) for seed in range(40)]
    again = [jitter(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all(torch.equal(one, other) for one, other in zip(views, again, strict=True))
    gray = sum(torch.equal(view[0], view[1]) for view in views)
    same = sum(torch.equal(view, image) for view in views)
    assert 2 <= gray <= 16 and same <= 8
    assert {(view.shape, view.dtype) for view in views} == {(image.shape, torch.uint8)}


def test_hue_turns_as_far_as_dinos() -> None:
    red = torch.tensor([150, 60, 60], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    seen = [jitter(red, np.random.default_rng(seed)).float().mean((1, 2)).tolist() for seed in range(60)]
    turned = [abs((colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5) for colour in seen]
    assert 0.05 <= max(turned) <= 0.12


def test_views_are_blurred_as_often_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of DINO's: the first view always, the second one in ten times, small ones every other."""
    blurred: list[int] = []
    monkeypatch.setattr("semmae.data.colour.F.gaussian_blur", lambda image, *_: blurred.append(1) or image)

    def share(chances: Chances) -> float:
        blurred.clear()
        for seed in range(200):
            jitter(muted(), np.random.default_rng(seed), chances=chances)
        return len(blurred) / 200

    assert (Chances(1.0, 0.0), Chances(0.1, 0.2)) == GLOBAL_CHANCES
    assert [share(own) for own in (*GLOBAL_CHANCES, Chances())] == pytest.approx([1.0, 0.1, 0.5], abs=0.06)


def test_solarisation_inverts_the_bright_half_as_pillow_does() -> None:
    image = muted(2)
    kept = [jitter(image, np.random.default_rng(seed), chances=Chances(0.0)) for seed in range(40)]
    always = [jitter(image, np.random.default_rng(seed), chances=Chances(0.0, 1.0)) for seed in range(40)]
    for plain, found in zip(kept, always, strict=True):
        wanted = ImageOps.solarize(Image.fromarray(plain.permute(1, 2, 0).numpy()))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(wanted))
    often = [jitter(image, np.random.default_rng(seed), chances=Chances(0.0, 0.2)) for seed in range(40)]
    changed = sum(not torch.equal(found, plain) for found, plain in zip(often, kept, strict=True))
    assert 3 <= changed <= 14
