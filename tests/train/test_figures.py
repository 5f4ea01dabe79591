"""What stands in a line of metrics.jsonl beside the loss, of every task."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from tasks import LABELS, SPEC, TASKS, loader

from semmae.data.manifest import open_images
from semmae.evaluation.protocols import finetune
from semmae.models.vit import Encoder
from semmae.options.finetune import FinetuneRecipe
from semmae.options.teacher import TeacherOptions
from semmae.reporting.charts import CURVES, HIDDEN
from semmae.train import meter
from semmae.train.batches import Training
from semmae.train.finetune import FinetuneTask
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit
from semmae.verbs.teacher import knn_evaluation


@pytest.mark.parametrize("name", TASKS)
def test_the_images_of_every_batch_are_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = meter.Meter._report

    def spied(own: meter.Meter, *arguments: Any) -> None:
        counted.append(own._images)
        real(own, *arguments)

    monkeypatch.setattr(meter.Meter, "_report", spied)
    task, row = TASKS[name]()
    fit(task, loader(row, 15, 5), FitOptions(Training(resume=False, precision="float32"), tmp_path, "test", 1, 0.0))
    assert counted == [15]


def test_every_curve_of_the_report_is_logged(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a training, or by what is measured between its epochs."""
    logged: set[str] = set()
    for name, new in TASKS.items():
        task, row = new()
        training = Training(resume=False, precision="float32")
        (tmp_path / name).mkdir()
        fit(task, loader(row, 4, 2), FitOptions(training, tmp_path / name, "test", 1, 0.0))
        logged |= tiny.metrics(tmp_path / name)[-1].keys()
    images = open_images(creatures / "images")
    options = TeacherOptions(data=creatures / "images", out=tmp_path, image_size=16, workers=0)
    found = knn_evaluation(options, images, Encoder(SPEC))
    assert found is not None
    logged |= found.measure().keys()
    ranks = SimpleNamespace(ranks=torch.tensor([0, 1]))
    monkeypatch.setattr(finetune, "predict", lambda *_: ranks)
    protocol = finetune.Finetune(FinetuneRecipe(val_every=1), Training(resume=False), 16, 1.0, 0.1)
    data: Any = SimpleNamespace(val=images, val_targets=torch.tensor([0, 1]), classes=["a", "b"])
    task, _ = TASKS["finetune"]()
    assert isinstance(task, FinetuneTask)
    found = protocol.validation(task, data)
    assert found is not None
    logged |= found.measure().keys()

    drawn = {key for *_, names in CURVES for key in names}
    assert drawn - logged == {HIDDEN}
    assert {f"{HIDDEN}{label}" for label in LABELS} <= logged
