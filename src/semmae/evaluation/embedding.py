"""Features of every image, computed batch by batch into a file that is kept while it grows.

Beside the file lies state.json: how many rows are on the disk, and what they were made of. Killed at any moment, the
work is resumed from there and leaves the same bytes.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_file import Column, TokenFile
from semmae.errors import UserError
from semmae.evaluation.features import Looks, evaluating
from semmae.evaluation.tokens import COUNTS, image_tokens
from semmae.files import Fields, read_json, write_json
from semmae.models.vit import Encoder, Features
from semmae.progress import Progress
from semmae.sizes import Size, num_patches
from semmae.train.frozen import most_rows
from semmae.train.shares import Made, shared_out, take_part

_log = logging.getLogger("semmae")

FEATURES, STATE = "features.safetensors", "state.json"
_NAME = "embedding"
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


def looks_at(
    images: ImageSet,
    encoder: Encoder,
    columns: Sequence[Column],
    store: PartStore | None,
    *,
    size: Size,
    crop_pct: float,
    batch_size: int,
    workers: int,
) -> Looks:
    """How every process computes rows of images, of `size` pixels a side.

    `store` has the part labels, where part tokens are written.
    """
    num_labels = 0 if store is None else store.num_labels
    values = partial(_values, columns=columns, num_labels=num_labels, source=encoder.source)
    return Looks(
        images, encoder, values, size, crop_pct, min(batch_size, most_rows()), workers, "float32", labels=store
    )


def fill(file: TokenFile, looks: Looks, devices: int) -> None:
    """Compute the rows of a file that are not there yet; what lies at its place and is none of it is begun anew.

    By `devices`, and by all other processes that were started with this one: these `help_to_embed`.
    """
    done = _begin(file, looks.block)
    label = f"embedding, {done} done before" if done else "embedding"
    kept, further = time.monotonic(), set[int]()  # blocks that are there beyond the rows that all are
    # Blocks are those of a run never stopped: what is computed together rounds alike.
    blocks = looks.blocks[-(-done // looks.block) :]
    with evaluating(looks.encoder), Progress(file.rows - done, label=label) as progress:
        try:
            for made, waited in shared_out(_NAME, looks, blocks, devices):
                rows = made.pop("rows")
                file.write(int(rows[0]), made)
                further.add(int(rows[0]) // looks.block)
                while done // looks.block in further:
                    further.remove(done // looks.block)
                    done = min(done + looks.block, file.rows)
                progress.waited(waited)
                progress.update(len(rows))
                if time.monotonic() - kept > _KEEP_EVERY:
                    _keep(file, done)
                    kept = time.monotonic()
        finally:
            _keep(file, done)


def nothing_to_embed(looks: Looks, devices: int) -> None:
    """What the first process does in place of `fill` where the rows are there: those that help may go."""
    for _ in shared_out(_NAME, looks, [], devices):
        pass


def help_to_embed(looks: Looks, devices: int) -> None:
    """What other processes than the first do while that fills a file."""
    take_part(_NAME, lambda: looks, devices)


def _begin(file: TokenFile, block: int) -> int:
    """The rows that are there already, in whole blocks; where there is no such file, or another, it is begun."""
    folder = file.path.parent
    if file.is_begun() and (folder / STATE).is_file():
        done: int = state_of(folder).need("rows", int)
        if not 0 <= done <= file.rows:
            raise UserError(f"{folder / STATE}: rows is {done}, must be 0 to {file.rows}; restore it, or --overwrite")
        return done if done == file.rows else done // block * block
    if (folder / STATE).is_file():
        _log.warning("%s: of another version, or damaged; begun anew", folder)
    file.create()
    return 0


def _values(
    said: Features, batch: Mapping[str, Tensor], *, columns: Sequence[Column], num_labels: int, source: str
) -> Made:
    """The rows of a batch, by the name of their column."""
    labels = batch["parts"].to(said.cls.device) if num_labels else None
    found = image_tokens(said, [column.name for column in columns], labels, num_labels)
    values = {column.name: found[column.name].to(getattr(torch, column.dtype)) for column in columns}
    for name, numbers in values.items():
        if not numbers.isfinite().all():
            if found[name].isfinite().all():
                raise UserError(f"--dtype float16: {name} holds numbers beyond 65504; use --dtype float32")
            raise UserError(f"--encoder {source}: {name} is not finite; its weights are damaged, use others")
    return {name: numbers.cpu().numpy() for name, numbers in values.items()}


def _keep(file: TokenFile, rows: int) -> None:
    """Note how many rows are on the disk."""
    file.sync()
    write_json(file.path.with_name(STATE), {"rows": rows, "info": file.info}, durable=True)
