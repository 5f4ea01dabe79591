"""`semmae compare` asked again: with more, or with something else, which is refused before anything is trained."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from refusals import refused

import semmae
import semmae.verbs.compare
from semmae.cli import run
from semmae.data.creatures import draw_creatures
from semmae.evaluation.features import open_encoder
from semmae.formats.folders import digest
from semmae.reporting import next_steps

FEW: dict[str, Any] = {
    "model": "vit_mini", "image_size": 32, "patch_size": 8, "epochs": 1, "batch_size": 8, "workers": 0,
    "precision": "float32", "logger": "none", "measure": "knn", "seeds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_creatures(folder, count=16, size=40)
    shutil.copytree(folder / "images", folder / "others")
    rows(folder / "pair.yaml", "- {masking: random}\n- {masking: block}\n")
    return folder


def compare(drawn: Path, out: Path, **given: Any) -> Path:
    own = {} if "maskings" in given else {"grid": drawn / "pair.yaml"}
    return semmae.compare(data=drawn / "images", out=out, **{**FEW, **own, **given}).path


@pytest.fixture(scope="module")
def whole(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, a seed, by k-NN, measured on images of their own."""
    return compare(drawn, tmp_path_factory.mktemp("whole") / "out", eval_data=drawn / "others")


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def rows(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_measures_of_other_images_are_added(drawn: Path, tmp_path: Path) -> None:
    """Of classes first and of pixels then: what was measured stays, and alone it would be the same."""
    few = rows(tmp_path / "few.yaml", "{head: linear, steps: 2, val_steps: 2, batch_size: 8}\n")
    given: dict[str, Any] = {"maskings": "random", "masks": drawn / "masks"}
    compare(drawn, tmp_path / "out", **given)
    before = tiny.results(tmp_path / "out")["runs"][0]
    compare(drawn, tmp_path / "out", resume=True, **given | {"measure": "knn,segment", "segment_recipe": few})
    after = tiny.results(tmp_path / "out")["runs"][0]
    assert after["knn_top1"] == before["knn_top1"] and after["measured"] == ["knn", "segment"]
    compare(drawn, tmp_path / "alone", **given | {"measure": "segment", "segment_recipe": few})
    assert after["segment_miou"] == tiny.results(tmp_path / "alone")["runs"][0]["segment_miou"]


def test_more_seeds_are_not_measured_by_other_images(drawn: Path, out: Path) -> None:
    before, gone = tiny.listing(out), next((drawn / "others").rglob("*.png"))
    content = gone.read_bytes()
    gone.unlink()
    try:
        with refused("figures.json", "images"):
            compare(drawn, out, resume=True, seeds=2, eval_data=drawn / "others")
    finally:
        gone.write_bytes(content)
    assert tiny.listing(out) == before


@pytest.mark.parametrize("part", [None, "1/2"])
def test_a_row_of_other_options_is_refused_by_whatever_share(
    part: str | None, drawn: Path, out: Path, tmp_path: Path
) -> None:
    before = tiny.listing(out)
    grid = rows(tmp_path / "rows.yaml", "- {masking: random}\n- {name: block, masking: random, mask_ratio: 0.5}\n")
    with refused("row block", "--masking random", "block"):
        compare(drawn, out, resume=True, seeds=2, part=part, grid=grid, eval_data=drawn / "others")
    assert tiny.listing(out) == before


def test_a_row_that_another_share_made_otherwise_meanwhile_is_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is not written of rows that are others than asked for."""
    real, out = semmae.verbs.compare.gather, tmp_path / "out"
    grid = rows(tmp_path / "rows.yaml", "- {masking: random}\n- {name: block, masking: random, mask_ratio: 0.5}\n")

    def gather(*given: Any) -> None:
        monkeypatch.setattr(semmae.verbs.compare, "gather", real)
        compare(drawn, out, part="2/2", grid=grid)
        real(*given)

    monkeypatch.setattr(semmae.verbs.compare, "gather", gather)
    with refused("row block", "--masking block", "random"):
        compare(drawn, out, part="1/2")


def test_what_a_row_begins_with_is_looked_at_before_the_first_is_trained(drawn: Path, tmp_path: Path) -> None:
    grid = rows(tmp_path / "rows.yaml", "- {masking: random}\n- {name: other, masking: random, init: nothing.pth}\n")
    with refused("row other", "nothing.pth"):
        compare(drawn, tmp_path / "out", grid=grid)
    assert not (tmp_path / "out").exists()


def test_the_last_seed_is_one(drawn: Path, tmp_path: Path) -> None:
    with refused("--seed 4294967295", "4294967296"):
        compare(drawn, tmp_path / "out", seed=2**32 - 1, seeds=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["runs/notes.txt", "runs/random/notes.txt", "runs/random/seed-0/notes.txt"])
def test_overwrite_deletes_nothing_of_the_users_at_any_depth(name: str, drawn: Path, out: Path) -> None:
    (out / name).write_text("kept")
    before = tiny.listing(out)
    with refused("--overwrite", name):
        compare(drawn, out, overwrite=True, eval_data=drawn / "others")
    assert tiny.listing(out) == before and json.loads((out / "results.json").read_text())["runs"]


def test_more_seeds_are_not_measured_by_another_recipe(drawn: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", "{epochs: %d, batch_size: 8, augment: none, val_every: 0}\n"
    given: dict[str, Any] = {"maskings": "random", "measure": "finetune", "finetune_recipe": tmp_path / "few.yaml"}
    rows(tmp_path / "few.yaml", text % 1)
    compare(drawn, out, **given)
    rows(tmp_path / "few.yaml", text % 2)
    with refused("figures.json", "finetune_recipe"):
        compare(drawn, out, resume=True, seeds=2, **given)
    rows(tmp_path / "few.yaml", "# the same\n" + text % 1)
    compare(drawn, out, resume=True, seeds=2, **given)
    assert len(tiny.results(out)["runs"]) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("measured", None), ("measured", "knn"), ("minutes", {}), ("minutes", {"total": "x"}), ("knn_top1", "x"),
     ("seed", "0"), ("name", 1)],
)  # fmt: skip
def test_an_edited_line_of_a_run_is_refused(name: str, value: object, drawn: Path, out: Path) -> None:
    path = out / "runs/block/seed-0/comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with refused(path):
        compare(drawn, out, resume=True, seeds=2, eval_data=drawn / "others")


def test_the_commands_that_it_names_lead_on(drawn: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first adds seeds, as long as there are few; the other takes the encoder of the highest row."""
    monkeypatch.setattr(next_steps, "_SEEDS", 2)
    more, _ = (shlex.split(step.command)[1:] for step in next_steps.next_steps(out))
    assert run(more) == 0 and len(tiny.results(out)["runs"]) == 4
    found = tiny.results(out)
    highest = max(found["rows"], key=lambda row: row["knn_top1"])["name"]
    assert found["protocol"]["measured_images"] == {"of_classes": 8}  # held out of 16
    (fine,) = (shlex.split(step.command)[1:] for step in next_steps.next_steps(out))
    given = dict(zip(fine[1::2], fine[2::2], strict=True))
    assert fine[0] == "finetune" and given["--encoder"] == str(out / "runs" / highest / "seed-0")
    assert given["--data"] == str(drawn / "images") and digest(open_encoder(given["--encoder"]))


def test_a_run_without_its_options_is_refused(drawn: Path, out: Path) -> None:
    path = out / "runs/block/seed-0/config.yaml"
    path.unlink()
    with refused("row block", path):
        compare(drawn, out, resume=True, seeds=2, eval_data=drawn / "others")


def test_what_rows_set_themselves_is_not_said_to_be_alike(drawn: Path, whole: Path, tmp_path: Path) -> None:
    assert "themselves" not in tiny.results(whole)["protocol"]["method"]
    grid = rows(tmp_path / "rows.yaml", "- {masking: random}\n- {masking: random, epochs: 2, crop_scale: 0.5}\n")
    found = tiny.results(compare(drawn, tmp_path / "out", grid=grid))["protocol"]["method"]
    assert "crop_scale, epochs" in found
