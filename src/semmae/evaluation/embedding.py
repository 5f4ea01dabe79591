"""Features of every image, computed batch by batch into a file that is kept while it grows.

Beside the file lies state.json: how many rows are on the disk, and what they were made of. Killed at any moment, the
work is resumed from there and leaves the same bytes.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_file import Column, TokenFile
from semmae.errors import UserError
from semmae.evaluation.features import evaluating
from semmae.evaluation.tokens import COUNTS, image_tokens
from semmae.files import Fields, read_json, write_json
from semmae.models.vit import Encoder
from semmae.progress import Progress
from semmae.sizes import Size, num_patches, patch_grid

_log = logging.getLogger("semmae")

FEATURES, STATE = "features.safetensors", "state.json"
_KEEP_EVERY = 5.0  # seconds: what a power failure costs at most
# What a file is resumed with only where it is the same, and what a message calls another one.
_MADE_OF = {
    "images_digest": "other images",
    "encoder_digest": "another encoder",
    "parts_digest": "other part labels",
}


def columns_of(tokens: Sequence[str], encoder: Encoder, size: Size, num_labels: int, dtype: str) -> list[Column]:
    """The arrays of these kinds of tokens, for images of that size and so many part labels."""
    width, patches = encoder.width, num_patches(size, encoder.patch_size)
    shapes = {"cls": (width,), "mean": (width,), "patch": (patches, width), "parts": (num_labels, width)}
    columns = [Column(token, shapes[token], dtype) for token in tokens]
    return columns + ([Column(COUNTS, (num_labels,), "int32")] if "parts" in tokens else [])


def check_same(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse to resume with rows of other images, another encoder or other parts."""
    if not (folder / STATE).is_file():
        return  # killed before the first row
    begun = state_of(folder).need("info", dict)
    changed = next((words for key, words in _MADE_OF.items() if begun.get(key) != info.get(key)), None)
    if changed is not None:
        raise UserError(f"{folder}: was begun with {changed}; restore what has changed, or give --overwrite")


def state_of(folder: Path) -> Fields:
    """What state.json holds of a file that was begun: `rows`, `info`."""
    return Fields(folder / STATE, read_json(folder / STATE))


def fill(
    file: TokenFile,
    encoder: Encoder,
    images: ImageSet,
    store: PartStore | None,
    *,
    size: Size,
    crop_pct: float,
    batch_size: int,
    workers: int,
) -> None:
    """Compute the rows of a file that are not there yet; what lies at its place and is none of it is begun anew.

    A row an image, of `size` pixels. `store` has the part labels, where part tokens are written.
    """
    done = _begin(file)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = WholeDataset(images, size, "centre", crop_pct, store, patch_grid(size, encoder.patch_size))
    # Batches begin where they do in a run never stopped: what is computed together rounds alike.
    loader = make_loader(dataset, batch_size, sampler=range(done, len(images)), workers=workers)
    label = f"embedding, {done} done before" if done else "embedding"
    kept = time.monotonic()
    with evaluating(encoder), torch.inference_mode(), Progress(len(images) - done, label=label) as progress:
        try:
            for batch in progress.iterate(loader):
                _write(file, encoder, batch, 0 if store is None else store.num_labels)
                done += len(batch["row"])
                progress.update(len(batch["row"]))
                if time.monotonic() - kept > _KEEP_EVERY:
                    _keep(file, done)
                    kept = time.monotonic()
        finally:
            _keep(file, done)


def _begin(file: TokenFile) -> int:
    """The rows that are there already; where there is no such file, or another, it is begun."""
    folder = file.path.parent
    if file.is_begun() and (folder / STATE).is_file():
        done: int = state_of(folder).need("rows", int)
        if not 0 <= done <= file.rows:
            raise UserError(f"{folder / STATE}: rows is {done}, must be 0 to {file.rows}; restore it, or --overwrite")
        return done
    if (folder / STATE).is_file():
        _log.warning("%s: of another version, or damaged; begun anew", folder)
    file.create()
    return 0


def _write(file: TokenFile, encoder: Encoder, batch: Mapping[str, Tensor], num_labels: int) -> None:
    """The rows of a batch, computed and written."""
    device = next(encoder.parameters()).device
    pixels = normalise(batch["image"].to(device, non_blocking=True), encoder.spec.mean, encoder.spec.std)
    labels = batch["parts"].to(device) if num_labels else None
    found = image_tokens(encoder(pixels), [column.name for column in file.columns], labels, num_labels)
    values = {column.name: found[column.name].to(getattr(torch, column.dtype)) for column in file.columns}
    for name, numbers in values.items():
        if not numbers.isfinite().all():
            if found[name].isfinite().all():
                raise UserError(f"--dtype float16: {name} holds numbers beyond 65504; use --dtype float32")
            raise UserError(f"--encoder {encoder.source}: {name} is not finite; its weights are damaged, use others")
    file.write(int(batch["row"][0]), {name: numbers.cpu().numpy() for name, numbers in values.items()})


def _keep(file: TokenFile, rows: int) -> None:
    """Note how many rows are on the disk."""
    file.sync()
    write_json(file.path.with_name(STATE), {"rows": rows, "info": file.info}, durable=True)
