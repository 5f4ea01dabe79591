"""Runs of a comparison that are there already: known by what they were made of, wherever it lies by now."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from refusals import refused

import semmae
import semmae.verbs.compare
from semmae.data.creatures import draw_creatures
from semmae.data.manifest import open_images
from semmae.errors import UserError
from semmae.labels.kinds import grid_parts

FEW: dict[str, Any] = {
    "model": "vit_mini", "image_size": 32, "patch_size": 8, "epochs": 1, "batch_size": 8, "workers": 0,
    "precision": "float32", "logger": "none", "measure": "knn", "seeds": 1,
}  # fmt: skip
ROWS = "- {masking: random}\n- {name: x, masking: semantic, parts: grid}\n"


class Made:
    """A finished comparison of a test's own in `root`, of the images in `data`."""

    def __init__(self, data: Path, root: Path) -> None:
        self.data, self.root, self.out, self.grid = data, root, root / "out", root / "rows.yaml"

    def compare(self, rows: str = ROWS, **given: Any) -> None:
        if not self.grid.exists() or self.grid.read_text() != rows:
            self.grid.write_text(rows)
        semmae.compare(data=self.data / "images", out=self.out, grid=self.grid, **{**FEW, **given})

    @property
    def runs(self) -> list[dict[str, Any]]:
        return list(tiny.results(self.out)["runs"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    draw_creatures(folder, count=16, size=40)
    Made(folder, folder).compare()
    return folder


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Made:
    shutil.copytree(whole / "out", tmp_path / "out")
    return Made(whole, tmp_path)


def unfinish(run: Path) -> None:
    """As a kill leaves it between training and the last measure."""
    (run / "comparison.json").unlink()
    (run / ".unfinished").touch()
    (run.parents[2] / ".unfinished").touch()
    (run.parents[2] / "results.json").unlink()


def test_rows_of_other_part_labels_are_refused(made: Made) -> None:
    """Of another kind, finished or not; of other labels in the same folder."""
    images, labels = open_images(made.data / "images", workers=0), made.root / "labels"
    own = f"- {{masking: random}}\n- {{name: own, masking: semantic, parts: {labels}}}\n"
    grid_parts(labels, images, labels=4, grid=8)
    made.compare(own, resume=True)
    before = tiny.listing(made.out)
    shutil.rmtree(labels)
    grid_parts(labels, images, labels=4, grid=9)
    with refused("seed-0", "parts"):
        made.compare(own, seeds=2, resume=True)
    true = ROWS.replace("grid", "annotations")
    with refused("row x", "--parts", "annotations"):
        made.compare(true, masks=made.data / "masks", seeds=2, resume=True)
    assert tiny.listing(made.out) == before
    unfinish(made.out / "runs/x/seed-0")
    with refused("row x", "--parts", "annotations"):
        made.compare(true, masks=made.data / "masks", resume=True)


def test_true_parts_of_other_annotations_are_refused(made: Made) -> None:
    rows = "- {masking: random}\n- {name: truth, masking: semantic, parts: annotations}\n"
    made.compare(rows, masks=made.data / "masks", resume=True)
    moved = Path(shutil.copytree(made.data / "masks", made.root / "moved"))
    made.compare(rows, masks=moved, resume=True)
    path = next(moved.rglob("*.png"))
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    with refused("--masks", moved, "labels/annotations"):
        made.compare(rows, masks=moved, resume=True, seeds=2)


def test_a_moved_comparison_goes_on(made: Made) -> None:
    unfinish(made.out / "runs/x/seed-0")
    before = json.loads((made.out / "runs/random/seed-0/comparison.json").read_text())
    made.out = made.out.rename(made.root / "elsewhere")
    made.compare(resume=True)
    assert [run["name"] for run in made.runs] == ["random", "x"] and made.runs[0] == before
    assert str(made.out / "labels" / "grid") in (made.out / "runs/x/seed-0/config.yaml").read_text()


def test_a_run_that_is_gone_is_made_again(made: Made) -> None:
    made.compare(resume=True)
    runs = made.runs
    shutil.rmtree(made.out / "runs/x/seed-0")
    made.compare(resume=True)
    assert (made.out / "runs/x/seed-0/comparison.json").is_file()
    assert [run["knn_top1"] for run in made.runs] == [run["knn_top1"] for run in runs]


def test_rows_are_known_by_what_the_file_says_whenever_it_was_written(made: Made) -> None:
    """Copied from elsewhere it may be older than the comparison, or written while that was made."""
    made.compare(resume=True)
    config, end = made.out / "config.yaml", made.out / "results.json"
    for name, time in (("block", 1.0), ("colour", (config.stat().st_mtime + end.stat().st_mtime) / 2)):
        made.grid.write_text(f"{ROWS}- {{masking: {name}}}\n")
        os.utime(made.grid, (time, time))
        made.compare(made.grid.read_text(), resume=True)
        assert [run["name"] for run in made.runs] == ["random", "x", name]


def test_a_run_of_an_earlier_version_has_the_defaults_of_what_it_lacks(made: Made) -> None:
    path = made.out / "runs/random/seed-0/config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("hints:")))
    made.compare(resume=True, seeds=2)
    assert len(made.runs) == 4


def test_a_run_in_another_rows_folder_is_refused(made: Made) -> None:
    (made.out / "runs/x").rename(made.out / "runs/z")
    with refused(made.out / "runs/z/seed-0/comparison.json", "row x", "seed 0"):
        made.compare(ROWS.replace("name: x", "name: z"), resume=True)


def test_measures_add_up_and_a_recipe_may_come_with_its_measure(made: Made) -> None:
    recipe = made.root / "few.yaml"
    recipe.write_text("{epochs: 1, batch_size: 8, augment: none, val_every: 0}\n")
    knn = made.runs[0]
    made.compare(resume=True, measure="finetune", finetune_recipe=recipe)
    both = made.runs[0]
    assert both["measured"] == ["knn", "finetune"] and both["knn_top1"] == knn["knn_top1"]
    assert both["minutes"]["knn"] == knn["minutes"]["knn"] and "finetune_top1" in both
    recipe.write_text("{epochs: 2, batch_size: 8, augment: none, val_every: 0}\n")
    with refused("figures.json", "finetune_recipe"):
        made.compare(resume=True, measure="finetune", finetune_recipe=recipe)


def test_the_picture_is_of_the_rows_in_the_table(made: Made) -> None:
    assert (made.out / "comparison.png").is_file()
    made.compare("- {masking: block}\n", resume=True)
    assert [run["name"] for run in made.runs] == ["block"] and not (made.out / "comparison.png").exists()


def test_a_fault_in_a_run_names_its_row(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise UserError("loss is nan at step 1; use a lower --blr")

    monkeypatch.setattr(semmae.verbs.compare, "train_autoencoder", failing)
    with refused("row x", "seed 1", "nan", "--blr"):
        made.compare("- {name: x, masking: semantic, parts: grid}\n", resume=True, seeds=2)


def test_the_command_of_a_run_has_its_image_size(whole: Path, tmp_path: Path) -> None:
    found = semmae.compare(
        data=whole / "images", out=tmp_path / "out", maskings="random", **{**FEW, "image_size": (32, 48)}
    )
    assert found.runs is not None and "--image-size 32 48" in found.runs[0]["command"]


def test_what_a_recipe_cannot_say_is_named(tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{epochs: 1, batch_size: 8, augment: none, seed: 3, precision: bf16, logger: csv}\n")
    given = {**FEW, "maskings": "random", "out": tmp_path / "out", "data": whole / "images"}
    with refused("--finetune-recipe", "--measure finetune"):
        semmae.compare(**given, finetune_recipe=recipe)
    with refused("--seed"):  # before anything is trained
        semmae.compare(**{**given, "measure": "finetune", "seed": 2**32 - 1, "seeds": 2}, finetune_recipe=recipe)
    assert "precision, seed" in caplog.text and "logger" not in caplog.text


def test_a_probe_that_cannot_be_made_is_no_measure(tmp_path: Path) -> None:
    draw_creatures(tmp_path, count=16, size=40)
    for kind in sorted((tmp_path / "images").iterdir()):
        for number, path in enumerate(sorted(kind.iterdir())):
            split = tmp_path / "data" / ("train", "val")[number % 2] / kind.name
            split.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, split)
    with refused("--measure probe"):
        semmae.compare(data=tmp_path / "data", out=tmp_path / "out", maskings="random", **{**FEW, "measure": "probe"})
    assert not (tmp_path / "out").exists()
