"""How Ctrl-C and SIGTERM end a verb."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Training was stopped by Ctrl-C, or by another signal: what was saved can be continued.

    No KeyboardInterrupt, which Lightning would answer itself; at the edge it becomes the exit code or `Stopped`.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a verb; a Python call says in the text how to resume."""

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text or signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def stoppable(last_words: Callable[[int], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped`; the second one ends the process at once, whatever it waits for.

    Nothing is lost by that: files are written whole or not at all. Training takes both over while it lasts
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

    before = {signum: signal.signal(signum, receive) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
