"""A frozen teacher's tokens, which an autoencoder may predict in place of pixels: one for each of its patches, and the
class token of the image, whitened.

On a GPU every crop is shown to the teacher, resized to what it knows. A CPU would take longer for that than for the
training: there every image is shown to it once, whole. Either way what it said is interpolated at the patches of each
crop.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from semmae.data.loaders import IMAGE_TOKEN, TOKENS, WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.token_file import Array, Column
from semmae.data.token_store import TokenStore
from semmae.formats.folders import digest
from semmae.models.vit import Encoder, Features, check_finite
from semmae.options.shared import Precision
from semmae.progress import Progress
from semmae.sizes import Grid, Size, num_patches, patch_grid, sides, whole_patches
from semmae.train.precision import autocast, resolve_precision

TOKEN_NAMES = frozenset((TOKENS, IMAGE_TOKEN))
_MOST = 224  # pixels a side of a whole image: of DINOv2's ViT-S/14 16 x 16 tokens, 197 kB an image
_TOGETHER = 16  # images shown to the teacher at once, always the same ones
_DIRECTIONS = 64  # in which class tokens are told apart: of 341 photos k-NN is best with 32 to 64 of 384
_FIT_IMAGES = 4096  # images at most that directions are found from, where no tokens of all are stored
_ALIKE = 1e-5  # of the tokens' own length: what differs by less was rounded differently, in float32


@torch.no_grad()
def tokens_of(teacher: Encoder, crops: Tensor, size: Size, grid: Grid | None = None) -> Features:
    """What the teacher says of crops, uint8 (B, 3, H, W), shown at `size` pixels.

    With a `grid`, its patch tokens at the centres of that grid's patches, as `data.crop.crop_tokens` has them.
    """
    images = normalise(crops, teacher.spec.mean, teacher.spec.std)
    if images.shape[-2:] != sides(size):
        images = interpolate(images, sides(size), mode="bicubic", antialias=True)
    said: Features = teacher(images)
    cells = patch_grid(size, teacher.patch_size)
    if grid is None or grid == cells:
        return said
    maps = said.patches.float().transpose(1, 2).reshape(len(crops), -1, *cells)
    return Features(said.cls, interpolate(maps, grid, mode="bilinear").flatten(2).transpose(1, 2))


def whitening(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and matrix (D, D) of class tokens (N, D), with which (tokens - mean) @ matrix are whitened.

    Most of what class tokens are is alike in all images. Of the rest the 64 principal directions are kept, fewer of
    fewer images, and all made equally long, so that what tells few images apart counts as well; turned back into the
    teacher's axes (ZCA), with a mean square of 1. AM-RADIO's students learn from standardised tokens for the same
    reason (PHI-S, arXiv 2410.01680). Of a single image, or of images all alike, nothing is told apart: the matrix is 0.
    """
    tokens = tokens.double()
    mean = tokens.mean(0)
    _, lengths, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
    if lengths[0] <= _ALIKE * torch.linalg.norm(tokens):
        return mean.float(), tokens.new_zeros(tokens.shape[1], tokens.shape[1]).float()
    # The mean is taken off: one direction of N has no length, but for rounding.
    kept = min(_DIRECTIONS, int((lengths > 1e-4 * lengths[0]).sum()))
    axes = directions[:kept]
    scale = (len(tokens) * tokens.shape[1] / kept) ** 0.5 / lengths[:kept]
    return mean.float(), (axes.T * scale @ axes).float()


@torch.no_grad()
def class_tokens(
    images: ImageSet, teacher: Encoder, crop_size: Size, size: Size, device: torch.device, workers: int = 0
) -> Tensor:
    """The teacher's class tokens (N, D) of whole images, 4096 at most, from the first to the last equally far apart.

    As it is shown crops: of `crop_size` pixels, resized to `size`.
    """
    rows, teacher = range(0, len(images), -(-len(images) // _FIT_IMAGES)), teacher.eval().to(device)
    loader = make_loader(WholeDataset(images, crop_size), _TOGETHER, sampler=rows, workers=workers)
    return torch.cat([tokens_of(teacher, batch["image"].to(device), size).cls.float().cpu() for batch in loader])


def usual_size(teacher: Encoder) -> Size:
    """Of the images that a teacher is shown whole: as it was trained, but at most 224 a side, in patches."""
    return whole_patches(teacher.spec.image_size, teacher.patch_size, _MOST)


def token_store(folder: Path, images: ImageSet, teacher: Encoder, size: Size, precision: Precision) -> TokenStore:
    """The store of the tokens of all images, whole and stretched to `size` pixels; `fill_store` fills it.

    What looks at the same images for another purpose may keep rows there before, see `keep_tokens`.
    """
    patches = Column(TOKENS, (num_patches(size, teacher.patch_size), teacher.width), "float16")
    columns = [patches, Column(IMAGE_TOKEN, (teacher.width,), "float16")]
    info = {"encoder_digest": digest(teacher), "images_digest": images.digest, "image_size": size}
    return TokenStore(folder, len(images), columns, info | {"precision": resolve_precision(precision)})


@torch.no_grad()
def check_first(images: ImageSet, teacher: Encoder, size: Size, *, views: bool = False) -> None:
    """Refuse, by its first image and before anything is written, a teacher that half precision cannot hold.

    With `views` keys and values are looked at too, of which parts are learned.
    """
    pixels = normalise(WholeDataset(images, size)[0]["image"][None], teacher.spec.mean, teacher.spec.std)
    said = teacher.token_views(pixels)[0] if views else teacher(pixels)
    check_finite(teacher, *(tokens.half() for tokens in said))


def same_look(
    store: TokenStore | None, images: ImageSet, teacher: Encoder, size: Size, precision: Precision
) -> TokenStore | None:
    """The store, if this look at these images is what it was begun for."""
    own = None if store is None else token_store(store.folder, images, teacher, size, precision)
    return own if own is not None and own.is_begun() else None


def fill_store(
    store: TokenStore, images: ImageSet, teacher: Encoder, *, size: Size, precision: Precision, workers: int
) -> None:
    """Compute the rows that a store lacks, on the CPU; the same bytes wherever it was stopped before."""
    starts = np.unique(store.missing() // _TOGETHER) * _TOGETHER  # of blocks that are always the same
    rows = [row for start in starts.tolist() for row in range(start, min(start + _TOGETHER, len(images)))]
    if not rows:
        return
    loader = make_loader(WholeDataset(images, size), _TOGETHER, sampler=rows, workers=workers)
    done = f", {len(images) - len(rows)} done before" if len(rows) < len(images) else ""
    teacher.eval()
    with autocast(precision, torch.device("cpu")), Progress(len(rows), label=f"teacher's tokens{done}") as progress:
        for batch in progress.iterate(loader):
            keep_tokens(store, teacher, batch["row"].numpy(), tokens_of(teacher, batch["image"], size))
            progress.update(len(batch["row"]))


def keep_tokens(store: TokenStore, teacher: Encoder, rows: Array, said: Features) -> None:
    """Write what a teacher says of rows (n,), ascending; refused where half precision cannot hold it."""
    store.write(rows, token_values(teacher, said))


def token_values(teacher: Encoder, said: Features) -> dict[str, Array]:
    """What a teacher says, by `TOKEN_NAMES`, as it is kept; refused where half precision cannot hold it."""
    values = {TOKENS: said.patches.half(), IMAGE_TOKEN: said.cls.half()}
    check_finite(teacher, *values.values())
    return {name: tokens.cpu().numpy() for name, tokens in values.items()}
