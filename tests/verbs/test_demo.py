"""`semmae demo`: its table, on drawn creatures and on a folder of one's own."""

import json
import re
import shutil
from pathlib import Path

import pytest

from semmae.cli import run
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.reporting.page import QUALITY_ROWS

EPOCHS = "--epochs 1 --teacher-epochs 1"
TINY = f"--image-size 32 {EPOCHS} --batch-size 8 --workers 0 --images 16".split()  # two of each class


def test_drawn_creatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), *TINY]) == 0
    output = capsys.readouterr().out
    measured = json.loads((out / "run" / "parts" / "quality.json").read_text())
    scores = json.loads((out / "run" / "results.json").read_text())
    for key, name in QUALITY_ROWS.items():
        (line,) = [line for line in output.splitlines() if line.startswith(f"{name}  ")]
        assert [f"{measured[key][score]:.1f}" for score in ("nmi", "ari")] == re.findall(r"[\d.]+", line)[:2]
    assert scores.keys() == {"protocol", "this encoder", "untrained", "teacher", "raw_pixels"}
    rows = [line.split("|") for line in (out / "run" / "results.md").read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0][2:-1]] == ["this encoder", "untrained", "teacher", "raw pixels"]
    for (_, words, *cells, _), prefix in zip((rows[2], rows[4]), ("knn_", "probe_"), strict=True):
        assert "top-1" in words
        for cell, name in zip(cells, ("this encoder", "untrained", "teacher", "raw_pixels"), strict=True):
            ends = [scores[name][f"{prefix}{end}"] for end in ("top1", "top1_low", "top1_high")]
            assert [float(value) for value in re.findall(r"[\d.]+", cell)] == pytest.approx(ends, abs=0.051)
            assert ends[1] <= ends[0] <= ends[2]
    assert "|".join(rows[2]) in output
    # As every verb that measures: whose figures they are.
    assert scores["protocol"]["encoder_digest"] == digest(load_encoder(out / "run"))
    assert len(list((out / "creatures" / "images").rglob("*.png"))) == 16
    assert str(out / "run" / "encoder") in output
    assert str(out / "run" / "report.html") in output
    assert (out / "run" / "report.html").is_file()


def test_photos_and_a_given_teacher(
    creatures: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which stands beside the encoder, shown the images as it was when parts were learned from it."""
    given = ["--data", str(creatures / "images"), "--teacher", str(encoder), "--teacher-image-size", "48"]
    assert run(["demo", *given, "--out", str(tmp_path / "demo"), *TINY]) == 0
    assert not (tmp_path / "demo" / "teacher").exists()
    scores = json.loads((tmp_path / "demo" / "run" / "results.json").read_text())
    assert scores.keys() == {"protocol", "this encoder", "untrained", "teacher", "raw_pixels"}
    assert scores["protocol"]["teacher"]["image_size"] == 48 and scores["protocol"]["knn"]["image_size"] == 32
    knn = ["knn", "--encoder", str(encoder), "--data", str(creatures / "images"), "--limit", "16", "--workers", "0"]
    assert run([*knn, "--image-size", "48", "--out", str(tmp_path / "knn")]) == 0
    alone = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert scores["teacher"]["knn_top1"] == pytest.approx(alone["top1"])
    assert "| teacher " in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 7))])
def test_a_few_photos_of_several_classes_are_not_measured(
    count: int, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which every head would have to learn from none, or from a single one."""
    for number, picture in enumerate(sorted((creatures / "images").rglob("*.png"))[:count]):
        (tmp_path / f"photos/{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / f"photos/{number % 3}/{number}.png")
    assert run(["demo", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "demo"), *TINY]) == 0
    assert "k-NN" not in capsys.readouterr().out
    assert (tmp_path / "demo/run/encoder").is_dir()


@pytest.mark.parametrize("folder", ["photos", "photos/cats"])
def test_a_folder_of_ones_own_without_classes(
    folder: str, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None at all, or a single one, which every neighbour would give."""
    (tmp_path / folder).mkdir(parents=True)
    for number, picture in enumerate(sorted((creatures / "images").rglob("*.png"))[:10]):
        shutil.copy(picture, tmp_path / folder / f"{number}.png")
    assert run(["demo", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "demo"), *TINY]) == 0
    output = capsys.readouterr().out
    assert "NMI" not in output  # nobody knows the true parts
    assert "k-NN" not in output  # nor the classes
    assert not (tmp_path / "demo" / "run" / "results.json").exists()
    assert str(tmp_path / "demo" / "run" / "encoder") in output
    assert not (tmp_path / "demo" / "creatures").exists()
