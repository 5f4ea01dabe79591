"""Options of `semmae pack`."""

from dataclasses import dataclass, field
from pathlib import Path

from semmae.options.fields import MOST, about, option
from semmae.options.shared import PIXELS, DataOptions, SeedOptions, WorkerOptions


@dataclass(frozen=True, kw_only=True)
class PackOptions(DataOptions, WorkerOptions, SeedOptions):
    """Write images into tar shards, smaller and in random order: fast to decode, and to read from any disk or store."""

    out: Path = field(metadata=about(writes=True))
    """Folder to write; must be new or empty, or see --overwrite."""
    short_side: int = option(256, low=8, high=PIXELS)
    """Pixels of an image's short side; images that are no larger are kept byte for byte."""
    quality: int = option(90, low=1, high=100)
    """Quality of the JPEG images that are written."""
    channels: int | None = option(None, low=1, high=1024)
    """Channels that the images will be read in: 3 packs all as RGB of 8 bits; default: nothing that can be read is \
lost, grey of 16 bits stays so, and images of other channels are kept as they are."""
    shard_size: int = option(128, low=1, high=2**16)
    """Megabytes of a shard, at most, unless one image alone takes more."""
    limit: int | None = option(None, low=1, high=MOST)
    """Pack only so many of the images (of each split), drawn by the seed."""
    overwrite: bool = option(False, control=True)
    """Replace the shards that lie in --out."""
