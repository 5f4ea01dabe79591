"""What the names of a million images take: of the process that opens them, and of one that loads images.

    python benchmarks/manifest.py [--images 1300000]

Names, classes, sizes and times of ImageNet's form, never of files that are there, each contestant in new processes:

- "ours": as `semmae.data.sources` keeps them, a buffer and arrays;
- "lists": the same as Python's lists of texts and numbers.

`mib` is what a process holds more once it has made them; `worker_mib` what a forked process that has read every name,
class and size holds for itself alone (its private memory), less that of one which reads nothing; `pickle_mib` what a
process that is started anew is sent. `seconds` are those of making them of names one by one, and for ours of the
digest, and of finding all of them in the file of what was readable before; listing a folder and asking for the size
of each file come on top, and are the file system's. The last line is one JSON object; with command and machine it is
in `benchmarks/results/manifest.json`.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_results

from semmae.data.checked import known_rows, read_known, stamps, write_known
from semmae.data.compact import Labels, Names
from semmae.data.manifest import Manifest

MIB = 2**20
CLASSES = 1000


def main() -> None:
    """Measure each contestant in a process of its own, write results/manifest.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options.images)))
        return
    measured = {name: alone(name, options.images) for name in CONTESTANTS}
    ratios = {name: round(measured["ours"][name] / measured["lists"][name], 3) for name in measured["lists"]}
    write_results("manifest", {"images": options.images, **measured, "ratios": ratios})


def alone(contestant: str, images: int) -> dict[str, float]:
    """What a new process measures."""
    command = [sys.executable, __file__, "--contestant", contestant, "--images", str(images)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured


def names_of(images: int) -> Iterator[str]:
    """As those of ImageNet's training images."""
    for image in range(images):
        synset = f"n{10_000_000 + image % CLASSES}"
        yield f"train/{synset}/{synset}_{image}.JPEG"


def ours(images: int) -> tuple[Any, ...]:
    """Names, classes, sizes and times as a source holds them."""
    sizes = np.arange(images) + 100_000
    return Names(names_of(images)), Labels(name.split("/")[1] for name in names_of(images)), sizes, sizes * 10**13


def lists(images: int) -> tuple[Any, ...]:
    """The same as lists, each text and number an object."""
    sizes = [image + 100_000 for image in range(images)]
    labels = [name.split("/")[1] for name in names_of(images)]
    return list(names_of(images)), labels, sizes, [size * 10**13 for size in sizes]


CONTESTANTS: dict[str, Callable[[int], tuple[Any, ...]]] = {"ours": ours, "lists": lists}


def measure(contestant: str, images: int) -> dict[str, float]:
    """All figures of one contestant."""
    before, started = memory("Rss"), time.perf_counter()
    columns = CONTESTANTS[contestant](images)
    seconds = time.perf_counter() - started
    found = {"mib": memory("Rss") - before, "seconds": seconds}
    order = np.random.default_rng(0).permutation(images)  # made here: it is no part of what is measured
    found["worker_mib"] = in_a_worker(lambda: read(columns, order)) - in_a_worker(lambda: None)
    found["pickle_mib"] = len(pickle.dumps(columns)) / MIB
    if contestant == "ours":
        found |= opening(*columns)
    return {name: round(value, 2) for name, value in found.items()}


def read(columns: tuple[Any, ...], order: Any) -> None:
    """Look at every name, class and size once, in this order, as training does."""
    names, labels, sizes, _ = columns
    for row in order:
        assert names[row] and labels[row] and sizes[row]


def in_a_worker(work: Callable[[], None]) -> float:
    """MiB that a forked process holds for itself when it has done some work."""
    context = multiprocessing.get_context("fork")
    theirs, mine = context.Pipe(duplex=False)

    def send() -> None:
        work()
        mine.send(memory("Private_Dirty") + memory("Private_Clean"))

    process = context.Process(target=send)
    process.start()
    measured: float = theirs.recv()
    process.join()
    return measured


def opening(names: Names, labels: Labels, sizes: Any, modified: Any) -> dict[str, float]:
    """Seconds of what `open_images` does with them when all were checked before."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checked.npy"
        started = time.perf_counter()
        write_known(file, stamps(names, sizes, modified))
        write, started = time.perf_counter() - started, time.perf_counter()
        assert known_rows(stamps(names, sizes, modified), read_known(file)).all()
        lookup, started = time.perf_counter() - started, time.perf_counter()
        assert Manifest(names, sizes, labels).digest
        digest = time.perf_counter() - started
        file_mib = os.path.getsize(file) / MIB
    return {"seconds_digest": digest, "seconds_lookup": lookup, "seconds_remember": write, "file_mib": file_mib}


def memory(kind: str) -> float:
    """MiB of this process, as the system counts them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1]) / 1024


if __name__ == "__main__":
    main()
