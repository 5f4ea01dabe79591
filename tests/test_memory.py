"""What the process does with memory that is freed."""

import platform
import subprocess
import sys

import pytest

from semmae import memory

# Counts the pages that the system hands out for later rounds of the same large blocks, held together, then freed.
FAULTS = """
import resource, sys
import torch
from semmae.memory import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21 + 2**16 * number) for number in range(16)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(told, sum(faults[1:]))
"""


def run(argument: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, argument], capture_output=True, text=True, check=True)
    told, faults = done.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    told, kept = run("keep")
    _, given_back = run("leave")

    assert told == "True"
    assert kept < given_back / 4


def test_an_older_glibc_gets_the_most_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    class Old:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            told.append((what, value))
            return int(what != -3 or value <= 2**25)

    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Old)

    assert memory.keep_freed_memory()
    assert told == [(-3, 2**31 - 1), (-3, 2**25), (-1, 2**31 - 1)]


def test_elsewhere_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "win32")

    assert not memory.keep_freed_memory()
