"""How fast images are labelled beside the bare frozen forward pass, and how small and fast the store is.

    python benchmarks/labelling.py [--images 192] [--rounds 7] [--sizes 112] [--precision auto]

prints a line per measurement and, last, one JSON object; the same with command and machine is written to
`benchmarks/results/labelling.json`. Random weights and noise as images: neither speed depends on them.

- "preloaded": the same batches of decoded images through the bare encoder (pixels normalised before) and
  through labelling (normalise, encoder, reduced tokens, part maps, borders, argmax, attention, store). The two
  take turns, and the ratio is the median over rounds: other work on the machine slows both.
  On a CPU the same ratio of processor time stands beside it.
- "end to end": JPEG files of 256 × 256 pixels → labels in the store, beside the loader alone. Where the loader is
  the slower one, more `--workers` or another machine make labelling faster, not this code.
"""

import argparse
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DEVICE, median_ratio, per_second, take_turns, write_results
from PIL import Image
from torch import Tensor

from semmae.data.attention import stored_side
from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, build_manifest
from semmae.data.part_store import PartStore
from semmae.data.sources import open_source
from semmae.labels.blocks import Job, compute_labels, keep
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.frozen import most_rows
from semmae.train.shares import Place
from semmae.train.trainer import resolve_precision

GRID = 32
CASES = (("vit_small", 224, 16), ("vit_small", 112, 14), ("vit_tiny", 112, 8))
IMAGENET = 1_300_000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="images in a round")
    parser.add_argument("--rounds", type=int, default=7, help="turns that the two take; the median counts")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels a side of the cases to run; default: all")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, default=2, help="processes that load images, end to end")
    options = parser.parse_args()
    results: dict[str, Any] = {"precision": resolve_precision(options.precision)}
    with tempfile.TemporaryDirectory() as folder:
        for model, size, patch in CASES:
            if options.sizes and size not in options.sizes:
                continue
            results[f"{model}_patch{patch}_{size}"] = throughput(model, size, patch, options, Path(folder))
        results |= store_figures(Path(folder) / "large")
    results["ratio"] = min(case["ratio"] for case in results.values() if isinstance(case, dict))
    write_results("labelling", results)


def throughput(model: str, size: int, patch: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Images/s of the bare encoder and of labelling, preloaded; of the loader and of labelling, end to end."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec.named(model, size, patch)).eval().to(DEVICE)
    spec = PartsSpec.of(encoder)
    learner = PartLearner(spec).eval().to(DEVICE)
    images = jpegs(folder / "jpegs", options.images)
    count, block, attended = len(images), min(options.images, most_rows()), stored_side(size // patch)
    store = PartStore.create(
        folder / f"{model}{size}", images=count, grid=GRID, label_names=spec.label_names,
        teacher_digest="t", manifest_digest=images.digest, attention_grid=attended,
    )  # fmt: skip
    precision = resolve_precision(options.precision)
    job = Job(images, encoder, learner, size, GRID, block, precision, options.workers)
    batches = [
        (torch.arange(at, min(at + block, count)), torch.randint(256, (min(block, count - at), 3, size, size)).byte())
        for at in range(0, count, block)
    ]
    threads = torch.get_num_threads()

    def bare() -> None:
        for pixels in normalised:
            features(encoder, pixels, precision)

    def preloaded() -> None:
        for (rows, labels, attention, _), _ in compute_labels(
            iter(batches), encoder, learner, grid=GRID, precision=precision, threads=threads, attention=True
        ):
            store.write_attention(rows, attention)
            store.write(rows, labels)

    def whole() -> None:
        for made, _ in job.made(range(len(batches)), Place(DEVICE, threads)):
            keep(store, made)

    def loader() -> None:
        for _ in make_loader(WholeDataset(images, size), block, workers=options.workers):
            pass

    normalised = [normalise(batch.to(DEVICE), encoder.spec.mean, encoder.spec.std) for _, batch in batches]
    works = {"bare": bare, "ours": preloaded, "loader": loader, "end_to_end": whole}
    busy: dict[str, list[float]] = {name: [] for name in works}
    seconds = take_turns({name: clocked(work, busy[name]) for name, work in works.items()}, options.rounds)
    figures = {f"{name}_images_per_s": per_second(count, found) for name, found in seconds.items()}
    figures["ratio"] = median_ratio(seconds["bare"], seconds["ours"])
    if DEVICE.type == "cpu":
        figures["processor_time_ratio"] = median_ratio(busy["bare"][1:], busy["ours"][1:])  # the first warms up
    print(f"{model}, {size} pixels, patch {patch}: {figures}", file=sys.stderr)
    return figures


@torch.inference_mode()
def features(encoder: Encoder, pixels: Tensor, precision: str) -> None:
    """The bare forward pass of one batch."""
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.autocast(DEVICE.type, dtype, enabled=precision != "float32"):
        encoder(pixels)


def clocked(work: Callable[[], None], busy: list[float]) -> Callable[[], None]:
    """The work, which also notes the seconds of this process's processor time: other work hardly adds to them."""

    def clocked_work() -> None:
        began = time.process_time()
        work()
        busy.append(time.process_time() - began)

    return clocked_work


def jpegs(folder: Path, count: int) -> ImageSet:
    """So many JPEG files of smooth noise, of a photo's size in bytes."""
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)
    source = open_source(folder)
    return ImageSet(source, build_manifest(source, workers=1, cache=None))


def store_figures(folder: Path) -> dict[str, float]:
    """Size, time to open and time to read a random row of a store of as many rows as ImageNet has."""
    made = PartStore.create(
        folder, images=IMAGENET, grid=GRID, attention_grid=stored_side(GRID),
        label_names=[f"part {number}" for number in range(7)], teacher_digest="t", manifest_digest="m",
    )  # fmt: skip
    made.labels[:], made.attention[:] = 0, 0
    made.finish()
    opened = [_seconds(lambda: PartStore.open(folder)) for _ in range(3)]
    store = PartStore.open(folder)
    sent = pickle.dumps(store)
    mapped = [_seconds(lambda: pickle.loads(sent)) for _ in range(20)]
    rows = np.random.default_rng(0).integers(0, IMAGENET, 20_000).tolist()
    read = [_seconds(lambda row=row: (np.array(store.labels[row]), np.array(store.attention[row]))) for row in rows]
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "store_bytes_per_image": round(size / IMAGENET, 2),
        "store_open_s": round(statistics.median(opened), 2),  # reads all of it once
        "store_open_in_a_worker_ms": round(1e3 * statistics.median(mapped), 2),
        "row_read_median_us": round(1e6 * statistics.median(read), 2),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
