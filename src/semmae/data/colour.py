"""Changes of colour for the views of one image, so that a teacher cannot know images by colour alone.

Drawn where images are loaded, done on the device for a batch at once: a core then loads 2.7 times as many pairs of
views, 3.5 times as many of two with eight small ones (`benchmarks/results/loading_views.json`).

Kinds and strengths are those of DINO (Caron et al. 2021). Brightness, contrast, saturation, hue and gray are affine in
a pixel's colour and in its view's mean gray, so one 3 × 4 matrix joins them. Unlike torchvision's `ColorJitter`, which
DINO calls, the order is fixed (brightness, contrast, saturation, hue, then gray), colours are cut to 0..255 once, at
the end, and nothing is rounded. Hue turns colours about the gray axis, which keeps their mean; it is no turn of HSV.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semmae.levels import levels
from semmae.losses import in_float32

HUE = 0.1  # turns of the colour circle, DINO's
_LUMA = (0.299, 0.587, 0.114)
# DINO blurs 224-pixel views with sigma 0.1 to 2; smaller views get proportionally less.
_BLURS = (0.1 / 224, 2 / 224)
_REACH = 2  # of a blur's weights, in times the largest sigma


class Chances(NamedTuple):
    """How often a view is blurred and solarised."""

    blur: float = 0.5
    solarise: float = 0.0


PLAIN_CHANCES = Chances()  # of local crops
# Of the two global crops of DINO and iBOT: sharpness and tone, which differ, do not give an image away.
GLOBAL_CHANCES = (Chances(1.0), Chances(0.1, 0.2))


class Changes(NamedTuple):
    """What is to be done to views; `recoloured` does it."""

    colours: Tensor  # float32 (…, 3, 4): from a pixel's colour and its view's mean gray to the new colour
    blurs: Tensor  # float32 (…,): sigma, as a share of the view's side; 0 = as it is
    solarised: Tensor  # bool (…,)


def draw_changes(rng: np.random.Generator, chances: Sequence[Chances]) -> Tensor:
    """A row of float32 numbers for each view with its chances, (V, 7); `changes_of` makes changes of many at once.

    Factors of brightness, contrast and saturation, 1 = as it is; hue in turns, by at most `HUE` of the colour circle
    either way; 1 where all becomes gray; the blur; 1 where solarised.
    """
    return torch.tensor([_drawn(rng, own) for own in chances])


def _drawn(rng: np.random.Generator, chances: Chances) -> list[float]:
    change, gray, blur, sigma = rng.random(4).tolist()
    shifts = rng.uniform(-1, 1, 4).tolist()  # drawn in any case: what comes after stays the same
    brightness, contrast, saturation, hue = shifts if change < 0.8 else (0, 0, 0, 0)
    least, most = _BLURS
    return [
        *(1 + 0.4 * brightness, 1 + 0.4 * contrast, 1 + 0.2 * saturation, HUE * hue),
        float(gray < 0.2),
        least + (most - least) * sigma if blur < chances.blur else 0.0,
        float(chances.solarise > 0 and rng.random() < chances.solarise),
    ]


def changes_of(drawn: Tensor) -> Changes:
    """Rows of `draw_changes`, (…, 7), of any number of views → their changes."""
    return Changes(colour_matrices(drawn[..., :4], drawn[..., 4]), drawn[..., 5], drawn[..., 6] > 0)


def colour_matrices(factors: Tensor, gray: Tensor) -> Tensor:
    """Factors and turns (…, 4), and 1 where all becomes gray (…,), as `draw_changes` has them → float32 (…, 3, 4).

    The last column is what the mean gray of the view counts: contrast is about it, which brightness has scaled.
    """
    brightness, contrast, saturation, turns = factors.double()[..., None, None].unbind(-3)
    matrix = brightness * contrast * (_turns(turns) @ _saturation(saturation))
    matrix = torch.where(gray[..., None, None] > 0, _saturation(torch.zeros(())) @ matrix, matrix)
    offset = (brightness * (1 - contrast)).expand(*gray.shape, 3, 1)  # of equal parts, which stay so in gray
    return torch.cat([matrix, offset], dim=-1).float()


def _saturation(factor: Tensor) -> Tensor:
    """(…, 1, 1) → (…, 3, 3): 0 makes gray."""
    return factor * torch.eye(3) + (1 - factor) * torch.tensor(_LUMA, dtype=torch.double).expand(3, 3)


def _turns(turns: Tensor) -> Tensor:
    """(…, 1, 1) → (…, 3, 3) rotations of colours about the gray axis (1, 1, 1) (Rodrigues' formula)."""
    angle = 2 * math.pi * turns
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return angle.cos() * torch.eye(3) + (1 - angle.cos()) / 3 + angle.sin() / math.sqrt(3) * cross


@in_float32
def recoloured(views: Tensor, changes: Changes) -> Tensor:
    """Views uint8 (V, 3, H, W) → float32, from 0 to 255, with the changes (V,) that were drawn for them."""
    images = blurred(shift_colours(views, changes.colours), changes.blurs)
    # At 127.5 colours are folded: as Pillow's solarisation, which DINO and iBOT call, of whole numbers. A fold at 255
    # changes nothing, so that nobody has to ask the device which views are solarised.
    fold = 510.0 - 255.0 * changes.solarised[:, None, None, None]
    return torch.minimum(images, fold - images)


def shift_colours(views: Tensor, matrices: Tensor) -> Tensor:
    """Views uint8 (V, 3, H, W) → float32, from 0 to 255; see `colour_matrices` for those (V, 3, 4)."""
    pixels = levels(views).flatten(2)  # (V, C, H·W)
    if pixels.shape[1] != 3:
        return _shift_levels(pixels, matrices).view(views.shape)
    red, green, blue = (share * mean for share, mean in zip(_LUMA, pixels.mean(2).unbind(1), strict=True))
    gray = red + green + blue
    changed = torch.baddbmm(matrices[..., 3:] * gray[:, None, None], matrices[..., :3], pixels)
    return changed.clamp_(0, 255).view_as(views)


def _shift_levels(pixels: Tensor, matrices: Tensor) -> Tensor:
    """What a matrix means where there are no colours: brightness, and contrast about each channel's own mean (V, C, N).

    Turns and saturation keep the sum of a row, which is brightness times contrast; the last column is the rest.
    """
    gain, offset = matrices[..., 0, :3].sum(-1)[:, None, None], matrices[..., 0, 3][:, None, None]
    return (gain * pixels + offset * pixels.mean(2, keepdim=True)).clamp_(0, 255)


def blurred(images: Tensor, blurs: Tensor) -> Tensor:
    """Float images (V, C, H, W), each blurred by its own sigma (V,), a share of the short side, at most DINO's."""
    count, channels, height, width = images.shape
    side = min(height, width)
    reach = math.ceil(_REACH * _BLURS[1] * side)
    places = torch.arange(-reach, reach + 1, device=images.device)
    # So small a sigma leaves all weight in the middle.
    weights = (-0.5 * (places / (side * blurs).clamp(min=1e-3)[:, None]).square()).softmax(1)
    kernels = weights[:, None].expand(-1, channels, -1).reshape(count * channels, 1, -1, 1)
    # Down and across, each plane by a kernel of its own.
    planes = functional.pad(images.view(1, -1, height, width), [reach] * 4, mode="reflect")
    down = functional.conv2d(planes, kernels, groups=len(kernels))
    return functional.conv2d(down, kernels.mT, groups=len(kernels)).view_as(images)
