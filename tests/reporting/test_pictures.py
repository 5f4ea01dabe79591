"""Colours that people tell apart, also colour-blind ones; soft maps and crops, pixel by pixel."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semmae.reporting.pictures import _oklab, heat, label_colours, overlay, spotlight, webp

NAMES = ["background", "head", "body"]

# What each colour-blind eye sees of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
EYES = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red cones": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)
    ),
    "no green cones": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)
    ),
    "no blue cones": (
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)
    ),
}  # fmt: skip


def part_colours(count: int) -> np.ndarray:
    return np.array(label_colours([f"part {number}" for number in range(count)]))


def nearest(colours: np.ndarray) -> float:
    """The smallest perceived difference of any two colours (N, 3)."""
    lab = _oklab(colours)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(distance[~np.eye(len(colours), dtype=bool)].min())


def seen(colours: np.ndarray, eye: str) -> np.ndarray:
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(EYES[eye]).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_colour_space_knows_white_black_and_red() -> None:
    """Against the values in Ottosson's description of OKLab."""
    expected = [[1, 0, 0], [0, 0, 0], [0.627955, 0.224863, 0.125846]]
    assert np.allclose(_oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]])), expected, atol=1e-4)


def test_the_first_eight_colours_differ_for_every_eye() -> None:
    for eye in EYES:
        assert nearest(seen(part_colours(8), eye)) > 0.07, eye


def test_as_many_colours_as_labels_and_none_is_taken_for_another() -> None:
    assert nearest(part_colours(12)) > 0.15
    assert nearest(part_colours(254)) > 0.04
    grey = part_colours(254).max(1) - part_colours(254).min(1)
    assert grey.min() > 20  # grey is the background's


def test_a_colour_stays_when_parts_are_added() -> None:
    assert (part_colours(254)[:20] == part_colours(20)).all()
    assert part_colours(14)[8:].tolist() == [
        [102, 68, 0], [255, 204, 255], [170, 0, 102], [68, 255, 238], [136, 68, 204], [102, 204, 51]
    ]  # fmt: skip


def test_a_sure_map_looks_like_the_hard_part_and_an_empty_one_like_background() -> None:
    """One-hot maps: each map's picture is `overlay` with every other label made background."""
    photos, labels = images(2, 24), torch.randint(0, 3, (2, 24, 24), generator=torch.Generator().manual_seed(1))
    maps = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    shown = torch.stack([heat(photo, own, label_colours(NAMES)) for photo, own in zip(photos, maps, strict=True)])
    for label in (1, 2):
        assert torch.equal(shown[:, label], overlay(photos, torch.where(labels == label, label, 0), NAMES))
    background = shown[:, 0].float()
    assert (background.amax(1) == background.amin(1)).all()  # grey, and bright where it is background
    assert background.mean(1)[labels == 0].mean() > background.mean(1)[labels > 0].mean() + 50


def test_a_half_sure_map_is_half_way() -> None:
    photo, colour = images(1, 8)[0], [(10, 200, 90)]
    full, half, none = (heat(photo, torch.full((1, 2, 2), value), colour)[0].float() for value in (1.0, 0.5, 0.0))
    assert ((half - (full + none) / 2).abs() <= 1).all() and not torch.equal(full, none)


def test_spotlight_keeps_the_region_draws_its_edge_and_dims_the_rest() -> None:
    photos = images(1, 20)
    region = torch.zeros(1, 20, 20, dtype=torch.bool)
    region[:, 5:12, 6:15] = True
    shown = spotlight(photos, region.numpy(), [(1, 2, 3)])
    assert torch.equal(shown[:, :, 5:12, 6:15], photos[:, :, 5:12, 6:15])
    edge = torch.zeros(20, 20, dtype=torch.bool)
    edge[3:14, 4:17] = True
    edge &= ~region[0]
    assert (shown[0].permute(1, 2, 0)[edge] == torch.tensor([1, 2, 3])).all()
    around = ~(edge | region[0])
    assert shown[0][:, around].float().mean() < 0.6 * photos[0][:, around].float().mean()


def test_webp_is_the_picture() -> None:
    smooth = torch.nn.functional.interpolate(images(1, 4).float(), 64, mode="bilinear").to(torch.uint8)[0]
    kind, _, data = webp(smooth).partition(",")
    assert kind == "data:image/webp;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - smooth.numpy()).mean() < 6
