"""What is shown while work lasts, on stderr, and when it is done, on stdout.

Notable here:
- no work is lost to its display: a stream that was closed, or whose reader has gone, is written to no more; a letter
  that its encoding lacks is shown as an escape;
- names come from strangers: whatever in them would command a terminal is shown as an escape too, here and in logs;
- nothing is written in the first two seconds; then a terminal has one line, rewritten in place, and a log file one a
  minute and one at the end.
"""

import codecs
import copy
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import Self, TextIO, TypeVar

from semmae.errors import escaped

SILENT_SECONDS = 2.0
TERMINAL_SECONDS = 0.2  # between two rewritings of the line on a terminal
LOG_SECONDS = 60.0  # between two lines elsewhere
ESCAPED = "semmae-escaped"  # how streams write what their encoding lacks: `errors` of a text stream

Item = TypeVar("Item")

_log = logging.getLogger("semmae")


def say(text: str) -> None:
    """Show a result on stdout; the log of the run keeps it too."""
    _log.debug("%s", text)
    write(sys.stdout, text + "\n")


def write(stream: TextIO | None, text: str, begin: str = "") -> None:
    """Write at once to stdout or stderr, whoever reads it, if anybody does; `begin` may move the cursor first."""
    if stream is None:  # was closed before Python began
        return
    text = begin + escaped(text, keep="\n")
    try:
        stream.write(text if getattr(stream, "errors", None) == ESCAPED else _plain(text, stream))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: closed
        silence(stream)
        if stream is not sys.stderr and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            _log.warning("what is shown here could not be written (%s); the files are whole", error.strerror or error)


def _plain(text: str, stream: TextIO) -> str:
    """Text as a stream takes it that is not ours to set up, such as a notebook's."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """What is written for letters that an encoding lacks, and where to continue: a handler of encoding errors."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = b""
    # A byte of a name that the locale could not read is a surrogate escape.
    for piece in re.findall("[\udc80-\udcff]+|[^\udc80-\udcff]+", error.object[error.start : error.end]):
        if "\udc80" <= piece[0] <= "\udcff":
            written += piece.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()
        else:
            written += piece.encode("ascii", "backslashreplace")
    return written, error.end


codecs.register_error(ESCAPED, _escape)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches the stream; not where it was closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def silence(stream: TextIO) -> None:
    """Let the rest that is written to a stream go nowhere: else Python fails by it once more when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """These libraries log errors alone, no retries and notes: what fails for good is reported once, by us."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def held() -> Iterator[None]:
    """Keep what semmae logs meanwhile for the first file that is opened to log to: a run looks at its data before."""
    handler = _Held()
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)


class _Held(logging.Handler):
    """Log records that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not any(isinstance(handler, _LogFile) for handler in _log.handlers):
            self.records.append(record)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append to a file what semmae logs meanwhile, with the time; what was `held` before goes first."""
    handler = _LogFile(path, encoding="utf-8", errors=ESCAPED)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    for keeper in _log.handlers:
        if isinstance(keeper, _Held):
            for record in keeper.records:
                handler.handle(record)
            keeper.records.clear()
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        handler.close()


class LogFormatter(logging.Formatter):
    """Formats records so that no name in them commands a terminal, and no path begins a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        given = record.args
        if isinstance(given, tuple):
            record = copy.copy(record)  # others format it, too
            record.args = tuple(escaped(str(each)) if isinstance(each, PurePath) else each for each in given)
        return escaped(super().format(record), keep="\n")


class _LogFile(logging.FileHandler):
    """Falls silent where the disk is full: what matters fails by itself, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the base class would print a traceback for every line."""

    def close(self) -> None:
        with suppress(OSError):  # what is left in its buffer cannot be written either
            super().close()


class Progress:
    """Counts work done inside a `with` block; `total` is None where nobody knows it."""

    def __init__(
        self,
        total: int | None,
        unit: str = "images",
        label: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self._stream, self._clock = stream, clock
        self._started = self._written = clock()
        self._waited: float | None = None  # None until `iterate` measures
        self._width = 0  # characters of the line on the terminal, to be wiped by a shorter one

    def __enter__(self) -> Self:
        self._stream = self._stream or sys.stderr
        self._started = self._written = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Written after an error or Ctrl-C too: how far the work came is worth knowing.
        if self.elapsed > SILENT_SECONDS:
            self._write(end="\n")
            _log.debug("%s", self.line)

    @property
    def elapsed(self) -> float:
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        return self.done / max(self.elapsed, 1e-9)

    @property
    def data_wait(self) -> float:
        """Share (0 to 1) of the time since entry spent waiting in `iterate` for the next item."""
        return min(1.0, (self._waited or 0.0) / max(self.elapsed, 1e-9))

    def iterate(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each one arrives counts as waiting for data."""
        self.waited(0.0)
        for item, seconds in timed(items, self._clock):
            self.waited(seconds)
            yield item

    def waited(self, seconds: float) -> None:
        """So long was waited for data, here or by another process."""
        self._waited = (self._waited or 0.0) + seconds

    def update(self, count: int = 1) -> None:
        self.done += count
        pause = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        if self.done == self.total and not self._terminal:
            return  # the line at the end follows at once
        if self.elapsed > SILENT_SECONDS and self._clock() - self._written >= pause:
            self._write(end="" if self._terminal else "\n")

    @property
    def line(self) -> str:
        """What is shown, e.g. `features: 1200/4000 images, 310 images/s, 2 % waiting for data, 0:09 left`."""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        facts = [f"{count} {self.unit}", f"{shown_rate(self.rate)} {self.unit}/s"]
        if self._waited is not None:
            facts.append(f"{self.data_wait:.0%} waiting for data".replace("%", " %"))
        if self.total is not None and 0 < self.done < self.total:
            facts.append(f"{_clock_time((self.total - self.done) / self.rate)} left")
        else:
            facts.append(f"{_clock_time(self.elapsed)} in all")
        return (f"{self.label}: " if self.label else "") + ", ".join(facts)

    @property
    def _terminal(self) -> bool:
        return is_terminal(self._stream)

    def _write(self, end: str) -> None:
        assert self._stream is not None, "Progress is used inside its `with` block"
        line = self.line
        start = "\r" if self._terminal else ""
        write(self._stream, line.ljust(self._width if self._terminal else 0) + end, begin=start)
        self._written, self._width = self._clock(), len(line)


def timed(items: Iterable[Item], clock: Callable[[], float] = time.monotonic) -> Iterator[tuple[Item, float]]:
    """Every item with the seconds until it came."""
    iterator = iter(items)
    while True:
        asked = clock()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item, clock() - asked


def shown_rate(rate: float) -> str:
    """`310`, `8.2` or `0.45`: slow work shows a rate, too."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock_time(seconds: float) -> str:
    """`0:09`, `12:30` or `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
