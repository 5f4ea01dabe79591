"""What verbs return in Python: the figures of their files, printed on one line; nothing breaks where there are none."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import semmae
from semmae.calls import RESULTS
from semmae.results import Result

# Of each verb a file that it leaves, what that holds, and the figures that the result has of it.
KNN = {"protocol": {"method": "k-NN"}, "top1": 41.25, "top1_low": 38.0, "top1_high": 44.5, "top5": 70.0,
       "mean_class": 40.0, "images": 1200, "classes": 10, "untrained": {"top1": 20.0, "images": 1200}}  # fmt: skip
MANY = {f"{method}_{figure}": 1.0 for method in ("knn", "parts", "segment") for figure in KNN}
LEFT: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "teacher": (
        "metrics.jsonl",
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5, "knn_top1": 30.0}],
        {"loss": 2.5, "knn_top1": 30.0},
    ),
    "pretrain": ("metrics.jsonl", [{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.5}], {"loss": 0.5}),
    "parts": (
        "quality.json",
        {"learned": {"nmi": 41.3, "ari": 28.0}, "grid": {"nmi": 20.0}},
        {"nmi": 41.3, "ari": 28.0},
    ),
    "knn": ("results.json", KNN, {"top1": 41.25, "classes": 10, "untrained": KNN["untrained"]}),
    "probe": ("results.json", KNN, {"top1": 41.25, "mean_class": 40.0}),
    "finetune": ("results.json", KNN, {"top1_low": 38.0, "top1_high": 44.5}),
    "segment": (
        "results.json",
        {"miou": 34.0, "pixel_accuracy": 86.5, "images": 200},
        {"miou": 34.0, "pixel_accuracy": 86.5},
    ),
    "evaluate": (
        "results.json",
        {"this encoder": {"knn_top1": 41.25, "grid_nmi": 9.0}, "untrained": {"knn_top1": 20.0} | MANY},
        {"knn_top1": 41.25, "figures": {"knn_top1": 41.25, "grid_nmi": 9.0}},
    ),
    "compare": (
        "results.json",
        {"verdict": "b is ahead of a by 1.2 points.", "rows": [{"name": "a"}, {"name": "b"}], "runs": []},
        {"verdict": "b is ahead of a by 1.2 points.", "rows": [{"name": "a"}, {"name": "b"}], "runs": []},
    ),
    "demo": (
        "run/results.json",
        {"this encoder": {"knn_top1": 41.25, "probe_top1": 60.0}, "untrained": {"knn_top1": 20.0}},
        {"knn_top1": 41.25, "probe_top1": 60.0, "untrained": {"knn_top1": 20.0}},
    ),
}


def left(verb: str, folder: Path) -> Result:
    name, content, _ = LEFT[verb]
    (folder / name).parent.mkdir(exist_ok=True)
    lines = content if isinstance(content, list) else [content]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RESULTS[verb].of(folder)


def test_every_result_with_figures_is_tried() -> None:
    assert {verb for verb, result in RESULTS.items() if result is not Result} == LEFT.keys()


@pytest.mark.parametrize("verb", LEFT)
def test_figures_are_those_of_the_files(verb: str, tmp_path: Path) -> None:
    result = left(verb, tmp_path)
    expected = LEFT[verb][2]
    assert {name: getattr(result, name) for name in expected} == expected
    assert result.path == tmp_path
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize("verb", LEFT)
def test_it_prints_on_one_line_with_its_own_figures_first(verb: str, tmp_path: Path) -> None:
    result = left(verb, tmp_path)
    text = str(result)  # a notebook shows the same
    assert text == repr(result) and "\n" not in text and len(text) - len(str(tmp_path)) < 250
    assert text.startswith(f"{type(result).__name__}({tmp_path}, ") and "None" not in text
    shown = [name for name, value in LEFT[verb][2].items() if isinstance(value, float)]
    assert [name for name in shown if f"{name}={getattr(result, name):.4g}" not in text] == []
    assert "untrained" not in text or max(map(text.index, shown)) < text.index("untrained")


@pytest.mark.parametrize("verb", RESULTS)
def test_what_was_not_measured_is_none(verb: str, tmp_path: Path) -> None:
    """As on ranks other than the first, which may be there before the first one has written."""
    result = RESULTS[verb].of(tmp_path)
    values = [getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "path"]
    assert values == [None] * len(values)
    assert str(result) == f"{type(result).__name__}({tmp_path})"


def test_a_real_run_has_them(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    run = RESULTS["pretrain"].of(whole_run)  # a result is a path, too
    found = semmae.knn(encoder=run, data=creatures / "images", out=tmp_path / "knn", workers=0, untrained=True)
    assert found.top1 == json.loads((tmp_path / "knn" / "results.json").read_text())["top1"]
    assert found.untrained is not None and found.images == 32
    assert RESULTS["teacher"].of(whole_run / "teacher").loss > 0  # type: ignore[attr-defined]
    assert RESULTS["parts"].of(whole_run / "parts").nmi > 0  # type: ignore[attr-defined]
    assert RESULTS["pretrain"].of(whole_run).loss > 0  # type: ignore[attr-defined]
