"""examples/first_steps.ipynb: kept without outputs, and run from top to bottom in a kernel of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"
FACTS = """
import json

results = json.loads((here / "knn" / "results.json").read_text())
nearest = neighbours[:, 0].tolist() == list(asked)
json.dumps({"top1": [measured.top1, results["top1"]], "vectors": list(vectors.shape), "nearest": nearest})
"""


def read() -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_valid_and_kept_without_outputs() -> None:
    notebook = read()
    pytest.importorskip("nbformat").validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_pictures_and_the_figures_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what the notebook writes
    notebook = read()
    notebook.cells.append(pytest.importorskip("nbformat").v4.new_code_cell(FACTS))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    assert sum("image/png" in data for data in shown) == 4  # images, parts, masks, neighbours
    facts = json.loads(shown[-1]["text/plain"].strip("'"))
    assert facts["top1"][0] == pytest.approx(facts["top1"][1])
    assert facts["vectors"] == [240, 96] and facts["nearest"]
