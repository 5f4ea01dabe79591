"""What ends a verb outside training: the line that says how to resume, and a second signal that does not wait."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import in_a_process

from semmae.cli import run
from semmae.data.part_store import PartStore
from semmae.data.token_file import TokenFile


def when_called(module: Any, name: str, act: Callable[[], None], call: int = 2) -> Callable[[], None]:
    """Does something in the middle of the work: at the second call of a function."""

    def prepare() -> None:
        real, calls = getattr(module, name), []

        def acting(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                act()
            return real(*arguments, **named)

        setattr(module, name, acting)

    return prepare


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("verb", "signum"), [("embed", signal.SIGUSR1), ("embed", signal.SIGINT), ("parts", signal.SIGTERM)]
)
def test_labelling_and_embedding_end_with_how_to_go_on(
    verb: str, signum: int, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    words = ["--data", str(creatures / "images"), "--workers", "0", "--batch-size", "8"]
    if verb == "embed":
        out, words = tmp_path / "x.npz", [*words, "--encoder", str(encoder)]
        prepare = when_called(TokenFile, "write", send(signum))
    else:
        out, words = tmp_path / "run", [*words, "--teacher", str(encoder), "--steps", "2"]
        prepare = when_called(PartStore, "write", send(signum), call=1)  # labels of 32 images are written at once
    child = in_a_process([verb, *words, "--out", str(out)], prepare)
    assert child.ended(120) == 128 + signum, child.output
    lines = [line for line in child.output.splitlines() if line.startswith("semmae: ")]
    assert lines == [f"semmae: stopped; resume with: semmae {verb} --out {out} --resume"], child.output
    assert "Traceback" not in child.output
    assert run([verb, "--out", str(out), "--resume"]) == 0
    assert out.exists()


def test_a_second_signal_ends_a_process_that_waits(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    def stuck() -> None:
        def wait_for_ever(*_: Any) -> None:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:  # a library that cleans up, and does not come to an end
                (tmp_path / "stuck").touch()
                while True:
                    time.sleep(0.1)

        TokenFile.write = wait_for_ever  # type: ignore[method-assign]

    out = tmp_path / "x.npz"
    words = ["--data", str(creatures / "images"), "--encoder", str(encoder), "--workers", "0", "--out", str(out)]
    child = in_a_process(["embed", *words], stuck)
    deadline = time.monotonic() + 120
    while not (tmp_path / "stuck").exists() and child.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(child.process.pid or 0, signal.SIGINT)
    assert child.ended(30) == 128 + signal.SIGINT, child.output
    assert time.monotonic() - began < 5
    assert f"semmae embed --out {out} --resume" in child.output
