"""How long training waits for shards at an address, with and without their being copied ahead.

    python benchmarks/remote_shards.py [--rounds 3] [--shares 0.5 0.9]

All of it is small, and the network is simulated: a server on this machine sends 4 MB/s in all, and a window is 8 MB of
shards, not 4 GB. What loads is the loader of `semmae pretrain`, with one process; a step is a pause that begins when
its batch is there. Every epoch begins without copies, and has room for all of them.

- "share": how long copying a window takes, of the time in which it is shown: by it the pause is chosen;
- "ahead": as it is; "without": no row brings another's shard along;
- "best": what no loader can be below, calculated: the first window is copied, then every step follows at once;
- "epoch_s", "waited_s": medians over rounds of an epoch's seconds, and of those of them without a step.

Both ways take turns, epoch by epoch, and ratios are medians over rounds, of the same round. The order of round N is
that of seed 0, epoch N. The last printed line is one JSON object; the same, with command and machine, is in
`benchmarks/results/remote_shards.json`.
"""

import argparse
import functools
import io
import math
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from harness import median_ratio, take_turns, write_results
from loading import draw_photos
from torch.utils.data import DataLoader

from semmae.data import samplers, shard_places
from semmae.data.loaders import CropDataset
from semmae.data.manifest import ImageSet, open_images
from semmae.data.samplers import EpochSampler
from semmae.train.batches import Training

RATE, WINDOW, SHARDS, WINDOWS = 4e6, 8e6, 4, 4  # bytes a second; bytes; shards of a window; windows of an epoch
BATCH, SIZE = 16, 32
PHOTO, DRAWN = (250, 188), 160
CHUNK = 2**15  # bytes that are sent at a time

Loader = DataLoader[dict[str, Any]]


class Epoch(NamedTuple):
    """What one took."""

    seconds: float
    waited: float


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns that both ways take; the median counts")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.9], help="of copying, in showing a window")
    parser.add_argument("--scale", type=float, default=1.0, help="of the window, and of all that is sent")
    options = parser.parse_args()
    window = options.scale * WINDOW
    with tempfile.TemporaryDirectory() as name, served(Path(name) / "served", window) as (address, limit):
        os.environ["SEMMAE_CACHE"] = f"{name}/cache"
        # With a smaller window less room is enough.
        shard_places._LEAST_ROOM = 0.0
        samplers.by_window = functools.partial(samplers.by_window, window=int(window))
        images = open_images(f"{address}/", workers=1, check="none")
        limit.value = RATE
        cases = [case(images, share, options.rounds) for share in options.shares]
    write_results(
        "remote_shards",
        {
            "simulated": True,
            "bytes_a_second": RATE,
            "window_bytes": window,
            "windows": windows_of(images),
            "shards": SHARDS * WINDOWS,
            "images": len(images),
            "rounds": options.rounds,
            "cases": cases,
        },
    )


def case(images: ImageSet, share: float, rounds: int) -> dict[str, Any]:
    """Both ways, where copying a window takes this share of the time in which it is shown."""
    loaders = {"ahead": loader_of(images), "without": loader_of(images)}
    cast(Any, loaders["without"].sampler)._rows_ahead = lambda *_: {}
    batches, copying = len(loaders["ahead"]), window_bytes(images) / RATE
    step = copying / share * WINDOWS / batches
    epochs: dict[str, list[Epoch]] = {name: [] for name in loaders}

    def turn(name: str) -> None:
        sampler = cast(EpochSampler, loaders[name].sampler)
        sampler.set_epoch(len(epochs[name]))
        epochs[name].append(one_epoch(loaders[name], step))

    for loader in loaders.values():  # its process begins before anything is measured; the copies are there
        one_epoch(loader, 0.0)
    works: dict[str, Callable[[], None]] = {name: functools.partial(turn, name) for name in loaders}
    take_turns(works, rounds, warmup=0, before=lambda _: remove_copies())
    best = Epoch(copying + batches * step, copying)
    every = {name: [epoch.seconds for epoch in found] for name, found in epochs.items()}
    return {
        "share": share,
        "step_s": round(step, 4),
        "steps": batches,
        **{name: medians(found) for name, found in epochs.items()},
        "best": medians([best]),
        "ratios": {
            "without": median_ratio(every["without"], every["ahead"]),
            "of_best": median_ratio(every["ahead"], [best.seconds] * rounds),
        },
    }


