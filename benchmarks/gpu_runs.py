"""Sections of `gpu_check.py` that read images or run the command; each yields what it finds.

Photos are drawn, and packed as `semmae pack` does; links to the shards make them as many as an epoch needs.
"""

import copy
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_steps import GPU, Figures, Sizes, with_nothing
from harness import DEVICE, timed
from loading import draw_photos, random_parts
from torch import Tensor
from torch.nn import functional

from semmae.cli import run
from semmae.cores import usable_cores
from semmae.data.loaders import CropDataset, make_loader, normalise, picture_bytes
from semmae.data.manifest import ImageSet, open_images
from semmae.data.packing import Packing, write_shards
from semmae.data.workers import plan
from semmae.evaluation.knn import knn_accuracy
from semmae.labels.blocks import compute_labels
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.knn import KnnRecipe
from semmae.train.meter import LOG_EVERY

_SHARD = 16 * 10**6  # bytes
_GRID = 28
_ENDING = 120  # seconds in which the command is to end when it is asked to


@cache
def photos(sizes: Sizes, folder: Path) -> ImageSet:
    """JPEG files as large as ImageNet's."""
    place = whole(folder / "photos", lambda beside: draw_photos(beside, sizes.photos, *sizes.photo))
    return open_images(place, check="none")


@cache
def packed(sizes: Sizes, folder: Path) -> ImageSet:
    """The same photos in shards, several times over."""

    def pack(place: Path) -> None:
        place.mkdir()
        packing = Packing(256, 90, _SHARD, seed=0)
        written = write_shards(place, "shards", photos(sizes, folder), None, packing, threads=usable_cores())
        for number in range(len(written), sizes.copies * len(written)):
            os.link(written[number % len(written)].path, place / f"shards-{number:06}.tar")

    return open_images(whole(folder / "packed", pack), check="none")


def whole(place: Path, make: Callable[[Path], object]) -> Path:
    """A folder, which another process may have made before, or begun with when its time was over."""
    if not place.exists():
        beside = place.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        make(beside)
        beside.rename(place)
    return place


def command(sizes: Sizes, folder: Path) -> Figures:
    """`semmae pretrain` from packed shards with part labels: its rate and wait, SIGTERM, --resume, SIGTERM."""
    images, out, batch = packed(sizes, folder), folder / "run", sizes.batches[0]
    store = random_parts(images, folder / "parts")
    given = {
        "data": images.source.root, "parts": store.path, "model": sizes.model, "image-size": sizes.size,
        "batch-size": batch, "epochs": 1000, "workers": most_workers(sizes), "check": "none", "logger": "none",
        "compile": "on" if sizes.compiled[0] else "off",
    }  # fmt: skip
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    afresh = GPU or not sizes.tiny  # a process that has begun with a GPU cannot be forked to use it
    first = interrupted(words, out, sizes.stops[0], afresh)
    counted = [line for line in first["lines"] if line["step"] > sizes.warm]
    yield {
        "batch": batch,
        "workers": most_workers(sizes),
        "images_per_s": round(statistics.median(line["images_per_s"] for line in counted), 1),
        "data_wait": round(statistics.median(line["data_wait"] for line in counted), 4),
        **{name: first[name] for name in ("code", "begun_s", "ended_s")},
    }
    again = interrupted(["--resume"], out, sizes.stops[1], afresh)
    before = next(line["loss"] for line in reversed(again["lines"]) if line["step"] <= sizes.stops[0])
    yield {
        "resumed": True,
        "misplaced": misplaced(first["lines"], again["lines"]),
        "loss_before": before,
        "loss_after": again["lines"][-1]["loss"],
        **{name: again[name] for name in ("code", "begun_s", "ended_s")},
    }


def misplaced(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """Reports that resuming has lost or made anew, and those that do not follow on the one before them.

    That is two intervals at most, for one is cut off by SIGTERM.
    """
    steps = [line["step"] for line in after]
    follow = [0 < step - last <= 2 * LOG_EVERY for last, step in pairwise([0, *steps])]
    return sum(line not in after for line in before) + follow.count(False)


def most_workers(sizes: Sizes) -> int:
    """As many as the cores allow, and shared memory for the command's batches, of those that are asked for."""
    asked = min(sizes.workers[-1], max(1, usable_cores() - 1))
    return plan(asked, sizes.batches[0] * picture_bytes(sizes.size))[0]


def interrupted(words: list[str], out: Path, step: int, afresh: bool) -> dict[str, Any]:
    """Run pretrain until it has reported this step, end it by SIGTERM; its metrics, code and seconds."""
    began, path = time.monotonic(), out / "metrics.jsonl"
    said, before, begun = out.with_suffix(".txt"), len(metrics(path)), 0.0
    given = (["pretrain", "--out", str(out), *words], said, afresh)
    process = multiprocessing.get_context("fork").Process(target=_command, args=given)
    process.start()
    while not any(line["step"] >= step for line in metrics(path)) and process.is_alive():
        if not begun and len(metrics(path)) > before:
            begun = time.monotonic() - began
        time.sleep(0.1)
    asked = time.monotonic()
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGTERM)
    while process.is_alive() and time.monotonic() - asked < _ENDING:
        time.sleep(0.1)
    ended = time.monotonic() - asked
    if process.exitcode != 128 + signal.SIGTERM:
        process.kill()  # where it has not ended
        raise RuntimeError(f"asked to end, the command's code is {process.exitcode}: {said.read_text()[-2000:]}")
    seconds = {"begun_s": round(begun, 1), "ended_s": round(ended, 1)}
    return {"lines": metrics(path), "code": process.exitcode, **seconds}


