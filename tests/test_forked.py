"""A child that fails must say why, or the test about it cannot be mended."""

import logging
import multiprocessing
import signal
import sys
import time

import pytest
from forked import Forked


def say(*lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return 2


def test_exit_code_and_words_of_a_child() -> None:
    child = Forked(lambda: say("semmae: --epochs 0", "is wrong"))
    assert child.ended(60) == 2
    assert child.output == "exit code 2\nsemmae: --epochs 0\nis wrong\n"


def test_an_error_in_a_child_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        logging.getLogger("semmae").error("about to fail")
        raise RuntimeError("no such thing")

    child = Forked(fail)
    assert child.ended(60) == 1
    assert "RuntimeError: no such thing" in child.output and "in fail" in child.output
    assert capfd.readouterr() == ("", "")


def test_a_child_that_hangs_gives_where() -> None:
    begun = multiprocessing.get_context("fork").Event()

    def hang() -> None:
        begun.set()
        time.sleep(600)

    child = Forked(hang)
    assert begun.wait(60)
    assert child.ended(0) == -signal.SIGABRT
    assert "in hang" in child.output
