"""Processes that load images: how they begin, and how they end with the process that trains.

And work that threads or processes share, whose results come in order.
"""

import atexit
import logging
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from semmae.errors import reason
from semmae.memory import keep_freed_memory
from semmae.names import bytes_shown
from semmae.run.ranks import is_rank_zero
from semmae.run.signals import STOPPING

Item = TypeVar("Item")
Made = TypeVar("Made")

_SHARED = "/dev/shm"  # through which processes hand over what they have loaded; in a container 64 MB by default
_AHEAD, _LARGE = 4, 2**26  # batches, and bytes of a batch above which half of that is enough
_BESIDE = 2  # batches that are there beside those loaded ahead: in use, and on its way
_WAITING = 2  # results of each process that wait to be taken, or are being made
_UNFORKED = (OSError, ImportError, NotImplementedError)  # too many processes; no shared memory, or semaphores

_log = logging.getLogger("semmae")
_warned: set[tuple[int, int]] = set()

LOADERS: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()  # whose processes are to end with this one


def plan(workers: int, batch_bytes: int) -> tuple[int, int]:
    """(Processes, batches that each loads ahead of what is taken): `workers` and 4, of large batches 2.

    Less, with a warning if processes, where /dev/shm has no room for what they hand over: they would be killed there.
    `batch_bytes`: 0 where it is not known.
    """
    ahead, room = _AHEAD if batch_bytes <= _LARGE else 2, _shared_room()
    if not workers or not batch_bytes or room is None:
        return workers, ahead
    fitting = max(0, room // batch_bytes - _BESIDE)
    if fitting >= workers:
        return workers, min(ahead, fitting // workers)
    if is_rank_zero() and (workers, batch_bytes) not in _warned:
        _warned.add((workers, batch_bytes))
        needed = (workers * ahead + _BESIDE) * batch_bytes
        _log.warning(
            "%s: %s are free, %d processes that load images need %s, so %d load them; start the container with "
            "--shm-size=%dg, or give --workers %d",
            _SHARED, bytes_shown(room), workers, bytes_shown(needed), fitting, math.ceil(needed / 2**30), fitting,
        )  # fmt: skip
    return fitting, 1


def _shared_room() -> int | None:
    """Bytes that are free in shared memory; None where the system has none that is a folder."""
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def start_worker(_: int, deaf_to: Iterable[signal.Signals] = STOPPING) -> None:
    """One thread per worker, for they are the parallelism; signals that end a run are the main process's to answer.

    A terminal sends Ctrl-C, and Slurm SIGTERM or SIGUSR1, to all processes: the step that is running needs its images.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    for signum in deaf_to:
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the process that loads, however that ended.

    PyTorch's own watch is for the parent that the system knows, which of a process from multiprocessing's server is
    the server; and that lives as long as what was forked from it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def in_threads(function: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int = 4) -> Iterator[Made]:
    """The function of every item, in their order, by threads; each is so many items `ahead` of what is taken, no more.

    Nothing more is begun when the reader stops, a call fails or Ctrl-C is pressed.
    """
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        yield from _in_order(pool, function, items, ahead * max(1, threads))
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(
    function: Callable[[Item], Made], items: Sequence[Item], processes: int, threads: int
) -> Iterator[Made]:
    """As `in_threads`, by processes that are forked for it: for work that holds the interpreter's lock.

    By `threads` where `processes` is below 2, where none can be forked, and from where one of them was killed. The
    function is a module's; it, the items, and what is made or raised are pickled.
    """
    done, pool = 0, _forked(processes)
    if pool is not None:
        try:
            for made in _in_order(pool, function, items, _WAITING * processes):
                yield made
                done += 1
        except BrokenProcessPool:
            _log.warning("a process was killed, as for want of memory; what it had to do is done without it")
        finally:
            _end(pool)
    yield from in_threads(function, items[done:], threads)


def _in_order(pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], waiting: int) -> Iterator[Made]:
    pending: deque[Future[Made]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > waiting:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _forked(processes: int) -> ProcessPoolExecutor | None:
    """So many processes, begun; None where that is one, or where they cannot be forked.

    They are never started anew instead: each would import all libraries first, and the user's script once more.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if processes < 2 or method != "fork" or multiprocessing.current_process().daemon:  # such a one may have none
        return None
    context, pool = multiprocessing.get_context("fork"), None
    try:
        # Until they have begun, forked processes would answer signals as this one does.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_forked)
            pool.submit(int)  # at the first call all are begun
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException as error:  # also by a signal that came meanwhile
        if pool is not None:
            _end(pool)
        if not isinstance(error, _UNFORKED):
            raise
        _log.debug("%d processes cannot be forked (%s)", processes, reason(error))
        return None
    return pool


def _start_forked() -> None:
    """Heeds SIGTERM, unlike a worker: where one process was killed, its pool ends the others so, and waits for them."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    start_worker(0, set(STOPPING) - {signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # one that came meanwhile is heeded now


def _end(pool: ProcessPoolExecutor) -> None:
    """At once, whatever they are doing: nothing is lost by it."""
    begun = list(pool._processes.values())
    for process in begun:
        process.kill()
    pool.shutdown(cancel_futures=True)
    for process in begun:
        process.join()


@atexit.register  # after multiprocessing's own, so called before it, which would wait for the workers
def _end_workers() -> None:
    """End the workers of loaders that are still there when the process ends: no signal ends them, see above."""
    for loader in list(LOADERS):
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
