"""Section of `gpu_check.py`: how often steps wait for the device, by what torch says of it."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from contestants import PARTS
from gpu_steps import GPU, Figures, Sizes, with_nothing

from semmae.data.colour import GLOBAL_CHANCES, PLAIN_CHANCES, draw_changes
from semmae.data.loaders import make_loader
from semmae.models.classifier import Classifier
from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.options.pretrain import PretrainRecipe
from semmae.options.teacher import TeacherRecipe
from semmae.train.batches import Training
from semmae.train.compiling import compiled
from semmae.train.finetune import FinetuneTask
from semmae.train.pretrain import PretrainTask
from semmae.train.stage import FitOptions
from semmae.train.teacher import TeacherTask
from semmae.train.trainer import fit

_WATCHED_STEPS, _WATCHED_BATCH = 8, 8  # fewer than between two reports; they are waited for
# As torch says it. Where it is asked to, it says first, once, that it does not find all "synchronizing operations".
_SAID = "called a synchronizing"


class Watch(pl.Callback):
    """Between two reports torch says, or refuses, whenever the device is waited for."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        if number == 1 and GPU:
            warnings.simplefilter("always")  # Lightning's own places too, of which a training shows no warnings
            torch.cuda.set_sync_debug_mode(self.mode)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if number == _WATCHED_STEPS - 2 and GPU:
            torch.cuda.set_sync_debug_mode("default")


def waits(sizes: Sizes, folder: Path) -> Figures:
    """How often six steps wait for the device: of pretrain not once, compiled or not; of the others counted."""
    names = ["pretrain", "pretrain, most attended", "teacher", "finetune"]
    if sizes.compiled[0]:
        names.insert(1, "pretrain, compiled")
    for number, name in enumerate(names):
        counted, places = watched(name, sizes, folder / f"watched{number}")
        yield {"task": name, "waits": counted, "places": places}
        with_nothing()


def watched(name: str, sizes: Sizes, out: Path) -> tuple[int | None, list[str]]:
    """How often, None without a GPU, and where; of pretrain it is counted only where the first time is refused."""
    refused = ""
    if name.startswith("pretrain"):
        try:
            found = said_in(name, sizes, out, "error")
        except RuntimeError as error:
            if _SAID not in str(error):
                raise
            refused = str(error)
        else:
            return len(found) if GPU else None, found
    found = said_in(name, sizes, out, "warn")
    if refused:
        found = found or [refused]
    return len(found) if GPU else None, sorted(set(found))


def said_in(name: str, sizes: Sizes, out: Path, mode: str) -> list[str]:
    """File and line of each time that the device was waited for; with "error" RuntimeError at the first."""
    task, items = watched_task(name, sizes)
    out.mkdir()
    training = Training(resume=False, logger="none", callbacks=(Watch(mode),))
    how = FitOptions(training, out, "check", epochs=1, clip=3.0 if name == "teacher" else 0.0, clip_each=True)
    loader = make_loader(items, _WATCHED_BATCH)  # type: ignore[arg-type]  # a list is a data set too
    with warnings.catch_warnings(record=True) as said, nothing_left(out):
        warnings.simplefilter("always")
        with compiled(task, name.endswith("compiled")):
            fit(task, loader, how)
    return [f"{Path(each.filename).name}:{each.lineno}" for each in said if _SAID in str(each.message)]


@contextmanager
def nothing_left(out: Path) -> Iterator[None]:
    """In the end no file is left, and torch allows waiting again: moving a network to the GPU already waits."""
    try:
        yield
    finally:
        shutil.rmtree(out, ignore_errors=True)
        if GPU:
            torch.cuda.set_sync_debug_mode("default")


def watched_task(name: str, sizes: Sizes) -> tuple[pl.LightningModule, list[dict[str, Any]]]:
    """An untrained one, and what it is trained with."""
    encoder = Encoder(EncoderSpec.named(sizes.watched, sizes.size, 16))
    count, patches = _WATCHED_STEPS * _WATCHED_BATCH, (sizes.size // 16) ** 2
    views = 2 if name == "teacher" else 1
    items: list[dict[str, Any]] = [
        {"images": torch.randint(256, (views, 3, sizes.size, sizes.size), dtype=torch.uint8)} for _ in range(count)
    ]
    if name == "teacher":
        return teacher_task(encoder, items, sizes), items
    if name == "finetune":
        for item in items:
            item |= {"images": item["images"][0], "targets": torch.randint(10, ()).item()}
        return FinetuneTask(Classifier(encoder, 10), FinetuneRecipe(), lr=1e-4), items
    for item in items:
        item |= {"parts": torch.randint(PARTS, (patches,)), "attention": torch.rand(patches)}
    recipe = PretrainRecipe(token_subset=patches // 2 if name != "pretrain" else None, mask_ratio=0.5)
    mae = MaskedAutoencoder(encoder, DECODERS[sizes.watched])
    return PretrainTask(mae, recipe, lr=1e-4, label_names=[str(part) for part in range(PARTS)]), items


def teacher_task(encoder: Encoder, items: list[dict[str, Any]], sizes: Sizes) -> TeacherTask:
    """With local crops and colours in the items."""
    rng = np.random.default_rng(0)
    for item in items:
        item["changes"] = draw_changes(rng, GLOBAL_CHANCES)
        item["local"] = torch.randint(256, (4, 3, sizes.size // 2, sizes.size // 2), dtype=torch.uint8)
        item["local_changes"] = draw_changes(rng, [PLAIN_CHANCES] * 4)
    return TeacherTask(encoder, TeacherRecipe(prototypes=64, head_width=64), lr=1e-4)
