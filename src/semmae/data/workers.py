"""Processes that load images: how they begin, and how they end with the process that trains; and threads, in order."""

import atexit
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from semmae.memory import keep_freed_memory

Item = TypeVar("Item")
Made = TypeVar("Made")

LOADERS: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()  # whose processes are to end with this one


def start_worker(_: int) -> None:
    """One thread per worker, for they are the parallelism; signals that end a run are the main process's to answer.

    A terminal sends Ctrl-C, and Slurm SIGTERM, to all processes: the step that is running needs its images.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def in_threads(function: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int = 4) -> Iterator[Made]:
    """The function of every item, in their order, by threads; each is so many items `ahead` of what is taken, no more.

    Nothing more is begun when the reader stops, a call fails or Ctrl-C is pressed.
    """
    pending: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead * max(1, threads):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@atexit.register  # after multiprocessing's own, so called before it, which would wait for the workers
def _end_workers() -> None:
    """End the workers of loaders that are still there when the process ends: no signal ends them, see above."""
    for loader in list(LOADERS):
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
