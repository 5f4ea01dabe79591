"""How long the headers of tar shards take to read, of which the index of a data set is made.

    python benchmarks/shard_index.py [--shards 20] [--images 10000] [--rounds 3]

Shards with so many images each, of 600 bytes, and the class of each beside it in a `.cls`; seed 0 for the classes. They
are written first, and read from the system's cache: a disk's own time comes on top. The contestants take turns, and
each ratio is the median over rounds of theirs by ours:

- "ours": by processes or threads, as `semmae.data.shard_index` chooses for this machine;
- "threads": by four threads, as shards at addresses are, and one shard;
- "one": one after the other.

"small" is the same of one shard of 300 images, which has to be no slower than by threads; "start_ms" what two processes
take to begin and end. The last line is one JSON object; with command and machine it is in
`benchmarks/results/shard_index.json`.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import median_ratio, take_turns, timed, write_results

from semmae.data import shard_index
from semmae.data.shard_places import Shard, local_shards
from semmae.data.workers import in_processes, in_threads

CLASSES = 1000
BYTES = 600  # of an image
SMALL = 300  # images
THREADS = 4


def main() -> None:
    """Measure, write results/shard_index.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000, help="of each shard")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = written(Path(folder) / "large", options.shards, options.images)
        small = written(Path(folder) / "small", 1, SMALL)
        results = {"shards": options.shards, "images_per_shard": options.images, **raced(shards, options.rounds)}
        results["processes"] = shard_index._processes(shards)
        results["small"] = raced(small, 10 * options.rounds)
    starts = [1000 * timed(lambda: list(in_processes(abs, range(2), 2, 1))) for _ in range(3 * options.rounds)]
    write_results("shard_index", {**results, "start_ms": round(statistics.median(starts), 1)})


def written(folder: Path, shards: int, images: int) -> list[Shard]:
    """Such shards, in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"train-{number:06}.tar" for number in range(shards)]
    for number, name in enumerate(names):
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(number * images, (number + 1) * images):
                for kind, content in (("jpg", bytes(BYTES)), ("cls", b"%d" % rng.integers(CLASSES))):
                    member = tarfile.TarInfo(f"{row:09}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return local_shards(folder, names, str(folder))


def raced(shards: list[Shard], rounds: int) -> dict[str, Any]:
    """Microseconds of an image, and ratios."""
    read = shard_index._read_shard
    works: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: list(shard_index._all_read(shards)),
        "threads": lambda: list(in_threads(read, shards, THREADS)),
        "one": lambda: [read(shard) for shard in shards],
    }
    images = sum(len(members.rows) for members, _ in works["ours"]())
    seconds = take_turns(works, rounds)
    figures = {name: round(1e6 * statistics.median(found) / images, 1) for name, found in seconds.items()}
    ratios = {name: median_ratio(seconds[name], seconds["ours"]) for name in works if name != "ours"}
    return {"microseconds_of_an_image": figures, "ratios": ratios}


if __name__ == "__main__":
    main()