def loader_of(images: ImageSet) -> Loader:
    """As of `semmae pretrain`, with small crops: decoding is not what is measured."""
    training = Training(resume=False, logger="none", batch_size=BATCH, workers=1, seed=0)
    return training.loader(CropDataset(images, SIZE))


def one_epoch(loader: Loader, step: float) -> Epoch:
    """Goes through an epoch; each batch is shown for so many seconds."""
    began, waited = time.perf_counter(), 0.0
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return Epoch(time.perf_counter() - began, waited)
        time.sleep(step)


def windows_of(images: ImageSet) -> int:
    """Of the first epoch; the others' are as many, because all shards are of one size."""
    assert images.shards is not None
    rng = np.random.default_rng((0, 0))
    return len(samplers.by_window(images.shards.numbers, images.shards.sizes, rng))


def window_bytes(images: ImageSet) -> float:
    """Of the tar files of a window, as they are sent: all are of one size."""
    assert images.source.shards is not None
    return sum(shard.size for shard in images.source.shards.places) / WINDOWS


def remove_copies() -> None:
    """Of the epoch before, which has ended: nothing is being copied."""
    for path in shard_places._folder().glob("*.tar"):
        path.unlink()


def medians(epochs: list[Epoch]) -> dict[str, float]:
    """Seconds."""
    return {
        "epoch_s": round(statistics.median(epoch.seconds for epoch in epochs), 2),
        "waited_s": round(statistics.median(epoch.waited for epoch in epochs), 2),
    }


@contextmanager
def served(folder: Path, window: float) -> Iterator[tuple[str, Any]]:
    """Shards that are served by a process of its own: their address, and a value, of all bytes a second."""
    write_shards(folder, window)
    forking = multiprocessing.get_context("fork")
    limit, said = forking.Value("d", math.inf), forking.SimpleQueue()
    process = forking.Process(target=serve, args=(folder, limit, said), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{said.get()}", limit
    finally:
        process.kill()
        process.join()


def write_shards(folder: Path, window: float) -> None:
    """So many for all windows, of drawn photos, each of which comes in several of them."""
    folder.mkdir()
    photos = [path.read_bytes() for path in sorted(draw_photos(folder / "drawn", DRAWN, *PHOTO).iterdir())]
    # A little more than so many in a window would hold: by their beginnings they are dealt out to windows.
    each = math.ceil(1.02 * window / SHARDS / statistics.mean(map(len, photos)))
    for shard in range(SHARDS * WINDOWS):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for row in range(shard * each, (shard + 1) * each):
                member = tarfile.TarInfo(f"{row:06}.jpg")
                member.size = len(photos[row % DRAWN])
                tar.addfile(member, io.BytesIO(photos[row % DRAWN]))


def serve(folder: Path, limit: Any, said: Any) -> None:
    """Give the port, and files, until the process is killed."""
    Limited.limit = limit
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Limited, directory=str(folder)))
    said.put(server.server_port)
    server.serve_forever()


class Limited(SimpleHTTPRequestHandler):
    """Sends all files together at no more than a rate."""

    limit: Any = None
    free = 0.0  # when the line is

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """In pieces, each when its turn has come."""
        while piece := source.read(CHUNK):
            with Limited.limit.get_lock():  # of other threads too
                begin = max(time.monotonic(), Limited.free)
                Limited.free = sent = begin + len(piece) / Limited.limit.value
            time.sleep(max(0.0, sent - time.monotonic()))
            outputfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


if __name__ == "__main__":
    main()
