"""Options of `semmae export`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from semmae.options.fields import about, option
from semmae.options.shared import PIXELS, DecoderHeadsOptions
from semmae.sizes import Size

Form = Literal["timm", "mae", "hf", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(DecoderHeadsOptions):
    """Write an encoder, with its decoder or the head of a classifier, for timm, MAE, Hugging Face or ONNX."""

    encoder: str = field(metadata=about(reads="network", objects=True))
    """What to export: a run of semmae, timm:NAME, hf:NAME, or a checkpoint file."""
    to: Form = field(metadata=about())
    """Form: a folder of timm; a file as the MAE authors write it; a folder of Hugging Face transformers; ONNX."""
    out: Path = field(metadata=about(writes=True))
    """Folder to write; must be new or empty, or see --overwrite."""
    decoder: Literal["auto", "with", "without"] = option("auto")
    """Decoder of a masked autoencoder; auto: mae takes it where there is one, hf does not."""
    head: bool = option(True)
    """Head of a run of finetune too, so that it classifies there; mae has no place for it."""
    image_size: Size | None = option(None, low=8, high=PIXELS)
    """Pixels that it is exported for, a square's side or height and width, its positions resampled; default: as it \
was trained."""
    results: Path | None = option(None, reads="file")
    """A results.json to show in the model card, beside those that lie in the run."""
    push_to_hub: str | None = option(None)
    """Upload the folder to the Hugging Face hub afterwards, under this name: OWNER/NAME."""
    private: bool = option(False)
    """Make the repository on the hub a private one; refused where a public one is there."""
    overwrite: bool = option(False, control=True)
    """Replace the export that lies in --out."""
