"""What the benchmarks share: works that take turns, the machine they ran on, and the file of results.

A figure of one work alone says as much about the machine as about the work; so all works of a benchmark take turns, and
what counts is their ratio in the same round: other load on the machine slows both.
"""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)

RESULTS = Path(__file__).parent / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDES = (8192, 16384) if DEVICE.type == "cuda" else (1024, 2048, 4096)  # of matrices


def take_turns(
    works: Mapping[Name, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    between: Callable[[], object] = lambda: None,
    before: Callable[[Name], object] = lambda name: None,
) -> dict[Name, list[float]]:
    """Seconds of each work in every round; in a round each runs once, one after the other.

    So many rounds before them do not count: they fill caches and choose kernels. `between` runs before each round that
    counts and after the last; `before` each turn, whose name it is given.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    for turn in range(warmup + rounds):
        if turn >= warmup:
            between()
        for name in turned(list(works), turn):
            before(name)
            elapsed = timed(works[name])
            if turn >= warmup:
                seconds[name].append(elapsed)
    between()
    return seconds


def turned(names: list[Name], turn: int) -> list[Name]:
    """Who goes first changes from round to round, for a work may gain by what ran just before it."""
    first = turn % len(names)
    return names[first:] + names[:first]


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, what it started on the GPU included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def back_to_back(work: Callable[[], object], calls: int) -> float:
    """Seconds of a call among so many without a pause, by the GPU's own clock where there is one."""
    if DEVICE.type != "cuda":
        return timed(lambda: [work() for _ in range(calls)]) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()  # the GPU is busy with it as the others are queued
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / calls


def matrix_rate(dtype: torch.dtype, sides: Iterable[int] = SIDES, calls: int = 9) -> float:
    """Operations a second that a square matrix product keeps up: the best of the sizes.

    Of each the median call; of a GPU the mean of calls back to back.
    """
    rates = []
    for side in sides:
        first, second = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        product = partial(torch.mm, first, second)
        alone = DEVICE.type != "cuda"
        seconds = statistics.median(timed(product) for _ in range(calls)) if alone else back_to_back(product, calls)
        rates.append(2 * side**3 / seconds)
    return max(rates)


def median_ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    """How many times faster ours is: the median over rounds of their seconds by our seconds."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 3)


def per_second(count: float, seconds: Iterable[float]) -> float:
    """The median over rounds of so many things a second."""
    return round(count / statistics.median(seconds), 2)


def machine() -> dict[str, Any]:
    """What figures of speed depend on besides the code."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
    }


def processor() -> str:
    """The processor's name, where the system gives it, and which of its units compute in bf16."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    units = [unit for unit in ("avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return " ".join([names[0] if names else platform.processor(), *units])


def write_results(name: str, figures: Mapping[str, Any], file: str | None = None) -> None:
    """Write figures with command and machine to results/FILE.json (FILE: NAME), and print them as the last line.

    Those of a GPU go to FILE-cuda.json: the pages show a processor's.
    """
    RESULTS.mkdir(exist_ok=True)
    # Wherever it was called from: of one machine's folders nothing is kept.
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    whole = {"command": command, "machine": machine(), "results": {"benchmark": name, **figures}}
    device = "-cuda" if DEVICE.type == "cuda" else ""
    (RESULTS / f"{file or name}{device}.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole["results"]))
