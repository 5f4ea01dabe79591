"""The `.npy` token files of the SemMAE authors' release (github.com/ucasligang/SemMAE) → part labels, attention.

There is one file an image, `train/CLASS/NAME.npy`, a float array (L, 15 + 3·p²), one line a patch:

| columns | what                                                        | here                          |
|---------|-------------------------------------------------------------|-------------------------------|
| 0–6     | patches in each of the 7 parts, the same in every line      | counted again from the labels |
| 7–13    | the patch's part, one-hot                                   | the label                     |
| 14      | its position in the grid of patches, row-major              | the cell                      |
| 15–     | its pixels, p × p × RGB                                     | p follows from their number   |

Where that stands: `models_mae_setting3.py`, `forward_encoder` (`x[:, :, :7]`, `7:14`, `14:15`, `15:`) and
`patchify`; `data/folder.py`, `pil_loader` (`np.load`); `engine_pretrain_setting3.py` and
`model/models_vit.py` give the shapes, 196 lines, and an older form (975 columns for p = 8) with 768 of a
position's embedding before the pixels, which is read too. Images are 224 pixels a side. Patches of 16 fill
their grid of 14 × 14. Of the 28 × 28 patches of 8 the release keeps 196, those of highest attention: the
others get a label of their own, for nothing is known of them.

The lines stand in the order of attention, the most attended first: column 14 is called `sorted_index` there, and
`random_masking_setting3`, which hides the first lines of every part, shuffles them before, lest the hidden ones be
those of high attention (its comment). So the order gives the ranks that `attention.npy` holds; patches that are
not kept are below all others. Files whose lines run through the grid row by row hold no attention.
"""

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from semmae.data.attention import attention_ranks, stored_side
from semmae.data.manifest import ImageSet
from semmae.data.naming import companion_names
from semmae.data.part_store import PartStore
from semmae.data.workers import in_threads
from semmae.errors import UserError
from semmae.progress import Progress

IMAGE_SIZE = 224
NUM_PARTS = 7
ORIGIN = "token files of the SemMAE release"  # in place of a teacher's digest
NOT_KEPT = "not kept"  # patches that the files leave out

_ONE_HOT = slice(NUM_PARTS, 2 * NUM_PARTS)
_POSITION = 2 * NUM_PARTS
_HEAD = 2 * NUM_PARTS + 1  # columns before the pixels
_EMBEDDING = 768
_BLOCK = 256  # files whose labels are written together
_HEADER = threading.Lock()  # NumPy parses a header by `ast`, which Python 3.11 cannot do in two threads (gh-106905)


class Tokens(NamedTuple):
    """What one file holds: labels (g, g), 0 to 6, and 7 where it has no patch; attention (g·g,), if it has any."""

    labels: npt.NDArray[np.uint8]
    attention: npt.NDArray[np.float32] | None


def import_tokens(folder: Path, images: ImageSet, out: Path, *, subset: bool = False, workers: int = 2) -> PartStore:
    """A store of the parts of `images`, begun in `out` or resumed, from the token files below `folder`.

    They lie at the images' relative paths. `subset`: files of no image are no fault, for the images are some of a
    larger data set.
    """
    names, first = check_tokens(folder, images, subset=subset)
    grid, whole = len(first.labels), bool((first.labels < NUM_PARTS).all())
    label_names = [f"part {number}" for number in range(1, NUM_PARTS + 1)] + ([] if whole else [NOT_KEPT])
    store = PartStore.create(
        out,
        images=len(images),
        grid=grid,
        label_names=label_names,
        teacher_digest=ORIGIN,
        manifest_digest=images.digest,
        attention_grid=0 if first.attention is None else stored_side(grid),
        extra={"tokens": str(folder)},
    )
    left = store.missing()
    with Progress(len(left), "files", "reading labels") as progress:
        for at in range(0, len(left), _BLOCK):
            rows = left[at : at + _BLOCK]
            paths = [folder / names[row] for row in rows]
            tokens = list(in_threads(read_tokens, paths, workers))
            _check_alike(tokens, paths, first, len(label_names))
            if first.attention is not None:
                scores = torch.from_numpy(np.stack([attention for _, attention in tokens if attention is not None]))
                store.write_attention(rows, attention_ranks(scores))
            store.write(rows, np.stack([labels for labels, _ in tokens]))
            progress.update(len(rows))
    store.finish()
    return store


