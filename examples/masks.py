"""Draws the maskings of one's own images: the same crops, the same parts, hidden in every way there is.

    python examples/masks.py --data photos --parts runs/parts --out masks.png

A mask is a function of labels or scores and of noise, nothing else: the same noise gives the same mask.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from semmae import (
    CropDataset,
    PartStore,
    attention_mask,
    block_mask,
    colour_mask,
    green_noise,
    masks_picture,
    open_images,
    random_mask,
    semantic_mask,
)


def maskings(
    parts: Tensor, num_labels: int, attention: Tensor | None = None, ratio: float = 0.75, seed: int = 0
) -> dict[str, Tensor]:
    """Masks of every kind, bool (B, L), True = hidden, by name.

    Args:
        parts: part label of each patch, int64 (B, L).
        num_labels: how many labels there are.
        attention: a teacher's attention to each patch, float (B, L); without it nothing is hidden by attention.
        ratio: share of patches to hide.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(parts.shape, generator=generator)
    box_noise = torch.rand(len(parts), 16, 4, generator=generator)
    hint_noise = torch.rand(parts.shape, generator=generator)
    order_noise = torch.rand(len(parts), num_labels, generator=generator)
    window_noise = torch.rand(len(parts), 2, generator=generator)
    field = green_noise(torch.rand(256, 256, generator=generator, dtype=torch.float64))
    masks = {
        "random": random_mask(noise, ratio),
        "block": block_mask(noise, box_noise, ratio),
        "colour": colour_mask(field, window_noise, parts.shape[1], ratio),
    }
    if attention is not None:
        masks["attention"] = attention_mask(attention, noise, hint_noise, ratio)
    # SemMAE's schedule goes this way in training: from a share of every part to whole parts.
    for name, blend in (("intra", 0.0), ("semantic, half way", 0.5), ("inter", 1.0)):
        masks[name] = semantic_mask(parts, noise, order_noise, ratio, blend)
    return masks


def draw(
    data: str, parts: Path, out: Path, image_size: int = 224, patch_size: int = 16, count: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Write a picture of `count` images spread over the data, a column a masking; returns the masks."""
    images = open_images(data)
    store = PartStore.open(parts, manifest_digest=images.digest)
    side = image_size // patch_size
    # The parts are stored once an image: the crop that is cut out of the pixels is read out of them too.
    attended = store.attention_grid > 0
    crops = CropDataset(images, image_size, seed=seed, parts=store, side=side, attention=attended)
    items = [crops[row] for row in torch.linspace(0, len(images) - 1, count).long().tolist()]
    labels = torch.stack([item["parts"] for item in items])
    attention = torch.stack([item["attention"] for item in items]) if attended else None
    masks = maskings(labels, store.num_labels, attention, seed=seed)
    pixels = torch.cat([item["images"] for item in items])
    masks_picture(pixels, labels.unflatten(1, (side, side)), store.label_names, list(masks.items()), out)
    return masks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--parts", required=True, type=Path, help="their part labels, written by semmae parts")
    parser.add_argument("--out", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side of the crops")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels a side of a patch")
    draw(**vars(parser.parse_args()))
