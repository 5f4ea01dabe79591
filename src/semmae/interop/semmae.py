"""The `.npy` token files of the SemMAE authors' release (github.com/ucasligang/SemMAE) → part labels.

There is one file an image, `train/CLASS/NAME.npy`, a float array (L, 15 + 3·p²), one line a patch:

| columns | what                                                        | here                          |
|---------|-------------------------------------------------------------|-------------------------------|
| 0–6     | patches in each of the 7 parts, the same in every line      | counted again from the labels |
| 7–13    | the patch's part, one-hot                                   | the label                     |
| 14      | its position in the grid of patches, row-major              | the cell                      |
| 15–     | its pixels, p × p × RGB                                     | tell p by their number        |

Where that stands: `models_mae_setting3.py`, `forward_encoder` (`x[:, :, :7]`, `7:14`, `14:15`, `15:`) and
`patchify`; `data/folder.py`, `pil_loader` (`np.load`); `engine_pretrain_setting3.py` and
`model/models_vit.py` tell the shapes, 196 lines, and an older form (975 columns for p = 8) with 768 of a
position's embedding before the pixels, which is read too. Images are 224 pixels a side. Patches of 16 fill
their grid of 14 × 14. Of the 28 × 28 patches of 8 the release keeps 196, those of highest attention: the
others get a label of their own, for nothing is known of them.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semmae.data.manifest import ImageSet
from semmae.data.naming import companion_names
from semmae.data.part_store import PartStore
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
_BLOCK = 256  # files handed to the threads together


def import_tokens(folder: Path, images: ImageSet, out: Path, *, subset: bool = False, workers: int = 2) -> PartStore:
    """A store of the parts of `images`, made in `out` or gone on with, from the token files below `folder`.

    Args:
        folder: holds the files at the images' relative paths.
        images: the images that the labels are for; each needs its file.
        out: receives `parts.npy` and `parts.json`.
        subset: files of no image are no fault: the images are some of a larger data set.
        workers: threads that read.

    Raises:
        UserError: images without a file, files without an image, or a file of another form.
    """
    names, first = check_tokens(folder, images, subset=subset)
    grid, whole = len(first), bool((first < NUM_PARTS).all())
    label_names = [f"part {number}" for number in range(1, NUM_PARTS + 1)] + ([] if whole else [NOT_KEPT])
    store = PartStore.create(
        out,
        images=len(images),
        grid=grid,
        label_names=label_names,
        teacher_digest=ORIGIN,
        manifest_digest=images.digest,
        extra={"tokens": str(folder)},
    )
    left = store.missing()
    with Progress(len(left), "files", "reading labels") as progress, ThreadPoolExecutor(max(1, workers)) as pool:
        for at in range(0, len(left), _BLOCK):
            rows = left[at : at + _BLOCK]
            paths = [folder / names[row] for row in rows]
            store.write(rows, _stacked(pool.map(read_tokens, paths), paths, grid, len(label_names)))
            progress.update(len(rows))
    store.finish()
    return store


def check_tokens(folder: Path, images: ImageSet, *, subset: bool) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """The file of each image, relative to the folder, and the labels of the first; errors as `import_tokens`."""
    names = _paired(folder, images.names, subset)
    return names, read_tokens(folder / names[0])


def read_tokens(path: Path) -> npt.NDArray[np.uint8]:
    """One file → labels (g, g), 0 to 6; 7 where the file holds no patch.

    Raises:
        UserError: the file is missing or of another form; the message tells the shape.
    """
    try:
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
    return labels.reshape(grid, grid)


def _patch_size(columns: int) -> int | None:
    """Pixels a side of a patch; None where so many columns are no tokens."""
    for pixels in (columns - _HEAD, columns - _HEAD - _EMBEDDING):
        patch = math.isqrt(max(pixels, 0) // 3)
        if patch > 1 and pixels == 3 * patch**2 and IMAGE_SIZE % patch == 0:
            return patch
    return None


def _paired(folder: Path, names: Iterable[str], subset: bool) -> list[str]:
    """The file of each image, relative to the folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the .npy token files")
    wanted = companion_names(list(names), ".npy")
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
    return wanted


def _stacked(read: Iterable[npt.NDArray[np.uint8]], paths: list[Path], grid: int, labels: int) -> npt.NDArray[np.uint8]:
    """Label grids of a block, all of the same form as the first file's."""
    grids = list(read)
    for path, found in zip(paths, grids, strict=True):
        if len(found) != grid or found.max() >= labels:
            kept = int((found < NUM_PARTS).sum())
            raise UserError(
                f"{path}: {kept} patches in a grid of {len(found)} × {len(found)}, other than the first file's; "
                "do not mix releases of different patch sizes"
            )
    return np.stack(grids)
