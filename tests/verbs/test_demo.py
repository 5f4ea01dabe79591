"""`semmae demo`: its table, on drawn creatures and on a folder of one's own."""

import json
import re
import shutil
from pathlib import Path

import pytest

from semmae.cli import run
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.reporting.ending import _DEMO_PARTS

EPOCHS = "--epochs 1 --teacher-epochs 1 --parts-epochs 1"
TINY = f"--image-size 32 {EPOCHS} --batch-size 8 --workers 0 --images 16".split()


def test_drawn_creatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), *TINY]) == 0
    told = capsys.readouterr().out
    rows = {
        name: [float(value) for value in values.split()]
        for name, values in re.findall(r"^([^\d\n]+?) {2,}([-\d. ]+)$", told, re.M)
    }
    measured = json.loads((out / "run" / "parts" / "quality.json").read_text())
    scores = json.loads((out / "run" / "results.json").read_text())
    for key, name in _DEMO_PARTS.items():
        expected = [measured[key]["nmi"], measured[key]["ari"]]
        assert rows[name] == pytest.approx(expected, abs=0.051)
    intervals = {
        name: [float(value) for value in re.findall(r"[\d.]+", values)]
        for name, values in re.findall(r"^([^\d\n]+?) {2,}([\d.]+ \([\d.]+ to .*)$", told, re.M)
    }
    named = {"this encoder": scores, "untrained encoder": scores["untrained"], "raw pixels": scores["raw_pixels"]}
    ends = ("top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high")
    assert intervals.keys() == named.keys()
    for name, figures in named.items():
        assert intervals[name] == pytest.approx([figures[end] for end in ends], abs=0.051)
    # As every verb that measures: whose figures, how sure, and a table for people.
    assert scores["protocol"]["encoder_digest"] == digest(load_encoder(out / "run"))
    for figures in (scores, scores["untrained"], scores["raw_pixels"]):
        assert figures["top1_low"] <= figures["top1"] <= figures["top1_high"]
    assert "| this encoder |" in (out / "run" / "results.md").read_text()
    assert len(list((out / "creatures" / "images").rglob("*.png"))) == 16
    assert str(out / "run" / "encoder") in told
    assert str(out / "run" / "report.html") in told
    assert (out / "run" / "report.html").is_file()


@pytest.mark.parametrize("folder", ["photos", "photos/cats"])
def test_a_folder_of_ones_own_without_classes(
    folder: str, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None at all, or a single one, which every neighbour would tell."""
    (tmp_path / folder).mkdir(parents=True)
    for number, picture in enumerate(sorted((creatures / "images").rglob("*.png"))[:10]):
        shutil.copy(picture, tmp_path / folder / f"{number}.png")
    assert run(["demo", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "demo"), *TINY]) == 0
    told = capsys.readouterr().out
    assert "NMI" not in told  # nobody knows the true parts
    assert "k-NN" not in told  # nor the classes
    assert not (tmp_path / "demo" / "run" / "results.json").exists()
    assert str(tmp_path / "demo" / "run" / "encoder") in told
    assert not (tmp_path / "demo" / "creatures").exists()
