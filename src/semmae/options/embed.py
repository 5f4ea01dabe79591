"""Options of `semmae embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from semmae.options.fields import about, option
from semmae.options.shared import EncoderOptions, NodeOptions, ViewOptions


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(NodeOptions, ViewOptions, EncoderOptions):
    """Write features of every image to a .parquet, .npz or .safetensors file."""

    out: Path = field(metadata=about(writes=True, suffixes=(".parquet", ".npz", ".safetensors"), on_resume="free"))
    """File to write: .parquet, .npz or .safetensors."""
    tokens: str = option("auto")
    """What to write of every image, one or several divided by commas: cls (class token), mean (of the patch tokens), \
    patch (all of them), parts (their mean in each part; needs --parts); auto: mean of masked autoencoders, else cls."""
    parts: Path | None = option(None, reads="labels")
    """Part labels of the same images: a run of semmae parts or pretrain."""
    dtype: Literal["float32", "float16"] = option("float32")
    """Numbers in the file; float16 takes half the room and keeps three digits."""
