"""The experiments: their rows are such as `semmae compare` takes, and they go on where they were stopped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from semmae.cli.arguments import parse
from semmae.options.compare import CompareOptions
from semmae.verbs.rows import rows_of

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = ("true_parts", "tiny_imagenet", "street_fashion")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_says_what_it_asks(name: str) -> None:
    shown = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "Budget" in shown.stdout and f"experiments/{name}.py" in shown.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_rows_are_such_as_compare_takes(name: str, tmp_path: Path) -> None:
    module = __import__(name)
    rows: list[dict[str, Any]] = []
    for each in ("ROWS", "OTHERS", "TOKENS"):
        rows += getattr(module, each, [])
    rows += [row for row in (module.RANDOM, module.SEMANTIC) if row.get("name") not in {own["name"] for own in rows}]
    rows = [{"name": "as it is", **row} if "name" not in row else row for row in rows]
    grid = tmp_path / "rows.yaml"
    grid.write_text(yaml.safe_dump([{**row, "name": row["name"].replace(" ", "-")} for row in rows]))
    given = ["--data", "photos", "--masks", "masks", "--out", str(tmp_path / "out"), "--grid", str(grid)]

    parsed = parse(CompareOptions, [*given, *getattr(module, "NETWORK", ()), *module.SHARED])

    assert parsed is not None
    assert [row.name for row in rows_of(parsed[0])] == [row["name"].replace(" ", "-") for row in rows]


@pytest.mark.slow
def test_true_parts_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows and two seeds of a tiny one: stopped at once, gone on with, then whole."""
    import pieces
    import true_parts

    monkeypatch.setattr(pieces, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(true_parts, "IMAGES", 48)
    monkeypatch.setattr(true_parts, "SEEDS", 2)
    rows = [row for row in true_parts.ROWS if row["name"] in ("random", "intra", "semantic", "semantic-half")]
    monkeypatch.setattr(true_parts, "ROWS", rows)
    monkeypatch.setattr(true_parts, "KINDS", ("grid",))
    monkeypatch.setattr(true_parts, "SHARED", tuple("1" if each == "8" else each for each in true_parts.SHARED))
    for minutes in ("0.02", "20"):
        monkeypatch.setattr(sys, "argv", ["true_parts.py", "--work", str(tmp_path / "work"), "--minutes", minutes])
        true_parts.main()

    written = json.loads((tmp_path / "results" / "true_parts.json").read_text())
    assert written["command"].startswith("python experiments/true_parts.py --work ")
    assert {(row["name"], row["seed"]) for row in written["rows"]} >= {
        (row["name"], seed) for row in rows for seed in (0, 1)
    }
    assert any(row["parts"] == "grid" for row in written["rows"])
    assert all(row["minutes"] > 0 and 0 <= row["probe_top1"] <= 100 for row in written["rows"])
