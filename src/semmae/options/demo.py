"""Options of `semmae demo`."""

from dataclasses import dataclass
from pathlib import Path

from semmae.options.fields import option
from semmae.options.shared import EPOCHS, PIXELS, RATE, Model, RunOptions, teacher_option
from semmae.sizes import Size


@dataclass(frozen=True, kw_only=True)
class DemoOptions(RunOptions):
    """Show the whole way in minutes: a first encoder, parts, masked autoencoder, k-NN, linear probe, report."""

    data: str | None = option(None, reads="images", objects=True)
    """Your own images; default: drawn creatures, whose parts are known."""
    masks: Path | None = option(None, reads="annotations")
    """Folder of PNG annotations of the true parts of your images, if there are any."""
    teacher: str = teacher_option()
    """Encoder to learn parts from, as for semmae pretrain; own: an autoencoder that hides patches at random, trained \
first; auto: on drawn images own."""
    images: int = option(1000, low=1, high=10**6)
    """How many creatures to draw, or how many of your images to use at most."""
    model: Model = option("vit_mini")
    """Size of the encoder."""
    image_size: Size = option(64, low=8, high=PIXELS)
    """Pixels of the crops the encoder sees: a square's side, or height and width; divisible by the patch size."""
    patch_size: int = option(8, low=2, high=1024)
    """Pixels a side of a patch."""
    crop_scale: float = option(0.4, low=0.05, high=1)
    """Share of an image's area that a crop shows at least."""
    teacher_epochs: int = option(20, low=1, high=EPOCHS)
    """Passes over the images of one's own teacher, an autoencoder that hides patches at random."""
    teacher_image_size: Size = option(128, low=8, high=PIXELS)
    """Pixels of the images the teacher sees when parts are learned: a square's side, or height and width."""
    epochs: int = option(12, low=1, high=EPOCHS)
    """Passes over the images of the masked autoencoder."""
    batch_size: int = option(32, low=1, high=2**20)
    """Images per optimiser step."""
    blr: float = option(1.2e-2, low=0, high=RATE)
    """Base learning rate of the masked autoencoder: multiplied by batch size / 256."""
