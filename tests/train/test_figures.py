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


@pytest.mark.parametrize("name", TASKS)
def test_every_figure_is_the_mean_of_all_batches_since_the_last_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lines of two steps of two batches, which differ."""
    monkeypatch.setattr(meter, "LOG_EVERY", 2)
    task, row = TASKS[name]()
    real, batches = task.training_step, list[dict[str, float]]()

    def step(*given: Any) -> Any:
        found = real(*given)
        figures = found if isinstance(found, dict) else {"loss": found}
        batches.append({key: float(value.detach()) for key, value in figures.items()})
        return found

    task.training_step = step  # type: ignore[method-assign]
    training = Training(resume=False, precision="float32", accumulate=2)
    fit(task, loader(row, 36, 3), FitOptions(training, tmp_path, "test", 1, 0.0))
    lines = tiny.metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for number, line in enumerate(lines):
        interval = batches[4 * number : 4 * number + 4]
        for key, last in interval[-1].items():
            mean = sum(batch[key] for batch in interval) / 4
            assert line[key] == pytest.approx(mean, rel=1e-6, abs=1e-6), key
            assert key == "train_top1" or mean != pytest.approx(last, rel=1e-5), f"{key} could be the last batch's"


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