def check_tokens(folder: Path, images: ImageSet, *, subset: bool) -> tuple[list[str], Tokens]:
    """The file of each image, relative to the folder, and what the first holds."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the .npy token files")
    wanted = companion_names(images.names, ".npy")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")}
    absent = [name for name in wanted if name not in found]
    if absent:
        have = f", such as {min(found)}" if found else ""
        raise UserError(
            f"{folder}: {len(absent)} of {len(wanted)} images have no token file, the first {absent[0]} "
            f"({len(found)} .npy files there{have}); give the folder that mirrors --data"
        )
    unknown = sorted(found.difference(wanted))
    if unknown and not subset:
        raise UserError(
            f"{folder}: {len(unknown)} of {len(found)} token files belong to no image, the first {unknown[0]}; "
            "give the images they were made from, or remove them"
        )
    return wanted, read_tokens(folder / wanted[0])


def read_tokens(path: Path) -> Tokens:
    """What one file holds."""
    try:
        with _HEADER:  # the tokens themselves are read below, by several threads at once
            tokens = np.load(path, mmap_mode="r", allow_pickle=False).squeeze()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no readable .npy file ({error}); restore it from the release") from error
    if tokens.ndim != 2 or tokens.dtype.kind != "f" or (patch := _patch_size(tokens.shape[1])) is None:
        raise UserError(
            f"{path}: {tokens.dtype} {tokens.shape} is no token file, which is floating-point (patches, 15 + 3·p²) "
            "with p dividing 224; give the authors' files"
        )
    grid = IMAGE_SIZE // patch
    one_hot, position = np.asarray(tokens[:, _ONE_HOT]), np.asarray(tokens[:, _POSITION])
    if not (np.isin(one_hot, (0, 1)).all() and (one_hot.sum(1) == 1).all()):
        raise UserError(f"{path}: columns 7 to 13 are not one-hot, so they are no parts; give the authors' files")
    cells = position.astype(np.int64)
    if (cells != position).any() or cells.min() < 0 or cells.max() >= grid**2 or len(np.unique(cells)) < len(cells):
        raise UserError(
            f"{path}: column 14 holds no {len(cells)} different positions in a grid of {grid} × {grid} patches; "
            "give the authors' files"
        )
    labels = np.full(grid**2, NUM_PARTS, np.uint8)
    labels[cells] = one_hot.argmax(1)
    attention = None
    if (np.diff(cells) < 0).any():  # else row by row: no order of attention
        attention = np.zeros(grid**2, np.float32)
        attention[cells] = np.arange(len(cells), 0, -1)
    return Tokens(labels.reshape(grid, grid), attention)


def _patch_size(columns: int) -> int | None:
    """Pixels a side of a patch; None where so many columns are no tokens."""
    for pixels in (columns - _HEAD, columns - _HEAD - _EMBEDDING):
        patch = math.isqrt(max(pixels, 0) // 3)
        if patch > 1 and pixels == 3 * patch**2 and IMAGE_SIZE % patch == 0:
            return patch
    return None


def _check_alike(read: Iterable[Tokens], paths: list[Path], first: Tokens, labels: int) -> None:
    """Refuse files of another form than the first one's."""
    for path, (found, attention) in zip(paths, read, strict=True):
        if len(found) != len(first.labels) or found.max() >= labels:
            kept = int((found < NUM_PARTS).sum())
            raise UserError(
                f"{path}: {kept} patches in a grid of {len(found)} × {len(found)}, other than the first file's; "
                "do not mix releases of different patch sizes"
            )
        if (attention is None) != (first.attention is None):
            orders = ("row by row", "by attention") if attention is None else ("by attention", "row by row")
            raise UserError(f"{path}: patches {orders[0]}, the first file's {orders[1]}; do not mix releases")
