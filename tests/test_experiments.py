"""The experiments: their rows are such as `semmae compare` takes, and they go on where they were stopped."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semmae import MaskContext
from semmae.cli.arguments import parse
from semmae.evaluation.paired import paired_difference
from semmae.options.compare import CompareOptions
from semmae.reporting.comparison import interval
from semmae.verbs.measures import recipe
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
    for each in ("ROWS", "OTHERS"):
        rows += getattr(module, each, [])
    rows += [module.KEPT] if hasattr(module, "KEPT") else []
    rows += [row for row in (module.RANDOM, module.SEMANTIC) if row.get("name") not in {own["name"] for own in rows}]
    for other in ("of_tokens", "longer"):
        rows += [getattr(module, other)(row) for row in rows] if hasattr(module, other) else []
    rows = [{"name": "as it is", **row} if "name" not in row else row for row in rows]
    grid = tmp_path / "rows.yaml"
    grid.write_text(yaml.safe_dump([{**row, "name": row["name"].replace(" ", "-")} for row in rows]))
    given = ["--data", "photos", "--masks", "masks", "--out", str(tmp_path / "out"), "--grid", str(grid)]

    parsed = parse(CompareOptions, [*given, *getattr(module, "NETWORK", ()), *module.SHARED])

    assert parsed is not None
    assert [row.name for row in rows_of(parsed[0])] == [row["name"].replace(" ", "-") for row in rows]


def test_recipes_of_fine_tuning_are_such_as_compare_takes(tmp_path: Path) -> None:
    import tiny_imagenet

    for text, epochs in ((tiny_imagenet.FINETUNE, 4), (tiny_imagenet.FINETUNE_GPU, 50)):
        (tmp_path / "recipe.yaml").write_text(text)
        assert recipe(str(tmp_path / "recipe.yaml"), "finetune")["epochs"] == epochs


def test_kept_objects_hides_the_share_and_leaves_more_of_objects_visible() -> None:
    """Of equal parts of object and background, by weights 3 and 1: more than twice as much, not three times."""
    import kept

    parts = torch.tensor([0, 1, 0, 2] * 16).expand(200, -1)
    context = MaskContext((200, 64), 0.75, 0.0, torch.Generator().manual_seed(0), parts=parts)
    hidden = kept.objects(context)
    assert hidden.dtype == torch.bool and hidden.sum(1).eq(48).all()
    objects, background = (float((~hidden)[parts.gt(0) == kind].float().mean()) for kind in (True, False))
    assert 2 * background < objects < 3 * background


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


def test_lines_of_other_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that another machine has made; a run made again takes its line."""
    import pieces

    monkeypatch.setattr(pieces, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["a.py"])
    parser = pieces.arguments("")

    def write(top1: float, *seeds: int, first: int) -> None:
        asked = parser.parse_args(["--work", str(tmp_path), "--first-seed", str(first)])
        rows = [{"name": "random", "seed": seed, "probe_top1": top1} for seed in seeds]
        pieces.write("a", [{**row, "minutes": {"total": 1.0}, "command": "", "machine": ""} for row in rows],
                     asked, parser)  # fmt: skip

    write(1.0, 0, 1, first=0)
    write(2.0, 1, 2, first=1)
    assert [(row["seed"], row["probe_top1"]) for row in pieces.written("a")] == [(0, 1.0), (1, 2.0), (2, 2.0)]
    assert pieces.compare(parser.parse_args(["--work", str(tmp_path), "--first-seed", "3"]), pieces.Minutes(1),
                          tmp_path / "none", [], 3, [])  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_a_command_names_no_place_of_one_machine(tmp_path: Path) -> None:
    import pieces

    work = tmp_path / "work"
    given = f"semmae pretrain --out {work}/compared/runs/a --data {tmp_path}/tiny --epochs 2 --teacher dinov2-small"
    named = "semmae pretrain --out WORK/compared/runs/a --data tiny --epochs 2 --teacher dinov2-small"
    assert pieces._placeless(given, work) == named
    assert pieces._placeless(f"python experiments/a.py --work {work}", work) == "python experiments/a.py --work WORK"


