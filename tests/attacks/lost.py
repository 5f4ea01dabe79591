"""Data lost: damaged files, inputs in the way, two runs in one place, a full disk."""

import contextlib
import functools
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import torch
from data import test_damaged
from forked import Forked
from run import test_places

from attacks.desk import TRAIN, Desk, attack, child_of, error_line, patched, refused, works
from semmae.data.decode import decode
from semmae.files import PART

DAMAGED = 1500


@attack("A1", "damaged images of every format, decoded")
def _(desk: Desk) -> int:
    def all_of_them() -> None:
        import random

        for number in range(DAMAGED):
            rng = random.Random(number)
            kinds = test_damaged.WHOLE
            raw = bytearray(rng.choice(kinds[list(kinds)[number % len(kinds)]]))
            test_damaged.DAMAGES[number % len(test_damaged.DAMAGES)](raw, rng)
            with contextlib.suppress(ValueError):
                decode(bytes(raw))

    child = Forked(lambda: all_of_them())
    assert child.ended(100) == 0, child.output
    return DAMAGED


@attack("A1", "a damaged PNG among photos is a row of skipped.csv")
def _(desk: Desk) -> None:
    with desk.copy() as own:
        path = own.root / "photos/cat/0.png"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        path.write_bytes(raw)
        works("knn --encoder run --data photos --out knn --workers 0")
        assert "cat/0.png" in Path("knn/skipped.csv").read_text()


def overwrites(words: str, desk: Desk) -> None:
    with desk.copy() as own:
        shutil.copytree("run", "R")
        for name in ("photos/a.jpg", "parts/parts.json", "masks/a.png", "config.yaml", "export.json"):
            (own.root / "R" / name).parent.mkdir(exist_ok=True)
            (own.root / "R" / name).write_text("data: elsewhere\n")
        (own.root / "photos/img.png").write_text("mine")
        refused(own, words)


for words in test_places.ATTACKS:
    attack("A2", words)(functools.partial(overwrites, words))


@attack("A3", "two processes started together with one --out")
def _(desk: Desk) -> None:
    with desk.copy():
        start = multiprocessing.get_context("fork").Event()

        def slowly() -> None:
            from semmae.data import manifest

            real = manifest._check
            patched(manifest, "_check", lambda *a, **k: (time.sleep(2), real(*a, **k))[1])
            os.environ["SEMMAE_CACHE"] = "cache"
            start.wait(30)

        children = [child_of("knn --encoder run --data photos --out knn --workers 0", slowly) for _ in range(2)]
        start.set()
        codes = sorted(child.ended(60) or 0 for child in children)
        assert codes == [0, 2], [child.output for child in children]


@attack("A4", "files of the user's in a run that goes on")
def _(desk: Desk) -> None:
    with desk.copy():

        def killed() -> None:
            from semmae.reporting import results

            patched(results, "write_json", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))

        words = "knn --encoder run --data photos --out knn --workers 0"
        child = child_of(words, killed)
        assert child.ended(60) == -signal.SIGKILL, child.output
        mine = [Path("knn") / name for name in ("notes.tmp", ".x.tmp", ".encoder-x", "parts.npy.tmp")]
        ours = Path("knn") / f".results.json.1{PART}"
        for path in (*mine, ours):
            path.write_text("")
        works(words)
        assert all(path.exists() for path in mine) and not ours.exists()


def full_disk(words: str, most: int, desk: Desk) -> None:
    """As on a disk that fills up: no file grows beyond so many bytes."""
    with desk.copy():
        child = child_of(words, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        assert child.ended(100) == 1, child.output
        error_line(child.output)
        assert not list(Path().rglob(f"*{PART}"))
        for last in Path().rglob("last.ckpt"):
            torch.load(last, weights_only=True)


for words, most in {
    "export --encoder run --to timm --out new": 20_000,
    "export --encoder run --to hf --out new": 20_000,
    "export --encoder run --to mae --out new": 20_000,
    "export --encoder run --to onnx --out new": 20_000,
    "embed --encoder run --data photos --out x.npz --workers 0": 2_500,
    "embed --encoder run --data photos --out new.parquet --workers 0": 2_500,
    "embed --encoder run --data photos --out x.safetensors --workers 0": 2_500,
    f"pretrain --data photos --masking random --out new {TRAIN}": 300_000,
}.items():
    attack("A5", f"{words}, a disk of {most} bytes")(functools.partial(full_disk, words, most))
