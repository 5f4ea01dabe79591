"""What docs/data.md says of the memory of names is what the benchmark wrote, which measures what it says."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "results" / "manifest.json"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_manifest", ROOT / "benchmarks" / "manifest.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_is_that_of_the_results() -> None:
    found = json.loads(FILE.read_text())["results"]
    rows = re.findall(r"^\| (?:of|sent).*\| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "docs" / "data.md").read_text(), re.M)
    assert len(rows) == 3
    for row, name in zip(rows, ("mib", "worker_mib", "pickle_mib"), strict=True):
        for text, contestant in zip(row, ("ours", "lists"), strict=True):
            assert text == f"{found[contestant][name]:.{len(text.partition('.')[2])}f}"
    page = (ROOT / "docs" / "data.md").read_text()
    seconds = [round(found["ours"][name]) for name in ("seconds", "seconds_digest", "seconds_lookup")]
    assert "took {} for making these, {} for the digest and {} for finding".format(*seconds) in page
    assert f"{found['ours']['file_mib']:.0f} MiB" in page


def test_both_contestants_hold_the_same(benchmark: ModuleType) -> None:
    for ours, theirs in zip(benchmark.ours(2500), benchmark.lists(2500), strict=True):
        assert list(ours) == theirs
    assert benchmark.lists(1001)[0][::1000] == [
        "train/n10000000/n10000000_0.JPEG",
        "train/n10000000/n10000000_1000.JPEG",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone reports memory")
def test_a_worker_that_reads_lists_gets_a_copy_of_them_and_of_ours_none(benchmark: ModuleType) -> None:
    ours, lists = (benchmark.alone(name, 60_000)["worker_mib"] for name in ("ours", "lists"))
    assert ours < lists / 4
