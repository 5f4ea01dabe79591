"""What is drawn of a data set that is labelled: images beside their parts, and the samples that parts.html shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.formats.folders import LEARNER, read_learner
from semmae.labels.tokens import tokens_of
from semmae.levels import in_rgb
from semmae.models.vit import Encoder
from semmae.reporting.part_samples import FILE, collect, spread
from semmae.reporting.pictures import parts_picture
from semmae.sizes import Size, patch_grid

_PICTURED = 24  # images in parts.png


def draw_parts(
    out: Path, store: PartStore, images: ImageSet, encoder: Encoder | None, size: Size, tokens: TokenStore | None = None
) -> None:
    """`parts.png`, images spread over the data set, each beside its parts; and what `parts.html` shows.

    The latter by soft maps from the learner in `out`, of stored `tokens` of all images, or else of images of `size`
    pixels; without an encoder, nothing.
    """
    rows = spread(len(images), _PICTURED)
    whole = WholeDataset(images, 224)
    pixels = torch.stack([whole[row]["image"] for row in rows])
    parts_picture(in_rgb(pixels), store.labels[rows], store.label_names, out / "parts.png")
    if encoder is None:
        return
    device = next(encoder.parameters()).device
    learner: Any = read_learner(out / LEARNER).to(device)  # of either kind
    patches = patch_grid(size, encoder.patch_size)

    @torch.inference_mode()
    def soft_maps(rows: Sequence[int], pixels: Tensor) -> Tensor:
        if tokens is not None:
            found: Tensor = learner.part_maps(tokens_of(tokens, rows, device), patches)
            return found
        seen = normalise(pixels.to(device), encoder.spec.mean, encoder.spec.std)
        maps: Tensor = learner.part_maps(learner.look(encoder, seen).seen, patches)
        return maps

    collect(images, store, soft_maps, size, out / FILE)
