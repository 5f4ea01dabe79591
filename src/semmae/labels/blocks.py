"""Blocks of images → their labels and their attention: what is computed of them, and how it is kept."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semmae.data.attention import attention_ranks
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.filters import guides
from semmae.formats.folders import AnyPartLearner
from semmae.models.vit import Encoder, Features
from semmae.sizes import Size
from semmae.train.frozen import through_encoder, usual_device
from semmae.train.shares import Made, Place
from semmae.train.teacher_tokens import TOKEN_NAMES, token_values


class Labelled(NamedTuple):
    """Rows (B,), their labels uint8 (B, grid, grid) and, where there is any, attention uint8 (B, a, a).

    `said`: what the encoder said of them, where the learner let it speak.
    """

    rows: Tensor
    labels: Tensor
    attention: Tensor | None
    said: Features | None


@dataclass(frozen=True)
class Job:
    """What is to be labelled, and how: a `Work`."""

    images: ImageSet
    encoder: Encoder
    learner: AnyPartLearner
    size: Size  # pixels that images are stretched to
    grid: int  # cells a side of the labels
    block: int  # rows computed together
    precision: Literal["float32", "bf16", "fp16"]
    workers: int  # processes that load images
    tells: bool = False  # gives what the encoder says as well

    def rows(self, block: int) -> range:
        """The rows of a block; the last one may be short."""
        return range(block * self.block, min((block + 1) * self.block, len(self.images)))

    def unfinished(self, store: PartStore) -> list[int]:
        """Blocks with a row that is not computed, ascending."""
        # Computed anew as a whole: the shape of a batch may change the last bits of its sums, and with them a label.
        blocks: list[int] = np.unique(store.missing() // self.block).tolist()
        return blocks

    def made(self, blocks: Sequence[int], place: Place) -> Iterator[tuple[Made, float]]:
        """Labels and attention of each block, for `keep`."""
        rows = [row for block in blocks for row in self.rows(block)]
        # Only the last block of all is short, and it comes last: batches of the loader are the blocks.
        loader = make_loader(
            WholeDataset(self.images, self.size), self.block, sampler=rows, workers=self.workers, sharing=place.sharing
        )
        for found, waited in compute_labels(
            ((batch["row"], batch["image"]) for batch in loader),
            self.encoder,
            self.learner,
            grid=self.grid,
            precision=self.precision,
            threads=place.threads,
            attention=True,
            device=place.device,
        ):
            assert found.attention is not None, "it was asked for"
            made = {"rows": found.rows.numpy(), "labels": found.labels.numpy(), "attention": found.attention.numpy()}
            if self.tells and found.said is not None:
                made |= token_values(self.encoder, found.said)
            yield made, waited


def keep(store: PartStore, made: Made, targets: TokenStore | None = None) -> int:
    """Write what a block gave; returns its rows. `targets` get what the encoder said, where that was asked for."""
    rows = made["rows"]
    if targets is not None and made.keys() >= TOKEN_NAMES:
        # Before: a row that is done here is not looked at again.
        targets.write(rows, {name: made[name] for name in TOKEN_NAMES})
    store.write_attention(rows, made["attention"])
    left = store.unlabelled(rows)
    store.write(rows[left], made["labels"][left])
    return len(rows)


def compute_labels(
    batches: Iterable[tuple[Tensor, Tensor]],
    encoder: Encoder,
    learner: AnyPartLearner,
    *,
    grid: int,
    precision: Literal["float32", "bf16", "fp16"],
    threads: int,
    attention: bool = False,
    device: torch.device | None = None,
) -> Iterator[tuple[Labelled, float]]:
    """(Rows (B,), images uint8 (B, 3, H, W)) → what they are labelled, seconds waited; in order."""
    device = device or usual_device()
    labeller: Any = learner.to(device).eval()  # of either kind, it reads what it has looked at itself

    def labelled(pixels: Tensor, rows: Tensor, images: Tensor) -> Labelled:
        seen, heads, said = labeller.look(encoder, pixels, attention)
        patches = encoder.grid_of(images)
        labels = labeller.labels(seen, guides(images, grid), patches).cpu()
        ranks = None if heads is None else attention_ranks(heads.mean(1), patches).cpu()
        return Labelled(rows, labels, ranks, said)

    yield from through_encoder(batches, encoder, labelled, precision=precision, threads=threads, device=device)
