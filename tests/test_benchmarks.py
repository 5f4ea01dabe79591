"""benchmarks/: pages say what results/*.json say, ratios are of one round, and every script runs at its smallest."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from semmae.models import bf16

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a script, whose own folder Python looks into first."""
    monkeypatch.syspath_prepend(FOLDER)


def script(name: str) -> Any:
    return importlib.import_module(name)


def figures_of_all() -> dict[str, Any]:
    """Results in the form of every benchmark, each target met to the digit."""
    peers = ("transformers", "lightly")

    def race(ours: float, ratios: tuple[float, float]) -> dict[str, Any]:
        both = dict(zip(peers, ratios, strict=True))
        return {"ours": ours, "peers": {name: ours / ratio for name, ratio in both.items()}, "ratios": both}

    ways = {"ours, timm's blocks": 1.2, "ours, memory given back": 1.3, script("tables").SUBSET: 1.1}
    step = race(4.0, (1.1, 1.3)) | {
        "default": race(4.0, (1.8, 1.7)), "float32": race(2.0, (1.2, 1.1)), "ablation": {"ratios": ways},
        "gemm_share": 0.8, "gemm_gflops": 400.0, "gemm_range": [390.0, 410.0],
    }  # fmt: skip
    counts = {"ours": 900, "peers": dict.fromkeys(peers, 1000), "ratios": {"transformers": 0.8, "lightly": 0.9}}
    memory = {**counts, "of_training": counts, "default": {**counts, "of_training": counts}}
    beside_pil = {"ours": 180.0, "peers": {"torchvision_pil": 100.0}}
    whole = {**beside_pil, "ratios": {"torchvision_pil": 1.8, "share_of_bare_decode": 0.7}}
    loading = {**whole, "by_item": whole, "photos": {**whole, "by_item": whole}}
    blends = {f"semantic_{blend}_vs_argsort": 3.9 for blend in (0.0, 0.5, 1.0)}
    kinds = dict.fromkeys((*script("contestants").KINDS, "other"), 0.5)
    names = script("step_profile").SHOWN
    lightning = {"ratio": 1.02, "step_ms": 100.0, "cost_ms": 2.0}
    return {
        "step": step,
        "memory": memory,
        "loading": loading,
        "masking": {
            "milliseconds_of_a_batch": {"semantic": 4.0},
            "share_of_step": {"semantic": 0.01},
            "ratios": {**blends, "semantic_vs_argsort": 4.0},
        },
        "lightning_cost": {**lightning, "small": {"one": {"processor": lightning}}},
        "startup": {"worst": {"ratio": 1.3}},
        "step_profile": {
            "kinds": dict.fromkeys(names, kinds),
            "step": dict.fromkeys(names, 4.0),
            "profiled": dict.fromkeys(names, 4.1),
        },
    }


def verdicts(results: dict[str, Any]) -> list[str]:
    return [line.split("|")[-2].strip() for line in script("tables").figures_table(results).splitlines()[2:]]


def test_figures_in_the_pages_are_those_of_the_results() -> None:
    tables = script("tables")
    results = tables.read_results()
    stale = [page.name for page in tables.pages() if tables.renewed(page.read_text(), results) != page.read_text()]
    assert stale == [], "run: python benchmarks/tables.py --write"


def test_a_figure_is_renewed_within_its_sentence_and_a_line_broken_inside_of_it_stays() -> None:
    tables, results = script("tables"), figures_of_all()
    text = "loads <!-- result: loads -->372<!-- end --> photos, <!-- result: gpu-hours -->47 to\n79<!-- end --> hours"
    assert tables.renewed(text, results) == text.replace("372", "180")


def test_every_figure_that_is_made_stands_in_a_page_and_every_mark_has_its_end() -> None:
    tables = script("tables")
    text = "".join(page.read_text() for page in tables.pages())
    assert {name for _, name, _, _ in tables._MARKED.findall(text)} == set(tables.FIGURES)
    assert len(tables._MARKED.findall(text)) == text.count("<!-- result:")


def test_the_files_give_which_benchmark_they_are_of() -> None:
    tables = script("tables")
    names = (*tables.BENCHMARKS, "labelling")
    named = {name: json.loads((FOLDER / "results" / f"{name}.json").read_text()) for name in names}
    assert {name: whole["results"]["benchmark"] for name, whole in named.items()} == {name: name for name in named}
    assert all({"command", "machine"} <= whole.keys() for whole in named.values())


def test_no_result_names_a_folder_of_one_machine() -> None:
    for path in sorted((FOLDER / "results").glob("*.json")):
        commands = re.findall(r'"command": "([^"]*)"', path.read_text())
        assert commands or path.stem == "small_data_screening"  # a bare list of trials
        assert not [word for command in commands for word in command.split() if word.startswith("/")], path.name


def test_a_command_is_kept_as_it_is_given_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = script("harness")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/else/benchmarks/step.py", "--rounds", "1"])
    harness.write_results("step", {})
    assert json.loads((tmp_path / "step.json").read_text())["command"] == "python benchmarks/step.py --rounds 1"


