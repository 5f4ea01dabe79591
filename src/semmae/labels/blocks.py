"""Blocks of images → their labels and their attention in the store: what one process does.

On a CPU every block is computed by one thread and several blocks at once: as fast as one block by several
threads, and how a sum is split over threads cannot change a label. On a GPU two threads take turns, so that
it computes one block while the labels of the last are fetched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from semmae.data.attention import attention_ranks
from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.data.workers import in_threads
from semmae.filters import guides
from semmae.formats.folders import AnyPartLearner
from semmae.models.vit import Encoder, Features
from semmae.progress import timed
from semmae.sizes import Size
from semmae.train.teacher_tokens import keep_tokens

Made = TypeVar("Made")

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GPU_THREADS = 2


def most_rows() -> int:
    """Images in a block at most: enough to fill a GPU, few enough that each core can hold a block."""
    return 256 if torch.cuda.is_available() else 32


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
    """What is to be labelled, and how; picklable."""

    store: PartStore
    images: ImageSet
    size: Size  # pixels that images are stretched to
    block: int  # rows computed together
    precision: Literal["float32", "bf16", "fp16"]
    workers: int  # processes that load images
    targets: TokenStore | None = None  # gets what the encoder says as well

    def rows(self, block: int) -> range:
        """The rows of a block; the last one may be short."""
        return range(block * self.block, min((block + 1) * self.block, len(self.images)))

    def unfinished(self) -> list[int]:
        """Blocks with a row that is not computed, ascending."""
        # Computed anew as a whole: the shape of a batch may change the last bits of its sums, and with them a label.
        blocks: list[int] = np.unique(self.store.missing() // self.block).tolist()
        return blocks


def label_blocks(
    job: Job,
    blocks: Sequence[int],
    encoder: Encoder,
    learner: AnyPartLearner,
    *,
    threads: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, float]]:
    """Compute and store the labels of blocks, on a CPU `threads` at once; yields (rows, seconds waited for images)."""
    rows = [row for block in blocks for row in job.rows(block)]
    # Only the last block of all is short, and it comes last: batches of the loader are the blocks.
    loader = make_loader(WholeDataset(job.images, job.size), job.block, sampler=rows, workers=job.workers)
    for (at, labels, attention, said), waited in compute_labels(
        ((batch["row"], batch["image"]) for batch in loader),
        encoder,
        learner,
        grid=job.store.grid,
        precision=job.precision,
        threads=threads,
        attention=job.store.attention_grid > 0,
        device=device,
    ):
        if job.targets is not None and said is not None:  # before: a row that is done here is not looked at again
            keep_tokens(job.targets, encoder, at.numpy(), said)
        if attention is not None:
            job.store.write_attention(at, attention)
        left = torch.from_numpy(job.store.unlabelled(at))
        job.store.write(at[left], labels[left])
        yield len(at), waited


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


def usual_device() -> torch.device:
    """A GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def through_encoder(
    batches: Iterable[tuple[Tensor, Tensor]],
    encoder: Encoder,
    work: Callable[[Tensor, Tensor, Tensor], Made],
    *,
    precision: Literal["float32", "bf16", "fp16"],
    threads: int,
    device: torch.device,
) -> Iterator[tuple[Made, float]]:
    """`work` of every batch: normalised images (B, 3, H, W), rows (B,), images uint8 → its result, seconds waited.

    In order. `work` calls the encoder, on a CPU in `threads` at once; nothing is differentiated.
    """
    threads = threads if device.type == "cpu" else _GPU_THREADS
    encoder, dtype = encoder.to(device).eval(), _DTYPES[precision]

    @torch.inference_mode()  # as autocast, of a thread: entered in the one that computes
    def worked(batch: tuple[tuple[Tensor, Tensor], float]) -> tuple[Made, float]:
        (rows, images), waited = batch
        images = images.to(device, non_blocking=True)
        pixels = normalise(images, encoder.spec.mean, encoder.spec.std)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return work(pixels, rows, images), waited

    with one_thread_an_operation():
        yield from in_threads(worked, timed(batches), threads, ahead=1)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Inside, torch splits no operation: sums are always added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
