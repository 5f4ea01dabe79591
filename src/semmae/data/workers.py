"""Processes that load images: how they begin, and how they end with the process that trains."""

import atexit
import signal
import weakref
from typing import Any

import torch
from torch.utils.data import DataLoader

from semmae.memory import keep_freed_memory

LOADERS: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()  # whose processes are to end with this one


def start_worker(_: int) -> None:
    """One thread per worker, for they are the parallelism; signals that end a run are the main process's to answer.

    A terminal sends Ctrl-C, and Slurm SIGTERM, to all processes: the step that is running needs its images.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


@atexit.register  # after multiprocessing's own, so called before it, which would wait for the workers
def _end_workers() -> None:
    """End the workers of loaders that are still there when the process ends: no signal ends them, see above."""
    for loader in list(LOADERS):
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