def test_tables_say_what_the_rows_hold() -> None:
    import evidence

    facts = {"masking": "random", "variant": "", "parts": None, "target": "pixels", "minutes": 4.0}
    rows = [
        {"name": name, **facts, "seed": seed, "probe_top1": 50.0 + seed + gain, "upernet_miou": 20.0 + 2 * gain}
        for name, gain in (("semantic", 3.0), ("random", 0.0))
        for seed in range(3)
    ]
    for row, extra in zip(rows, (0.1, -0.1, 0.0, 0.0, 0.0, 0.0), strict=True):
        row["probe_top1"] += extra
    said, _, *table = evidence.lines_of(evidence.runs_of(rows, evidence.Table("")))
    assert "semantic is ahead of random by 3.0 points" in said and "3 paired seeds" in said
    assert [line.split("|")[1:4] for line in table[2:]] == [
        [" random ", " 3 ", " 51.0 "],
        [" semantic ", " 3 ", " 54.0 "],
    ]
    upernet = "\n".join(evidence.lines_of(evidence.runs_of(rows, evidence.Table("", evidence.UPERNET))))
    assert "26.0" in upernet and "54.0" not in upernet
    tokens = [{**row, "name": f"tokens-{row['name']}", "target": "tokens"} for row in rows]
    for row in tokens:
        row["probe_top1"] += 7.0
    for target, base, points, lines in (
        ("pixels", "random", 3.0, 4),
        ("tokens", "random", 10.0, 5),
        ("tokens", "tokens-random", 3.0, 4),
    ):
        said, _, *table = evidence.lines_of(evidence.runs_of(rows + tokens, evidence.Table("", None, target, base)))
        assert f"semantic is ahead of {base} by {points} points" in said and len(table) == lines
    page = evidence.with_lines("a\n<!-- x -->\nold\n<!-- end -->\nb <!-- end -->", "x", ["new"])
    assert page == "a\n<!-- x -->\n\nnew\n\n<!-- end -->\nb <!-- end -->"


def test_intervals_in_the_text_are_of_the_results() -> None:
    """Whatever the prose of evidence gives as (a to b) is the interval of two rows, by all seeds or those from 2 on."""
    import evidence

    known = set()
    for table in ("true_parts", "tiny_imagenet", "street_fashion"):
        runs = evidence.pieces.written(table)
        for first in (0, 2):
            figures: dict[tuple[str, str], dict[int, float]] = {}
            for run in runs:
                for figure in ("finetune_top1", "probe_top1", "knn_top1", "segment_miou", "upernet_miou"):
                    if run["seed"] >= first and run.get(figure) is not None:
                        figures.setdefault((run["name"], figure), {})[run["seed"]] = run[figure]
            for (one, figure), values in figures.items():
                for (other, same), reference in figures.items():
                    if same == figure and one != other:
                        found = paired_difference(values, reference)
                        if found is not None and found.low is not None and found.high is not None:
                            known.add(interval(found.low, found.high))
    readme = evidence.README.read_text()
    prose = readme[readme.index("**State of the evidence.**") : readme.index("## Try it")]
    tabled = re.sub(r"<!-- [a-z-]+ -->.*?<!-- end -->", "", evidence.PAGE.read_text(), flags=re.DOTALL)
    said = re.findall(r"(-?\d+\.\d) to (-?\d+\.\d)", " ".join(f"{prose} {tabled}".split()))
    assert said
    assert [f"{low} to {high}" for low, high in said if f"{low} to {high}" not in known] == []


def test_pages_show_what_the_results_are() -> None:
    """`python experiments/evidence.py` would change neither."""
    import evidence

    page, readme = evidence.PAGE.read_text(), evidence.README.read_text()
    assert evidence.page(page) == page
    assert evidence.with_lines(readme, "evidence", evidence.in_short()) == readme
    shown = evidence._in_short({"seeds": 2, "probe_top1": 50.04, "probe_top1_difference": dict(
        mean=1.26, low=-0.5, high=3.0, pairs=2)}, "probe_top1")  # fmt: skip
    assert shown == "50.0: +1.3 (2 seeds, -0.5 to 3.0)"
    shown = evidence._in_short({"seeds": 5, "probe_top1": 50.04, "probe_top1_difference": dict(
        mean=1.26, low=-0.5, high=3.0, pairs=2)}, "probe_top1")  # fmt: skip
    assert shown == "50.0: +1.3 (5 seeds of which 2 in pairs, -0.5 to 3.0)"
