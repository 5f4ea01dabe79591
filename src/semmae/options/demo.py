"""Options of `semmae demo`."""

from dataclasses import dataclass
from pathlib import Path

from semmae.options.fields import option
from semmae.options.shared import EPOCHS, PIXELS, RATE, Model, RunOptions, teacher_option


@dataclass(frozen=True, kw_only=True)
class DemoOptions(RunOptions):
    """Show the whole way in minutes: teacher, parts, masked autoencoder, k-NN, report."""

    data: str | None = option(None, reads="images", objects=True)
    """Your own images; default: drawn creatures, whose parts are known."""
    masks: Path | None = option(None, reads="annotations")
    """Folder of PNG annotations of the true parts of your images, if there are any."""
    teacher: str = teacher_option()
    """Encoder to learn parts from, as for semmae pretrain; auto: on drawn images own."""
    images: int = option(800, low=1, high=10**6)
    """How many creatures to draw, or how many of your images to use at most."""
    model: Model = option("vit_tiny")
    """Size of the encoder."""
    image_size: int = option(64, low=8, high=PIXELS)
    """Pixels a side of the crops the encoder sees; divisible by the patch size."""
    patch_size: int = option(8, low=2, high=1024)
    """Pixels a side of a patch."""
    epochs: int = option(10, low=1, high=EPOCHS)
    """Passes over the images of the masked autoencoder."""
    teacher_epochs: int = option(6, low=1, high=EPOCHS)
    """Passes over the images of one's own teacher."""
    teacher_image_size: int = option(32, low=8, high=PIXELS)
    """Pixels a side of the crops that one's own teacher is trained on; given, also of the images another one sees."""
    batch_size: int = option(32, low=1, high=2**20)
    """Images per optimiser step."""
    blr: float = option(4e-3, low=0, high=RATE)
    """Base learning rate of the masked autoencoder: multiplied by batch size / 256."""
