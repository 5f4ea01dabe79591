"""Changes of colour for the views of one image, so that a teacher cannot know images by colour alone.

Kinds and strengths are those of DINO (Caron et al. 2021). Brightness, contrast, saturation and hue are affine in a
pixel's colour, so one 3 × 4 matrix joins them: one pass instead of four. Hue turns colours about the gray axis, which
keeps their mean; it is not the hue of HSV.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

HUE = 0.1  # turns of the colour circle, DINO's
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_SOLAR = 128  # from this value on solarisation inverts: Pillow's, which DINO and iBOT call


class Chances(NamedTuple):
    """How often a view is blurred and solarised."""

    blur: float = 0.5
    solarise: float = 0.0


PLAIN_CHANCES = Chances()  # of local crops, and of the views that parts are learned from
# Of the two global crops of DINO and iBOT: sharpness and tone, which differ, do not give an image away.
GLOBAL_CHANCES = (Chances(1.0), Chances(0.1, 0.2))


def jitter(image: Tensor, rng: np.random.Generator, chances: Chances = PLAIN_CHANCES) -> Tensor:
    """uint8 (3, S, S) → the same, changed by chance; hue by at most `HUE` of the colour circle either way."""
    change, gray, blur, sigma = rng.random(4).tolist()
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
    if change < 0.8:
        image = shift_colours(image, 1 + 0.4 * brightness, 1 + 0.4 * contrast, 1 + 0.2 * saturation, HUE * hue)
    if gray < 0.2:
        image = shift_colours(image, 1, 1, 0, 0)
    if blur < chances.blur:
        # DINO blurs 224-pixel views with sigma 0.1 to 2; smaller views get proportionally less.
        deviation = (0.1 + 1.9 * sigma) * image.shape[-1] / 224
        image = F.gaussian_blur(image, [2 * math.ceil(2 * deviation) + 1] * 2, [deviation, deviation])
    if chances.solarise and rng.random() < chances.solarise:
        image = F.solarize(image, _SOLAR)
    return image


def shift_colours(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """uint8 (3, S, S) → the same. Factors, 1 = as it is, saturation 0 = gray; hue in turns, 0 = as it is."""
    pixels = image.reshape(3, -1).float()  # (3, S·S)
    to_gray = _LUMA.expand(3, 3)
    matrix = saturation * torch.eye(3) + (1 - saturation) * to_gray
    matrix = contrast * brightness * (_turn(hue) @ matrix)
    # Contrast is about the mean gray of the image, which brightness has scaled.
    offset = (1 - contrast) * brightness * (_LUMA @ pixels.mean(1))
    changed = torch.addmm(offset.expand(3, 1), matrix, pixels)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


def _turn(turns: float) -> Tensor:
    """(3, 3) rotation of colours about the gray axis (1, 1, 1) (Rodrigues' formula)."""
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns) / math.sqrt(3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return cosine * torch.eye(3) + (1 - cosine) / 3 * torch.ones(3, 3) + sine * cross
