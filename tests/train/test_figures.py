"""What stands in a line of metrics.jsonl beside the loss, of every task."""

from pathlib import Path
from typing import Any

import pytest
from tasks import TASKS, loader

from semmae.train import meter
from semmae.train.batches import Training
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit


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
