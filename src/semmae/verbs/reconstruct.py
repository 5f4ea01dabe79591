"""`semmae reconstruct`: what a masked autoencoder, ours or another's, makes of the patches that are hidden from it."""

import dataclasses
import json
import math
import os
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset
from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError
from semmae.formats.folders import digest
from semmae.formats.open import load_mae
from semmae.levels import in_rgb
from semmae.masking import num_hidden, random_mask
from semmae.models.mae import MaskedAutoencoder
from semmae.names import shown
from semmae.objects import recordable
from semmae.options.reconstruct import ReconstructOptions
from semmae.options.values import check_image_size
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.reporting.mask_pictures import faded, on_the_grid, reconstruct_pixels
from semmae.reporting.next_steps import free
from semmae.reporting.part_samples import spread
from semmae.reporting.pictures import description_of, reconstructions_picture
from semmae.run.folder import check_inputs
from semmae.run.places import check_place
from semmae.shell import command
from semmae.sizes import Size, num_patches, size_text
from semmae.verbs.channels import seen_by


def reconstruct(options: ReconstructOptions) -> Path:
    """Draw images, what is visible of them, and what a masked autoencoder makes of the rest."""
    out = options.out
    check_inputs(options)
    _check_picture(out)
    mae = load_mae(options.autoencoder, num_heads=options.num_heads, decoder_num_heads=options.decoder_num_heads)
    if mae.decoder.token_width:
        raise UserError(
            f"{options.autoencoder}: predicts the tokens of a teacher, which cannot be drawn; give an autoencoder that "
            "predicts pixels"
        )
    size = _checked_size(options, mae)
    with seen_by(mae.encoder, options.autoencoder):
        images = open_images(options.data, workers=options.num_workers, channels=mae.encoder.spec.channels)
    about = _about(options, mae, size, images)
    made = [str(out)]
    if os.path.lexists(out) and not options.overwrite:
        if description_of(out) != about:
            raise UserError(f"--out {out}: exists, of other images, sizes or weights; replace it with --overwrite")
        say(f"{out}: already finished; nothing was drawn (--overwrite draws it anew)")
    else:
        dataset = WholeDataset(images, size, fit="centre")
        pixels = torch.stack([dataset[row]["image"] for row in spread(len(images), options.images)])
        reconstructions_picture(*masked_by_chance(mae, pixels, options), out, about)
    step = ""
    if isinstance(recordable(options.data), str):
        features = free(out.with_suffix(".parquet"))
        step = command("embed", encoder=options.autoencoder, data=options.data, out=features)
    say(lines(made=made, step=step))
    return out


def _check_picture(out: Path) -> None:
    """Refuse a place for the picture that is none, or where a file of another origin lies."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: unknown kind of picture {shown(out.suffix)}; use .png")
    check_place("--out", out.absolute().parent, out)
    if os.path.lexists(out) and description_of(out) is None:
        raise UserError(f"--out {out}: exists, and was not drawn by semmae, which will not replace it; choose another")


def _checked_size(options: ReconstructOptions, mae: MaskedAutoencoder) -> Size:
    """Pixels of the images; it, and how many patches are hidden, are checked before images are looked at."""
    patch, size = mae.encoder.patch_size, options.image_size or mae.encoder.spec.image_size
    check_image_size(size, patch)
    length = num_patches(size, patch)
    count = options.token_subset or length
    if count > length:
        raise UserError(
            f"--token-subset {count}: an image of {size_text(size)} pixels has {length} patches of {patch}; give at "
            "most so many, or leave it out for all"
        )
    num_hidden(count, options.mask_ratio)
    return size


def _about(options: ReconstructOptions, mae: MaskedAutoencoder, size: Size, images: ImageSet) -> str:
    """All that the picture follows from, kept in its file: where it is the same, the picture is."""
    facts = {name: getattr(options, name) for name in ("images", "mask_ratio", "token_subset", "seed")}
    facts |= {"version": version("semmae"), "image_size": size, "images_digest": images.digest}
    facts |= {"weights": digest(mae), "norm_pix_loss": mae.norm_pix_loss}
    facts |= {"encoder": dataclasses.asdict(mae.encoder.spec), "decoder": dataclasses.asdict(mae.decoder)}
    return json.dumps(facts, sort_keys=True)


def masked_by_chance(
    mae: MaskedAutoencoder, pixels: Tensor, options: ReconstructOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Of images uint8 (B, 3, H, W): the images, their masks bool (B, L), what is made of the hidden patches.

    Those patches of the images are pale that take no part.
    """
    length = math.prod(mae.encoder.grid_of(pixels))
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.rand(len(pixels), length, generator=generator)
    if options.token_subset is None:
        mask = random_mask(noise, options.mask_ratio)
        return in_rgb(pixels), mask, reconstruct_pixels(mae, pixels, mask)
    mask = random_mask(noise[:, : options.token_subset], options.mask_ratio)
    subset = torch.rand(len(pixels), length, generator=generator).argsort(1)[:, : options.token_subset]
    rebuilt = reconstruct_pixels(mae, pixels, mask, subset)
    return faded(in_rgb(pixels), subset, length), on_the_grid(mask, subset, length), rebuilt
