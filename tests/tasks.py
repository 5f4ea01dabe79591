"""Every task that is trained, the smallest there is of each, with rows to train it on: `TASKS`, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.data.batching import collate
from semmae.data.colour import GLOBAL_CHANCES, PLAIN_CHANCES, draw_changes
from semmae.models.classifier import Classifier
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.options.parts import PartsRecipe
from semmae.options.pretrain import PretrainRecipe
from semmae.options.probe import MaeProbeRecipe
from semmae.options.segment import SegmentRecipe
from semmae.options.teacher import TeacherRecipe
from semmae.train.finetune import FinetuneTask
from semmae.train.parts import PartsTask
from semmae.train.pretrain import PretrainTask
from semmae.train.probe import ProbeTask
from semmae.train.published_parts import PublishedPartsTask
from semmae.train.segment import SegmentTask
from semmae.train.teacher import TeacherTask

SPEC = EncoderSpec(image_size=16, patch_size=4, width=24, depth=2, num_heads=3)
LABELS = ("background", "part 1", "part 2")

Row = dict[str, Any]
Rows = Callable[[int], Row]


def pictures(*views: int) -> Tensor:
    """Noise, uint8 (*views, 3, 16, 16)."""
    return torch.randint(0, 256, (*views, 3, 16, 16), dtype=torch.uint8)


def loader(row: Rows, count: int, batch: int) -> DataLoader[Row]:
    """So many rows in batches of so many."""
    return DataLoader([row(each) for each in range(count)], batch_size=batch, collate_fn=collate)  # type: ignore[arg-type]


def _teacher() -> tuple[pl.LightningModule, Rows]:
    rng = np.random.default_rng(0)

    def row(_: int) -> Row:
        local = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
        changes, few = draw_changes(rng, GLOBAL_CHANCES), draw_changes(rng, [PLAIN_CHANCES] * 3)
        return {"images": pictures(2), "changes": changes, "local": local, "local_changes": few}

    return TeacherTask(Encoder(SPEC), TeacherRecipe(prototypes=12, head_width=16), lr=1e-3), row


def _parts() -> tuple[pl.LightningModule, Rows]:
    widths = {"last": 24, "keys": 20, "values": 20}
    learner = PartLearner(PartsSpec(width=24, key_width=20, patch_size=4, num_parts=3))
    return PartsTask(learner, PartsRecipe()), lambda _: {
        name: torch.randn(16, width).half() for name, width in widths.items()
    }


def _published_parts() -> tuple[pl.LightningModule, Rows]:
    learner = PublishedPartLearner(PublishedPartsSpec(24, patch_size=4, num_parts=3, head_dim=8, decoder_width=32))
    return PublishedPartsTask(Encoder(SPEC), learner, PartsRecipe()), lambda _: {"images": pictures(1)}


def _pretrain() -> tuple[pl.LightningModule, Rows]:
    mae = MaskedAutoencoder(Encoder(SPEC), DecoderSpec(16, 1, 2, 0))
    task = PretrainTask(mae, PretrainRecipe(masking="semantic", mask_ratio=0.5), lr=1e-3, label_names=LABELS)
    return task, lambda _: {"images": pictures(1), "parts": torch.randint(0, len(LABELS), (16,))}


def _probe() -> tuple[pl.LightningModule, Rows]:
    head = LinearHead(HeadSpec(24, ("a", "b", "c"), "mean"))
    targets = torch.arange(1000) % 3
    task = ProbeTask(Encoder(SPEC), head, targets, MaeProbeRecipe(), lr=1.0)
    return task, lambda number: {"images": pictures(1), "row": number}


def _finetune() -> tuple[pl.LightningModule, Rows]:
    task = FinetuneTask(Classifier(Encoder(SPEC), 3), FinetuneRecipe(), lr=1e-3)
    return task, lambda number: {"images": pictures(), "targets": torch.tensor(number % 3)}


def _segment() -> tuple[pl.LightningModule, Rows]:
    segmenter = Segmenter(Encoder(SPEC), SegmenterSpec(("a", "b", "c"), "linear", (), 16, auxiliary=False))
    labels = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).repeat(16, 4)
    task = SegmentTask(segmenter.train(), SegmentRecipe(), lr=1e-3)
    return task, lambda _: {"images": pictures(), "labels": labels}


TASKS: dict[str, Callable[[], tuple[pl.LightningModule, Rows]]] = {
    "teacher": _teacher,
    "parts": _parts,
    "published parts": _published_parts,
    "pretrain": _pretrain,
    "probe": _probe,
    "finetune": _finetune,
    "segment": _segment,
}
