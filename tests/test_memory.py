"""What the process does with memory that is freed."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import semmae
from semmae import memory

# Counts the pages that the system hands out for later rounds of the same large blocks, held together, then freed.
FAULTS = """
import resource, sys
import torch
from semmae.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21 + 2**16 * number) for number in range(16)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, sum(faults[1:]))
"""


# What a process holds of large blocks that are freed: inside the block that gives memory back, and after it.
HELD = """
import sys
from pathlib import Path
import torch
from semmae.memory import keep_freed_memory, memory_given_back
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def work(count, size):
    blocks = [torch.ones(size + 2**16 * number) for number in range(count)]
    del blocks
    return held() - before
before = held()
if sys.argv[1] == "nested":
    keep_freed_memory()
with memory_given_back():
    kept = keep_freed_memory()
    inside = work(16, 2**21)
after = held() - before
print(kept, inside, after, work(8, 2**24))  # these are larger than what glibc would ever keep by itself
"""
BLOCKS = 4 * sum(2**21 + 2**16 * number for number in range(16))  # bytes
LATER = 4 * sum(2**24 + 2**16 * number for number in range(8))

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")


def run(script: str, argument: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=True)
    found, *numbers = done.stdout.split()
    assert found == ("None" if argument == "leave" else "True")
    return list(map(int, numbers))


@only_glibc
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    (kept,) = run(FAULTS, "keep")
    (given_back,) = run(FAULTS, "leave")

    assert kept < given_back / 4


@only_glibc
def test_what_was_kept_is_given_back_at_the_end_and_from_then_on() -> None:
    inside, after, later = run(HELD, "alone")

    assert inside > 0.9 * BLOCKS > 0.3 * BLOCKS > after
    assert later < 0.25 * LATER  # one of the eight stays now and then, by where the system puts it


@only_glibc
def test_who_kept_memory_before_keeps_it() -> None:
    assert min(run(HELD, "nested")) > 0.9 * BLOCKS


@only_glibc
def test_a_verb_called_from_python_leaves_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    def verb(_: object, given: object) -> Path:
        kept.append(memory.keep_freed_memory() and memory._kept)
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "_kept", False)
    monkeypatch.setattr("semmae.calls.run_verb", verb)
    with pytest.raises(KeyboardInterrupt):
        semmae.pretrain(data="photos", out="out")
    assert kept == [True] and not memory._kept


def test_an_older_glibc_gets_the_most_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []

    class Old:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            found.append((what, value))
            return int(what != -3 or value <= 2**25)

    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Old)
    monkeypatch.setattr(memory, "_kept", False)

    assert memory.keep_freed_memory()
    assert found == [(-3, 2**31 - 1), (-3, 2**25), (-1, 2**31 - 1)]


def test_elsewhere_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "win32")

    assert not memory.keep_freed_memory()
