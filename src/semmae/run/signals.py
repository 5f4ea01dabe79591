"""How Ctrl-C, SIGTERM and SIGUSR1 end a verb."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# By the last one Slurm may say that the time of a job is nearly over (`sbatch --signal`).
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """Training was stopped by Ctrl-C, or by another signal: what was saved can be continued.

    No KeyboardInterrupt, which Lightning would answer itself; at the edge it becomes the exit code or `Stopped`.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGUSR1 ended a verb; a Python call says in the text how to resume."""

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text or signal.Signals(signum).name)
        self.signum = signum

    def __reduce__(self) -> tuple[type["Stopped"], tuple[Any, ...]]:
        """From one process to another."""
        return Stopped, (self.signum, *self.args)


@contextmanager
def stoppable(last_words: Callable[[int], object]) -> Iterator[None]:
    """Each of `STOPPING` raises `Stopped`; the second one ends the process at once, whatever it waits for.

    Nothing is lost by that: files are written whole or not at all. Training takes them over while it lasts
    (`Signals`). A thread other than the main one changes nothing. `last_words` is called with the signal before the
    process ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def receive(signum: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            last_words(signum)
            os._exit(128 + signum)
        received = True
        raise Stopped(signum)

    before = {signum: signal.signal(signum, receive) for signum in STOPPING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
