"""tools/golden.py: what it reads of a run, and what it takes for a difference."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

_PATH = Path(__file__).parents[1] / "tools" / "golden.py"
VALUES = {"run/metrics.jsonl:0.loss": "0x1.8p+1", "run/results.json:top1": "12", "run/results.json:split": '"val"'}


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", _PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("theirs", "failed", "added"),
    [
        (VALUES, [], []),
        (VALUES | {"run/new.json:x": "1"}, [], ["run/new.json:x"]),
        (VALUES | {"run/metrics.jsonl:0.loss": "0x1.8000000000001p+1"}, ["run/metrics.jsonl:0.loss"], []),
        ({name: text for name, text in VALUES.items() if "top1" not in name}, ["run/results.json:top1"], []),
    ],
    ids=["equal", "added", "changed by one bit", "missing"],
)
def test_changed_and_missing_values_fail_and_added_ones_do_not(
    theirs: dict[str, str],
    failed: list[str],
    added: list[str],
    golden: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines, names = golden.differences(VALUES, theirs)
    assert ([line.split(": ")[0] for line in lines], names) == (failed, added)
    monkeypatch.setattr(golden, "values_of", lambda commit, _: VALUES if commit == "A" else theirs)
    assert golden.compare(["A", "B"], Path(), [], numbers=False) == (1 if failed else 0)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{len(failed)} of 3 values differ" if failed else "equal: 3 values"
    )


def test_ignored_names_and_words_are_passed_over(golden: ModuleType) -> None:
    assert golden.held(VALUES, ["*.jsonl:*"], numbers=False).keys() == VALUES.keys() - {"run/metrics.jsonl:0.loss"}
    assert golden.held(VALUES, [], numbers=True).keys() == VALUES.keys() - {"run/results.json:split"}


def test_every_bit_of_a_run_is_read_but_not_its_speed_or_place(golden: ModuleType, tmp_path: Path) -> None:
    def read(name: str, change: float, place: int, speed: float) -> dict[str, str]:
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        tensor = torch.ones(3, dtype=torch.bfloat16)
        tensor[place] += 1
        save_file({"weight": tensor}, folder / "model.safetensors", {"source": str(folder)})
        line = {"loss": 1.0 + change, "images_per_s": speed}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "config.yaml").write_text(f"out: {folder}\n")
        (folder / "per_class.csv").write_text(f"class,iou\na,{0.1 + change!r}\n")
        np.savez(folder / "features.npz", names=np.array(["a", "b"]), mean=np.full(2, change))
        (folder / "train.log").write_text(name)
        values: dict[str, str] = golden.read_folder(folder, tmp_path / name)
        return values

    first = read("first", 0.0, 0, 10.0)
    assert read("second", 0.0, 0, 20.0) == first
    other = read("other", math.ulp(1.0), 1, 10.0)
    assert {name for name, value in first.items() if other[name] != value} == {
        "model.safetensors:weight",
        "metrics.jsonl:0.loss",
        "per_class.csv:0.iou",
        "features.npz:mean",
    }
