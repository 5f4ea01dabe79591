"""The measured tables of docs/ are what benchmarks/results/proof.json holds, and that is what runs left behind."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch
import yaml

import semmae
from semmae.data.coding import Coding
from semmae.data.segmentation import open_segmentation
from semmae.formats.folders import save_encoder
from semmae.formats.open import load_encoder, load_segmenter
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options import kind_of
from semmae.options.segment import SegmentOptions
from semmae.verbs.segment import protocol_of

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))  # where its harness lies
        patch.setitem(sys.modules, name, module)  # dataclasses look for it there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    return script("proof")


def test_the_tables_of_the_pages_are_the_results(proof: ModuleType) -> None:
    results = proof.read_results()
    for page in proof.TABLES:
        text = (ROOT / "docs" / page).read_text()
        assert proof.with_tables(page, text, results) == text, f"python benchmarks/proof.py --tables  # docs/{page}"


def test_every_result_has_the_command_that_the_script_says(proof: ModuleType) -> None:
    results = proof.read_results()
    assert results.pop("benchmark") == "proof"
    assert {name: entry["command"] for name, entry in results.items()} == proof.COMMANDS


def test_the_table_of_tokens_is_the_results_of_its_commands() -> None:
    tokens = script("tokens")
    results, text = tokens.read_results(), tokens.PAGE.read_text()
    assert tokens.with_table(text, results) == text, "python benchmarks/tokens.py --table"
    assert results.pop("benchmark") == "tokens"
    made = {name: entry["command"] for name, entry in results.items() if not name.startswith("raw-")}
    assert made == tokens.commands()


def test_pages_give_the_commands_behind_their_tables(proof: ModuleType) -> None:
    """Where a command stands in a page whose table it made, it has the same options, in whatever order."""

    def options(command: str) -> object:
        verb, *arguments = shlex.split(command)[1:]
        return tiny.options_from(kind_of(verb), arguments)

    for page, tables in proof.TABLES.items():
        text = re.sub(r"\\\n\s*", "", (ROOT / "docs" / page).read_text())
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("semmae ") and "runs/a" in line]
        found = [options(line) for line in lines if not re.search(r"[\[…]", line)]
        for name in tables:
            if name in proof.COMMANDS:
                assert options(proof.COMMANDS[name]) in found, f"docs/{page} does not give: {proof.COMMANDS[name]}"


def test_a_run_is_taken_over_as_it_lies_but_only_if_the_command_made_it(
    proof: ModuleType, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(creatures / "images")
    save_encoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), tmp_path / "runs" / "a")
    semmae.knn(encoder="runs/a", data="photos", out=Path("runs/k"), limit=12, workers=0)
    command = "semmae knn --encoder runs/a --data photos --limit 12 --workers 0 --out runs/k"

    found = proof.collected(tmp_path, command)
    assert found == {"command": command, "results": json.loads((tmp_path / "runs/k/results.json").read_text())}
    with pytest.raises(SystemExit, match="{'k': 20}"):
        proof.collected(tmp_path, f"{command} --k 5")
    config = yaml.safe_load((tmp_path / "runs/k/config.yaml").read_text())
    assert proof.alike(f"/elsewhere/{config['data']}", "photos") and not proof.alike("holiday-photos", "photos")
    (tmp_path / "runs/k/.unfinished").touch()
    with pytest.raises(SystemExit, match="not finished"):
        proof.collected(tmp_path, command)


def test_heads_that_share_their_tokens_are_those_of_the_verb(creatures: Path, tmp_path: Path) -> None:
    """Of heads trained side by side each is, to the last bit, the one that `semmae segment` trains alone."""
    rates = script("linear_rates")
    save_encoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), tmp_path / "encoder")
    encoder, data = load_encoder(tmp_path / "encoder"), open_segmentation(creatures, Coding(), workers=0)
    heads = [rates.new_head(encoder, data.names, rate, steps, 0) for rate, steps in ((1e-1, 2), (1e-2, 4), (1e-3, 6))]
    rates.train(encoder, heads, data.train, 0)

    own = heads[1]
    semmae.segment(
        encoder=tmp_path / "encoder", data=creatures, out=tmp_path / "run", head="linear", lr=own.rate,
        steps=own.steps, workers=0, pictures=0,
    )  # fmt: skip
    theirs = load_segmenter(tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(own.segmenter.head.parameters(), theirs.head.parameters(), strict=True)
    )
    given = json.loads((tmp_path / "run" / "results.json").read_text())
    found = rates.measure(own, data.val, data.names)
    assert (found["miou"], found["pixel_accuracy"]) == (given["miou"], given["pixel_accuracy"])


def test_the_rate_of_a_linear_head_is_the_best_that_was_found_and_the_page_gives_them_all() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "linear_rates.json").read_text())["results"]
    lines = []
    for steps in (300, 1000):
        for method in ("this encoder", "untrained"):
            found = {row["rate"]: row["miou"] for row in results[method] if row["steps"] == steps}
            options = SegmentOptions(encoder="", data="", out=Path(), head="linear")
            assert max(found, key=found.__getitem__) == protocol_of(options, 32).rate
            lines.append(f"| {method}, {steps} steps | " + " | ".join(f"{miou:.1f}" for miou in found.values()) + " |")
    assert "\n".join(lines) in (ROOT / "docs" / "evaluate.md").read_text()
