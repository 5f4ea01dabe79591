"""A frozen teacher's patch tokens, which an autoencoder may predict in place of pixels: one for each of its patches.

On a GPU every crop is shown to the teacher. A CPU would take longer for that than for the training: there every image
is shown to it once, whole, and what it said is interpolated at the patches of each crop (`data.crop.crop_tokens`).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from semmae.data.loaders import TOKENS, WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.token_file import Column
from semmae.data.token_store import TokenStore
from semmae.errors import UserError
from semmae.formats.folders import digest
from semmae.models.vit import Encoder
from semmae.options.shared import Precision
from semmae.progress import Progress
from semmae.train.precision import autocast, resolve_precision

_MOST = 224  # pixels a side of a whole image: of DINOv2's ViT-S/14 16 x 16 tokens, 197 kB an image
_TOGETHER = 16  # images shown to the teacher at once, always the same ones


@torch.no_grad()
def tokens_of(teacher: Encoder, crops: Tensor, side: int) -> Tensor:
    """The teacher's tokens (B, side·side, D) of crops, uint8 (B, 3, S, S), resized until it has just so many."""
    images = normalise(crops, teacher.spec.mean, teacher.spec.std)
    size = side * teacher.patch_size
    if images.shape[-1] != size:
        images = interpolate(images, (size, size), mode="bicubic", antialias=True)
    tokens: Tensor = teacher(images).patches
    return tokens


def usual_size(teacher: Encoder) -> int:
    """Pixels a side of the images that a teacher is shown whole: as it was trained, but at most 224, in patches."""
    patch = teacher.patch_size
    return max(min(teacher.spec.image_size, _MOST) // patch, 1) * patch


def token_store(folder: Path, images: ImageSet, teacher: Encoder, size: int, precision: Precision) -> TokenStore:
    """The store of the tokens of all images, whole and stretched to `size` pixels a side; `fill_store` fills it."""
    column = Column(TOKENS, ((size // teacher.patch_size) ** 2, teacher.width), "float16")
    info = {"encoder_digest": digest(teacher), "images_digest": images.digest, "image_size": size}
    return TokenStore(folder, len(images), [column], info | {"precision": resolve_precision(precision)})


def fill_store(
    store: TokenStore, images: ImageSet, teacher: Encoder, *, size: int, precision: Precision, workers: int
) -> None:
    """Compute the rows that a store lacks, on the CPU; the same bytes wherever it was stopped before."""
    store.begin("use a smaller --teacher-image-size, fewer images (--limit) or a GPU, which needs no room")
    missing = store.missing()
    if not len(missing):
        return
    rows = range(int(missing[0]), len(images))  # written in their order
    loader = make_loader(WholeDataset(images, size), _TOGETHER, sampler=rows, workers=workers)
    side = size // teacher.patch_size
    done = f", {rows.start} done before" if rows.start else ""
    teacher.eval()
    with autocast(precision, torch.device("cpu")), Progress(len(rows), label=f"teacher's tokens{done}") as progress:
        for batch in progress.iterate(loader):
            tokens = tokens_of(teacher, batch["image"], side).half()
            if not tokens.isfinite().all():
                raise UserError(
                    f"--teacher {teacher.source}: its tokens are not finite, or beyond 65504; its weights are "
                    "damaged, use others"
                )
            store.write(batch["row"].numpy(), {TOKENS: tokens.numpy().astype(np.float16)})
            progress.update(len(tokens))
