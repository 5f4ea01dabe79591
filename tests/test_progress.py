"""Progress: silent when short, one line in a log, one rewritten line on a terminal, the wait measured."""

import io
import logging
from pathlib import Path

import pytest

from semmae.data.shard_places import named
from semmae.errors import listed
from semmae.names import shown
from semmae.progress import ESCAPED, Progress, held, logged, quiet, shown_rate, write


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, items: int, load: float, work: float, total: int | None = None) -> Progress:
    """Work through `items` batches of ten, each loaded in `load` and worked on for `work` seconds."""
    clock = Clock()

    def batches():
        for item in range(items):
            clock.now += load
            yield item

    with Progress(total, label="features", stream=stream, clock=clock) as progress:
        for _ in progress.iterate(batches()):
            clock.now += work
            progress.update(10)
    return progress


def test_short_work_is_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        run(stream, items=10, load=0.1, work=0.09, total=100)
        assert stream.getvalue() == ""


def test_libraries_are_quiet_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("a_library.of.others")
    with quiet("a_library"):
        library.warning("Retrying in 1s")
        library.error("gone")
    library.warning("after it")
    assert [record.message for record in caplog.records] == ["gone", "after it"]


def test_a_slow_rate_is_not_shown_as_nothing() -> None:
    assert [shown_rate(rate) for rate in (310.4, 9.96, 8.24, 0.452, 0.0)] == ["310", "10", "8.2", "0.45", "0"]


def test_a_log_gets_one_line() -> None:
    stream = io.StringIO()
    progress = run(stream, items=10, load=0.25, work=0.75, total=100)
    assert stream.getvalue() == ("features: 100/100 images, 10 images/s, 25 % waiting for data, 0:10 in all\n")
    assert progress.rate == pytest.approx(10)
    assert progress.data_wait == pytest.approx(0.25)


def test_a_log_of_long_work_gets_a_line_a_minute() -> None:
    stream = io.StringIO()
    run(stream, items=30, load=0, work=10, total=300)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"features: {done}/300 images" for done in (60, 120, 180, 240, 300)
    ]
    assert lines[0].endswith("4:00 left")


def test_a_terminal_line_is_rewritten_and_wiped() -> None:
    stream = Terminal()
    run(stream, items=40, load=0, work=1)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    shown = text.rstrip("\n").split("\r")[1:]
    assert all(len(later) >= len(earlier.rstrip()) for earlier, later in zip(shown, shown[1:], strict=False))
    assert shown[-1].startswith("features: 400 images")


def test_an_error_passes_and_the_line_is_ended() -> None:
    stream, clock = Terminal(), Clock()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(5, "steps", stream=stream, clock=clock) as progress,
    ):
        clock.now += 3
        progress.update(2)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("2/5 steps, 0.67 steps/s, 0:04 left\n")


def test_names_are_written_as_their_bytes_where_these_are_letters() -> None:
    text = "f\udcc3\udcb6tos \udcff\udcc3\udca4 ö \ud800"
    assert text.encode("ascii", ESCAPED) == "fötos \\xffä ".encode() + rb"\xf6 \ud800"
    assert text.encode("utf-8", ESCAPED) == "fötos \\xffä ö ".encode() + rb"\ud800"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=ESCAPED)
    write(stream, text)
    assert stream.buffer.getvalue() == text.encode("ascii", ESCAPED)  # type: ignore[attr-defined]
    strict = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write(strict, text)
    assert strict.buffer.getvalue().startswith(rb"f\udcc3")  # type: ignore[attr-defined]


def test_a_log_begins_with_what_was_logged_before_it_was_opened(tmp_path: Path) -> None:
    log = logging.getLogger("semmae")
    log.warning("nobody's")
    with held():
        log.warning("before")
        with logged(tmp_path / "a"):
            log.warning("meanwhile")
        log.warning("between")
        with logged(tmp_path / "b"), logged(tmp_path / "c"):
            log.warning("both")
    log.warning("nobody's")
    given = {name: [line.split()[-1] for line in (tmp_path / name).read_text().splitlines()] for name in "abc"}
    assert given == {"a": ["before", "meanwhile"], "b": ["between", "both"], "c": ["both"]}
    assert log.handlers == []


COMMANDS = [*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u2028", "\u202e", "\u2066"]


def test_nothing_that_is_written_commands_a_terminal(tmp_path: Path) -> None:
    """But for the ends of our own lines; and no name makes a second one."""
    evil = "".join(f"a{each}b" for each in COMMANDS) + "ö\u3000\udcff"
    stream, log = io.StringIO(), logging.getLogger("semmae")
    write(stream, evil + "\n")
    with logged(tmp_path / "log"):
        log.warning("%s: %s, %s, %s", Path(evil), listed([evil]), shown(evil), named(evil))
        log.warning("%s", evil)
        log.warning("%(name)s", {"name": evil})
        log.warning(evil)
    lines = (tmp_path / "log").read_bytes().decode().split("\n")
    assert len(lines) == 1 + 3 * evil.count("\n") + 4 and lines[0].count(r"a\nb") == 4 and "ö\u3000" in lines[0]
    for text in ("".join(lines), stream.getvalue().replace("\n", "")):
        assert not {*COMMANDS} & {*text} and r"a\x9bb" in text and r"a\u202eb" in text
    assert stream.getvalue().count("\n") == evil.count("\n") + 1


@pytest.mark.parametrize("closed", [False, True])
def test_a_stream_that_nobody_reads_costs_nothing(closed: bool, unread: io.TextIOWrapper) -> None:
    if closed:
        unread.close()
    for _ in range(3):
        write(unread, "x" * 100_000)
    with Progress(1, stream=unread, clock=Clock()) as progress:
        progress._write("\n")
    write(None, "x")
