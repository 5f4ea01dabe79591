"""`semmae reconstruct`: what a masked autoencoder, ours or another's, makes of the patches that are hidden from it."""

import os
from pathlib import Path

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset
from semmae.data.manifest import open_images
from semmae.errors import UserError
from semmae.formats.open import load_mae
from semmae.masking import num_hidden, random_mask
from semmae.models.mae import MaskedAutoencoder
from semmae.options.reconstruct import ReconstructOptions
from semmae.options.values import check_image_size, check_values
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.reporting.mask_pictures import faded, on_the_grid, reconstruct_pixels
from semmae.reporting.next_steps import free
from semmae.reporting.part_samples import spread
from semmae.reporting.pictures import is_own
from semmae.reporting.run_page import reconstructions_picture
from semmae.run.folder import check_inputs
from semmae.run.places import check_place
from semmae.shell import command


def reconstruct(options: ReconstructOptions) -> Path:
    """Draw images, what is visible of them, and what a masked autoencoder makes of the rest."""
    check_values(options)
    out = options.out
    check_inputs(options)
    check_place("--out", out.absolute().parent, out)
    if os.path.lexists(out):
        if not options.overwrite:
            raise UserError(f"--out {out}: exists; replace it with --overwrite, or choose another")
        if not is_own(out):
            raise UserError(f"--out {out}: exists, and was not drawn by semmae: --overwrite will not replace it")
    mae = load_mae(options.autoencoder, num_heads=options.num_heads, decoder_num_heads=options.decoder_num_heads)
    patch, size = mae.encoder.patch_size, options.image_size or mae.encoder.spec.image_size
    check_image_size(size, patch)
    length = (size // patch) ** 2
    count = options.token_subset or length
    if count > length:
        raise UserError(
            f"--token-subset {count}: an image of {size} pixels has {length} patches of {patch}; give at most so many, "
            "or leave it out for all"
        )
    num_hidden(count, options.mask_ratio)  # refused before images are looked at
    images = open_images(options.data, workers=options.workers)
    dataset = WholeDataset(images, size, fit="centre")
    pixels = torch.stack([dataset[row]["image"] for row in spread(len(images), options.images)])
    draw(mae, pixels, options, out)
    features = free(out.with_suffix(".parquet"))
    step = command("embed", encoder=options.autoencoder, data=options.data, out=features)
    say(lines(made=[str(out)], step=step))
    return out


def draw(mae: MaskedAutoencoder, pixels: Tensor, options: ReconstructOptions, out: Path) -> None:
    """Write the picture of images uint8 (B, 3, S, S); those patches are pale that take no part."""
    length = (pixels.shape[-1] // mae.encoder.patch_size) ** 2
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.rand(len(pixels), length, generator=generator)
    if options.token_subset is None:
        mask = random_mask(noise, options.mask_ratio)
        reconstructions_picture(pixels, mask, reconstruct_pixels(mae, pixels, mask), out)
        return
    mask = random_mask(noise[:, : options.token_subset], options.mask_ratio)
    subset = torch.rand(len(pixels), length, generator=generator).argsort(1)[:, : options.token_subset]
    rebuilt = reconstruct_pixels(mae, pixels, mask, subset)
    reconstructions_picture(faded(pixels, subset, length), on_the_grid(mask, subset, length), rebuilt, out)