@pytest.mark.parametrize(
    ("where", "value", "row"),
    [
        (("step", "default", "ratios", "lightly"), 1.699, "each by default (the peers"),
        (("step", "ratios", "lightly"), 1.099, "step, all in bf16"),
        (("step", "gemm_share"), 0.799, "matrix product that a step"),
        (("step", "ablation", "ratios", "ours, a quarter of patches half the size"), 1.132, "patches of 8"),
        (("memory", "ratios", "transformers"), 0.901, "whole process, all in bf16"),
        (("memory", "default", "of_training", "ratios", "lightly"), 0.901, "training alone, each by default"),
        (("masking", "share_of_step", "semantic"), 0.011, "masks of a batch"),
        (("masking", "ratios", "semantic_vs_argsort"), 4.01, "4096"),
        (("loading", "ratios", "torchvision_pil"), 1.799, "loading on one core"),
        (("loading", "ratios", "share_of_bare_decode"), 0.699, "bare JPEG"),
        (("lightning_cost", "ratio"), 1.021, "through Lightning"),
        (("startup", "worst", "ratio"), 1.301, "VERB --help"),
    ],
)
def test_a_target_is_missed_as_soon_as_its_figure_is_beyond_it(where: tuple[str, ...], value: float, row: str) -> None:
    results = json.loads(json.dumps(figures_of_all()))  # no figure shared with another
    assert set(verdicts(results)) == {"", "met", "open"}
    place = results
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    missed = [line for line in script("tables").figures_table(results).splitlines() if "**missed**" in line]
    assert len(missed) == 1 and row in missed[0]


def test_what_was_not_run_is_named_and_open() -> None:
    results = figures_of_all()
    del results["step"]
    rows = script("tables").figures_table(results).splitlines()[2:]
    steps = [row for row in rows if row.startswith("| step,")]
    assert len(steps) == 3 and all("not measured" in row for row in steps)
    assert [row.split("|")[-2].strip() for row in steps] == ["open", "open", ""]


def test_figures_of_a_race_do_not_depend_on_how_fast_the_machine_was() -> None:
    step = script("step")
    names = [(name, precision) for name in ("ours", *step.PEERS) for precision in ("bf16", "float32")]
    names += [(name, "bf16") for name in step.WAYS]
    seconds = {name: float(number) for number, name in enumerate(names, 1)}
    slowness = (1.0, 4.0, 0.5)
    race = {name: [at * slow for slow in slowness] for name, at in seconds.items()}
    # Before and after each round; their mean is 100e9 operations a second by the slowness of the round.
    rates = [50e9, 150e9, -100e9, 500e9]
    figures = step.figures_of(race, rates, "bf16", batch=16, flops=1e9)
    assert figures["ratios"] == {"transformers": 3.0, "lightly": 5.0}
    assert figures["default"]["ratios"] == {"transformers": 4.0, "lightly": 6.0}
    assert figures["float32"]["ratios"] == {"transformers": 2.0, "lightly": 3.0}
    assert figures["ablation"]["ratios"] == dict(zip(step.WAYS, (7.0, 8.0, 9.0), strict=True))
    assert figures["ours"] == figures["default"]["ours"] == figures["ablation"]["ours"] == 16.0
    assert figures["gemm_share"] == 16e9 / 100e9


def test_works_take_turns_and_each_goes_first_in_its_round() -> None:
    harness, calls = script("harness"), []
    works = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = harness.take_turns(works, 3, warmup=1, between=lambda: calls.append("|"))
    assert "".join(calls) == "abc|bca|cab|abc|"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_what_is_done_inside_attention_is_attention_and_kinds_are_no_more_than_the_step() -> None:
    contestants = script("contestants")
    qkv = torch.randn(2, 16, 3 * 32, dtype=torch.bfloat16, requires_grad=True)
    slope, weight = torch.randn(2, 16, 32).bfloat16(), torch.randn(512, 512)

    def attend(_: str) -> None:
        bf16.attention(qkv, heads=4).backward(slope)  # copies queries, keys and values

    def copying(_: str) -> None:
        attend("bf16")
        weight.bfloat16()

    contestants.profiled(attend, "bf16")
    alone, both = (contestants.profiled(step, "bf16") for step in (attend, copying))
    assert alone["attention"] > 0 and alone["copies, casts"] == 0
    assert both["copies, casts"] > 0
    for seconds in (alone, both):
        assert sum(seconds[kind] for kind in (*contestants.KINDS, "other")) <= seconds["step"]


