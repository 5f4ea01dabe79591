"""Pictures at the end of pre-training: masks along the schedule, and what the autoencoder makes of the first."""

import math
from pathlib import Path

import torch
from torch import Tensor

from semmae.data.attention import MOST_ATTENDED
from semmae.data.crop import WHOLE, crop_parts, crop_scores
from semmae.data.loaders import WholeDataset, denormalise, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.levels import in_rgb
from semmae.models.mae import MaskedAutoencoder
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainRecipe
from semmae.patches import denormalize_patches, patchify, unpatchify
from semmae.reporting.part_samples import spread
from semmae.reporting.pictures import masks_picture, paste, reconstructions_picture
from semmae.sizes import Grid
from semmae.train.masks import mask_function
from semmae.train.pretrain import blend_at, mask_context

_PICTURED = 8  # images in each picture


@torch.inference_mode()
def draw_masks(
    folder: Path, images: ImageSet, store: PartStore | None, mae: MaskedAutoencoder, recipe: PretrainRecipe
) -> None:
    """masks.png, masks at five points of the schedule; of predicted pixels reconstructions.png, at its first.

    Hidden patches are grey; those that take no part, where only a subset does, are pale.
    """
    spec = mae.encoder.spec
    mae = mae.cpu().eval()
    rows = spread(len(images), _PICTURED)
    # The same whole images as in the store, seen as one crop that keeps everything.
    whole = WholeDataset(images, spec.image_size)
    pixels = torch.stack([whole[row]["image"] for row in rows])
    drawn = _masks_along(recipe, store, rows, spec.grid)
    _, mask, subset = drawn[0]
    grids = None if store is None else store.labels[rows]
    names = [] if store is None else store.label_names
    length = math.prod(spec.grid)
    seen = in_rgb(pixels)
    shown = seen if subset is None else faded(seen, subset, length)
    masks = [(title, on_the_grid(mask, subset, length)) for title, mask, subset in drawn]
    masks_picture(shown, grids, names, masks, folder / "masks.png")
    if not mae.decoder.token_width:
        rebuilt = reconstruct_pixels(mae, pixels, mask, subset)
        reconstructions_picture(shown, masks[0][1], rebuilt, folder / "reconstructions.png")


@torch.inference_mode()
def reconstruct_pixels(mae: MaskedAutoencoder, pixels: Tensor, mask: Tensor, subset: Tensor | None = None) -> Tensor:
    """Pixels (B, C, H, W) → hidden patches as the autoencoder predicts them, to look at: uint8 (B, 3, H, W).

    Other patches mean nothing.

    `mask`: bool (B, L), or (B, N) over the patches that take part, whose indices (B, N) are in `subset`.
    """
    spec = mae.encoder.spec
    images = normalise(pixels, spec.mean, spec.std)
    prediction = mae(images, mask, subset).pred
    if mae.norm_pix_loss:
        # Only the true patch knows its mean and deviation: borrowed from it, as MAE's own demonstration does.
        prediction = denormalize_patches(prediction, patchify(images, spec.patch_size))
    made = unpatchify(prediction, spec.patch_size, mae.encoder.grid_of(images))
    return in_rgb(denormalise(made, spec.mean, spec.std), like=pixels)


def on_the_grid(mask: Tensor, subset: Tensor | None, length: int) -> Tensor:
    """A mask bool (B, N) over a subset (B, N) of the patches, or over all of them → over all, bool (B, length)."""
    return mask if subset is None else mask.new_zeros(len(mask), length).scatter(1, subset, mask)


def faded(images: Tensor, subset: Tensor, length: int) -> Tensor:
    """Images uint8 (B, 3, H, W), pale but for the patches that take part, indices (B, N) of so many in the grid."""
    others = torch.ones(len(images), length, dtype=torch.bool).scatter(1, subset, False)
    return paste(images, others, 255 - (255 - images) // 4)


def _masks_along(
    recipe: PretrainRecipe, store: PartStore | None, rows: list[int], grid: Grid
) -> list[tuple[str, Tensor, Tensor | None]]:
    """(title, mask, the subset of the patches it is over, if any) of these images at five points of the training."""
    batch: dict[str, Tensor] = {}
    if store is not None:
        batch["parts"] = torch.stack([crop_parts(store.labels[row], WHOLE, grid) for row in rows])
        if store.attention_grid:
            scores = torch.stack([crop_scores(store.attention[row], WHOLE, grid) for row in rows])
            batch["attention"] = scores / MOST_ATTENDED
    labels = 0 if store is None else store.num_labels
    # Along a schedule the noise stays the same, so that only the blend changes; else it alone changes. What one's own
    # function follows is not known.
    known = MASKINGS.get(recipe.masking)
    scheduled = known is None or (known.scheduled and recipe.blend is None)
    draw = mask_function(recipe.masking)
    masks: list[tuple[str, Tensor, Tensor | None]] = []
    for number, point in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        generator = torch.Generator().manual_seed(recipe.seed if scheduled else recipe.seed + number)
        context = mask_context(
            recipe, batch, (len(rows), math.prod(grid)), grid=grid, progress=point, generator=generator,
            num_labels=labels,
        )  # fmt: skip
        blend = blend_at(recipe, point)
        title = f"{point:.0%}" if blend is None else f"{point:.0%} · blend {blend:.2f}"
        masks.append((title, draw(context), context.subset))
    return masks
