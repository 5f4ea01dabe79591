"""The rows of a comparison: lists multiplied out, each row checked, names that are folders."""

from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from semmae.options.compare import CompareOptions
from semmae.verbs.rows import rows_of


def rows(out: Path, **given: Any) -> list[Any]:
    return rows_of(CompareOptions(data="d", out=out, **given))


def test_height_and_width_are_a_list_among_sizes(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "- {masking: random, image_size: [[64, 48], 32]}\n- {name: ours, image_size: [[32, 64]]}"
    )
    found = rows(tmp_path / "out", grid=tmp_path / "grid.yaml", patch_size=8)
    assert [(row.name, row.given["image_size"]) for row in found] == [
        ("random-image_size=64x48", (64, 48)),
        ("random-image_size=32", 32),
        ("ours-image_size=32x64", (32, 64)),
    ]


def test_a_grid_is_multiplied_out(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "- {masking: random}\n- {name: ours, gamma: [1, 2.5], parts: [learned, grid], blr: 1e-3}\n"
        "- {masking: [intra, inter], mask_ratio: 0.6}\n- {name: Köder, masking: random, compile: off}\n"
    )
    found = rows(tmp_path / "out", maskings="block", grid=tmp_path / "grid.yaml")
    assert [(row.name, row.masking, row.parts) for row in found] == [
        ("block", "block", None),
        ("random", "random", None),
        ("ours-gamma=1-parts=learned", "semantic", "learned"),
        ("ours-gamma=1-parts=grid", "semantic", "grid"),
        ("ours-gamma=2.5-parts=learned", "semantic", "learned"),
        ("ours-gamma=2.5-parts=grid", "semantic", "grid"),
        ("intra-mask_ratio=0.6", "intra", "learned"),
        ("inter-mask_ratio=0.6", "inter", "learned"),
        ("Köder", "random", None),
    ]
    assert found[3].given == {"masking": "semantic", "gamma": 1, "blr": 1e-3}
    assert [row.name for row in rows(tmp_path / "out")] == ["random", "semantic"]


@pytest.mark.parametrize(
    ("grid", "facts"),
    [
        ("- {masking: rondom}", ("row 1", "'rondom'", '"random"')),
        ("- {masking: random}\n- {gama: 2}", ("row 2", "gama", '"gamma"')),
        ("- {masking: random, gamma: 3}", ("random", "gamma 3", "semantic")),
        ("- {masking: random, epochs: many}", ("row 1", "epochs 'many'", "whole number")),
        ("- {masking: random, mask_ratio: 2}", ("mask-ratio 2", "between 0 and 1")),
        ("- {parts: lerned}", ("row 1", "'lerned'", "learned")),
        ("- {masking: random, parts: grid}", ("random", "reads no parts")),
        ("- {masking: attention, parts: grid}", ("grid", "attention")),
        ("- {parts: annotations}", ("annotations", "--masks")),
        ("- {masking: random}\n- {masking: random}", ("'random'", "another name")),
        ("- {name: A, masking: random}\n- {name: a, masking: block}", ("'A'", "another name")),
        (f"- {{masking: random, blr: {list(range(1, 41))}, epochs: {list(range(1, 41))}}}", ("1000", "grid.yaml")),
        ("- {masking: random, seed: 3}", ("seed", "alike")),
        ("- {masking: random, channels: 5}", ("channels", "alike")),
        ("- {name: a/b}", ("'a/b'",)),
        (f"- {{name: {'漢' * 90}, masking: random}}", ("200 bytes",)),
        ("- {name: block, mask_ratio: 0.5}", ("name block", "semantic", "masking")),
        ("- {masking: random, batch_size: 8, accumulate: 3}", ("random", "--batch-size 8", "--accumulate 3")),
        ("- {gamma: []}", ("gamma", "[]")),
        ("masking: random", ("rows",)),
        ("[]", ("rows",)),
    ],
)
def test_a_wrong_grid_is_refused(grid: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(grid)
    with refused(*facts):
        rows(tmp_path / "out", grid=tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("maskings", "given", "fact"),
    [
        ("random,block", {"gamma": 3.0}, "--gamma 3"),
        ("random,intra", {"keep_background": True}, "--keep-background"),
        ("random", {"hints": 1}, "--hints 1"),
        ("random,semantic", {"attention_hint": 0.1}, "--attention-hint"),
        ("random,colour", {"parts": Path("labels")}, "--parts labels"),
    ],
)
def test_an_option_that_no_row_reads_is_refused(
    maskings: str, given: dict[str, Any], fact: str, tmp_path: Path
) -> None:
    with refused(fact):
        rows(tmp_path / "out", maskings=maskings, **given)
    every = dict.fromkeys([*maskings.split(","), "semantic", "attention"])
    rows(tmp_path / "out", maskings=",".join(every), **given)
    rows(tmp_path / "out", maskings=maskings, resume=True, **given)


def test_an_option_that_all_rows_set_themselves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("- {masking: random, blr: [1e-3, 2e-3]}\n")
    with refused("blr"):
        rows(tmp_path / "out", grid=tmp_path / "grid.yaml", blr=1e-2)
    rows(tmp_path / "out", grid=tmp_path / "grid.yaml", maskings="random", blr=1e-2)
