"""Options of `semmae reconstruct`."""

from dataclasses import dataclass, field
from pathlib import Path

from semmae.options.fields import about, option
from semmae.options.shared import PIXELS, DataOptions, DecoderHeadsOptions, SeedOptions, WorkerOptions
from semmae.sizes import Size


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(DecoderHeadsOptions, DataOptions, WorkerOptions, SeedOptions):
    """Draw images, what is visible of them, and what a masked autoencoder makes of the rest."""

    autoencoder: str = field(metadata=about(reads="network"))
    """Masked autoencoder: a run of semmae pretrain, a folder of ViTMAE, or a file in the form of MAE or SemMAE."""
    out: Path = field(metadata=about(writes=True, suffixes=(".png",)))
    """Picture to write, .png."""
    images: int = option(8, low=1, high=10**6)
    """How many to draw, spread over the data."""
    mask_ratio: float = option(0.75, low=0, high=1, open=True)
    """Share of the patches that is hidden, drawn at random."""
    token_subset: int | None = option(None, low=2, high=2**24)
    """Encode and predict only so many patches of an image, drawn at random; for models trained like that."""
    image_size: Size | None = option(None, low=8, high=PIXELS)
    """Pixels, a square's side or height and width; default: as the autoencoder was trained."""
    overwrite: bool = option(False, control=True)
    """Replace the picture that lies at --out."""
