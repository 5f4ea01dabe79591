"""Changes of colour for the views of one image, so that a teacher cannot tell images apart by colour alone.

The strengths are those of DINO (Caron et al. 2021, which takes them from BYOL), without solarisation.
"""

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """uint8 (3, S, S) → the same: brightness, contrast, saturation, hue (80 %), gray (20 %), blur (50 %)."""
    change, gray, blur, sigma = rng.random(4).tolist()
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
    if change < 0.8:
        image = F.adjust_brightness(image, 1 + 0.4 * brightness)
        image = F.adjust_contrast(image, 1 + 0.4 * contrast)
        image = F.adjust_saturation(image, 1 + 0.2 * saturation)
        image = F.adjust_hue(image, 0.1 * hue)
    if gray < 0.2:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if blur < 0.5:
        # DINO blurs 224-pixel views with sigma 0.1 to 2; smaller views get proportionally less.
        deviation = (0.1 + 1.9 * sigma) * image.shape[-1] / 224
        image = F.gaussian_blur(image, [2 * int(3 * deviation) + 3] * 2, [deviation, deviation])
    return image