def test_the_loop_that_lightning_is_compared_with_does_the_same_and_holds_no_gradients_between_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost = script("lightning_cost")
    case = cost.Case(cost.EncoderSpec(32, 8, 24, 1, 2), cost.DecoderSpec(16, 1, 2), batch=4, steps=6)
    batches, loss_of, held = cost.preloaded(case), cost.load_example().masked_loss, []

    def watched(mae: Any, *rest: Any) -> Tensor:
        held.append([weight.grad for weight in mae.parameters() if weight.grad is not None])
        return loss_of(mae, *rest)

    monkeypatch.setattr(cost, "load_example", lambda: SimpleNamespace(masked_loss=watched))
    ours, plain, new = case.new_model(), case.new_model(), case.new_model()
    cost.by_lightning(ours, batches)
    cost.by_plain_loop(plain, batches)
    assert held == [[]] * case.steps
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name])
    assert not torch.equal(plain.state_dict()["mask_token"], new.state_dict()["mask_token"])


def test_small_models_are_of_three_sizes() -> None:
    cost = script("lightning_cost")
    counts = [sum(weight.numel() for weight in case.new_model().parameters()) for case in cost.SMALL.values()]
    assert counts == sorted(counts) and counts[1] > 4 * counts[0] and counts[2] > 4 * counts[1]


def test_scaling_is_of_the_gradients_that_go_round_and_hours_are_those_of_the_operations() -> None:
    scaling = script("scaling")
    node = scaling.Node(gpus=4, shares=(0.5,), gpu_tflops=100.0, epochs=10, batch=1000)

    def cells(table: str, row: int = 0, first: int = 1) -> list[float]:
        return [float(cell.replace(",", "")) for cell in table.splitlines()[2 + row].split("|")[1 + first : -1]]

    rate = 50e12 / scaling.flops_an_image("vit_base")
    hours = scaling.IMAGES * 10 / rate / 3600
    disk = [4 * rate * size / 1e9 for size in (scaling.BYTES, 30_000)]
    expected = [4 * rate, hours / 4, hours, 4 * rate / 100, 4 * rate / 200, *disk]
    loading = scaling.Loading(files=100.0, packed=200.0, packed_bytes=30_000)
    assert cells(scaling.table(node, loading)) == pytest.approx(expected, rel=0.02, abs=0.06)

    of_64 = 64 * rate / 1000  # steps a second
    traffic = [2 * 63 / 64 * size * 111_655_680 * of_64 / 1e9 for size in (4, 2)]
    expected = [64, 1000 / 64, 1000 / of_64, hours / 64, *traffic]
    assert cells(scaling.more_gpus(node), row=3, first=0) == pytest.approx(expected, rel=0.02, abs=0.06)

    sharded = scaling.held_and_sent(node).splitlines()[4]
    assert "fsdp" in sharded
    held, sent = 16 * 111_655_680 / 4 / 1e9, 3 / 4 * 8 * 111_655_680 / 1e9
    assert [float(cell) for cell in sharded.split("|")[4:-1]] == pytest.approx([held, sent], abs=0.06)


TINY = ("--model", "vit_tiny", "--batch", "2", "--size", "32")
RUNS: dict[str, tuple[str, ...]] = {
    "step": (*TINY, "--rounds", "1", "--ablation"),
    "step_profile": (*TINY, "--rounds", "1"),
    "memory": (*TINY, "--steps", "1"),
    "masking": ("--images", "8", "--rounds", "1", "--step-seconds", "1"),
    "loading": ("--rounds", "1", "--workers", "0"),
    "remote_shards": ("--rounds", "1", "--scale", "0.05"),
    "lightning_cost": (*TINY, "--rounds", "1", "--steps", "2"),
    "labelling": ("--images", "4", "--rounds", "1", "--workers", "0"),
    "startup": ("--rounds", "1", "--only", "an unknown verb"),
    "shard_index": ("--shards", "2", "--images", "50", "--rounds", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.py")) if "def main" in path.read_text()])
def test_every_script_gives_how_it_is_called(name: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout


@pytest.mark.slow
def test_every_script_runs_at_its_smallest_and_pages_and_pictures_are_made_of_what_it_writes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("lightly")
    for name in ("benchmarks", "docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.rmtree(tmp_path / "benchmarks" / "results")
    for image in ("performance.png", "step-profile.png"):
        (tmp_path / "docs" / "images" / image).unlink()

    def run(name: str, *arguments: str) -> str:
        command = [sys.executable, "-W", "ignore", tmp_path / "benchmarks" / f"{name}.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    results = tmp_path / "benchmarks" / "results"
    for name, arguments in RUNS.items():
        printed = json.loads(run(name, *arguments).splitlines()[-1])
        assert printed["benchmark"] == name
        written = results / ("step-vit_tiny.json" if name == "step" else f"{name}.json")
        assert json.loads(written.read_text())["results"] == printed
    (results / "step-vit_tiny.json").rename(results / "step.json")
    run("plots")
    assert all((tmp_path / "docs" / "images" / image).is_file() for image in ("performance.png", "step-profile.png"))
    assert "docs/performance.md" in run("tables", "--write")
    assert run("tables") == ""
    page = (tmp_path / "docs" / "performance.md").read_text()
    unmeasured = [line for line in page.splitlines() if "not measured" in line]
    assert len(unmeasured) == 1 and "GPU" in unmeasured[0]
