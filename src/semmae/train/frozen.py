"""A frozen encoder looks at blocks of images: which of them together, where, and in how many threads.

On a CPU every block is computed by one thread and several blocks at once: as fast as one block by several
threads, and how a sum is split over threads cannot change a number. On a GPU two threads take turns, so that
it computes one block while the results of the last are fetched.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor

from semmae.data.loaders import normalise
from semmae.data.workers import in_threads
from semmae.models.vit import Encoder
from semmae.progress import timed
from semmae.run.ranks import local_rank

Item = TypeVar("Item")
Made = TypeVar("Made")

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GPU_THREADS = 2


def most_rows() -> int:
    """Images in a block at most: enough to fill a GPU, few enough that each core can hold a block."""
    return 256 if torch.cuda.is_available() else 32


def usual_device() -> torch.device:
    """This process's GPU, where there is one; of several processes of a machine each has its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return own_gpu(local_rank() % torch.cuda.device_count())  # or it sees no other one


def own_gpu(number: int) -> torch.device:
    """The GPU of this number, from now on this process's current one: else what pins memory would begin with another.

    Contexts of all processes on the first GPU would take its memory, and fail where a GPU is of one process alone.
    """
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def through_encoder(
    batches: Iterable[tuple[Item, Tensor]],
    encoder: Encoder,
    work: Callable[[Tensor, Item, Tensor], Made],
    *,
    precision: Literal["float32", "bf16", "fp16"],
    threads: int,
    device: torch.device,
) -> Iterator[tuple[Made, float]]:
    """`work` of every batch (item, images): normalised images (B, 3, S, S), item, images uint8 → its result, seconds
    waited.

    In order. `work` calls the encoder, on a CPU in `threads` at once; nothing is differentiated.
    """
    threads = threads if device.type == "cpu" else _GPU_THREADS
    encoder, dtype = encoder.to(device).eval(), _DTYPES[precision]

    @torch.inference_mode()  # as autocast, of a thread: entered in the one that computes
    def worked(batch: tuple[tuple[Item, Tensor], float]) -> tuple[Made, float]:
        (item, images), waited = batch
        images = images.to(device, non_blocking=True)
        pixels = normalise(images, encoder.spec.mean, encoder.spec.std)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return work(pixels, item, images), waited

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