def _command(words: list[str], said: Path, afresh: bool) -> None:
    """The command in a process of its own: a new Python, or this one, which saves seconds of imports."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if afresh:
        os.execv(sys.executable, [sys.executable, "-m", "semmae", *words])
    sys.stdout = sys.stderr = os.fdopen(file, "w", 1)
    sys.exit(run(words))


def metrics(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def loading(sizes: Sizes, folder: Path) -> Figures:
    """Images a second by the number of processes, from packed shards; of one and of all from files too."""
    numbers = sorted({min(number, most_workers(sizes)) for number in sizes.workers})
    few = sorted({numbers[0], numbers[-1]})
    for name, images, each in (("packed", packed(sizes, folder), numbers), ("files", photos(sizes, folder), few)):
        for workers in each:
            loading, images_per_s = loaded(sizes, images, workers)
            yield {"from": name, "workers": loading, "images_per_s": images_per_s}


def loaded(sizes: Sizes, images: ImageSet, workers: int) -> tuple[int, float]:
    """Processes that loaded, and images a second once each has loaded its first batch.

    By rounds of a batch of each: they all began at the same time, and so their batches come in together.
    """
    batch = 4 if sizes.tiny else 256
    rows = np.random.default_rng(0).permutation(len(images)).tolist() * (1 if sizes.tiny else 100)
    loader = make_loader(CropDataset(images, sizes.size), batch, sampler=rows, workers=workers, drop_last=True)
    batches, of_a_round, count = iter(loader), max(1, loader.num_workers), 0
    elapsed, began = 0.0, 0.0
    while elapsed < sizes.seconds and sum(1 for _ in islice(batches, of_a_round)) == of_a_round:
        if began:
            count, elapsed = count + batch * of_a_round, time.perf_counter() - began
        else:
            began = time.perf_counter()
    return loader.num_workers, round(count / max(elapsed, 1e-9), 1)


def labelling(sizes: Sizes, _: Path) -> Figures:
    """Part labels by this device and by the CPU: which share is the same, and images a second."""
    with_nothing()
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec.named("vit_mini" if sizes.tiny else "vit_small", sizes.size, 16)).eval()
    coarse = torch.randint(256, (sizes.labelled, 3, 7, 7)).float()
    images = functional.interpolate(coarse, sizes.size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    learner = PartLearner(PartsSpec.of(encoder)).eval()
    with torch.inference_mode():
        views, _, _ = encoder.token_views(normalise(images[:64], encoder.spec.mean, encoder.spec.std))
        learner.fit_reductions(views)
        learner.start_from_clusters(learner.reduce(views), 0)
    some = images[:32]
    expected = labels_of(copy.deepcopy(encoder), copy.deepcopy(learner), some, "float32", torch.device("cpu"))
    for precision in ("float32", "bf16"):
        same = (labels_of(encoder, learner, some, precision, DEVICE) == expected).float().mean()
        labels_of(encoder, learner, images, precision, DEVICE)
        seconds = timed(lambda precision=precision: labels_of(encoder, learner, images, precision, DEVICE))
        yield {
            "precision": precision,
            "same": round(float(same), 4),
            "images_per_s": round(len(images) / seconds, 1),
        }


def labels_of(encoder: Encoder, learner: PartLearner, images: Tensor, precision: Any, device: torch.device) -> Tensor:
    """Labels (N, grid, grid) of images uint8 (N, 3, S, S)."""
    batches = zip(torch.arange(len(images)).split(256), images.split(256), strict=True)
    found = compute_labels(
        batches, encoder, learner, grid=_GRID, precision=precision, threads=usable_cores(), attention=True,
        device=device,
    )  # fmt: skip
    return torch.cat([made.labels for made, _ in found])


def neighbours(sizes: Sizes, _: Path) -> Figures:
    """k-NN among as many features as ImageNet has images, of random numbers around the means of classes."""
    with_nothing()
    votes, channels, queries = sizes.features
    classes = min(1000, votes // 4)
    means = torch.randn(classes, channels, device=DEVICE)
    labels, truths = (torch.arange(count, device=DEVICE) % classes for count in (votes, queries))
    train, test = (means[each] + 2 * torch.randn(len(each), channels, device=DEVICE) for each in (labels, truths))
    found: dict[str, float] = {}

    def search() -> None:
        found.update(knn_accuracy(train, labels, test, truths, num_classes=classes, k=KnnRecipe.k))

    seconds = timed(search)
    yield {"votes": votes, "queries": queries, "queries_per_s": round(queries / seconds, 1), **found}
