"""What a comparison says: which row is ahead, by how much, and when nothing can be said."""

from pathlib import Path
from typing import Any

import pytest

from semmae.reporting.comparison import PICTURE, difference, summary, tables, verdict, write_end
from semmae.reporting.run_page import write_report
from semmae.results import CompareResult


def runs(**rows: list[float]) -> list[dict[str, Any]]:
    """Runs of rows by name, a figure a seed."""
    return [
        {
            "name": name, "masking": name, "variant": "", "parts": None, "target": "pixels", "seed": seed,
            "knn_top1": figure / 2, "probe_top1": figure, "minutes": {"pretrain": 2.0, "total": 3.5},
        }
        for name, figures in rows.items() for seed, figure in enumerate(figures)
    ]  # fmt: skip


RANDOM = [50.0, 52.0, 51.0, 49.0, 50.0]


def above(*points: float) -> list[float]:
    return [value + more for value, more in zip(RANDOM, points, strict=True)]


@pytest.mark.parametrize(
    ("rows", "begins", "holds"),
    [
        ({"semantic": above(1, 2, 1, 2, 1)}, "semantic is ahead of random by 1.4 points", ["5 paired seeds"]),
        ({"block": above(3, 3, 4, 3, 3), "semantic": above(1, 2, 1, 2, 1)}, "block is ahead of random", ["semantic"]),
        # The higher mean is within chance, the lower one is not.
        ({"block": above(9, -5, 8, -4, 9), "semantic": above(1, 2, 1, 2, 1)}, "semantic is ahead of random", []),
        ({"semantic": above(-1, -2, -1, -2, -1)}, "random is ahead of all others", ["semantic", "1.4 points"]),
        ({"semantic": above(1, -2, 1, -2, 2)}, "No row is ahead of random", ["semantic"]),
        ({"block": above(-1, -2, -1, -2, -1), "semantic": above(1, -2, 1, -2, 2)}, "No row", ["behind it: block"]),
    ],
)
def test_the_verdict_follows_the_figures(rows: dict[str, list[float]], begins: str, holds: list[str]) -> None:
    said = verdict(summary(runs(random=RANDOM, **rows)))
    assert said is not None and said.startswith(begins)
    assert [text for text in holds if text not in said] == []
    assert "probe" in said  # before k-NN, after fine-tuning


def test_rows_with_fewer_seeds_are_not_judged() -> None:
    """Their intervals may be narrow by chance, and what five pairs say is not hidden behind one."""
    every = runs(random=RANDOM, semantic=above(1, 2, 1, 2, 1), lucky=[57.0, 59.1], once=[70.0])
    said = verdict(summary(every))
    assert said is not None and said.startswith("semantic is ahead of random by 1.4 points")
    assert "lucky" not in said and "once" not in said and "2 rows" in said


def test_with_one_seed_nothing_is_said_of_chance() -> None:
    found = summary(runs(random=RANDOM[:1], semantic=[53.0]))
    assert difference(found[1], "probe_top1") == (3.0, None, None, 1)
    said = verdict(found)
    assert said is not None and "3.0 points" in said and "above random" in said and "chance" in said
    assert verdict(summary(runs(random=RANDOM))) is None
    assert "is level with random" in str(verdict(summary(runs(random=[50.0], semantic=[50.04]))))


def test_equal_differences_are_not_beyond_chance() -> None:
    for points, where in ((2.0, "2.0 points"), (-2.0, "2.0 points"), (0.0, "level with")):
        found = summary(runs(random=RANDOM, semantic=above(*[points] * 5)))
        said = str(verdict(found))
        assert "ahead" not in said and where in said and "5 equal differences" in said
        assert "5 equal pairs" in tables(found)[0].rows[1][3]


def test_figures_are_rounded_once_and_zero_has_no_minus() -> None:
    """36.44996 is 36.4: rounded to three digits on the way it would be 36.5."""
    found = summary(runs(random=[36.44992, 36.45], semantic=[36.40, 36.46]))
    cells = {line[0]: line for line in tables(found)[0].rows}
    assert cells["random"][2] == "36.4" and cells["semantic"][3].startswith("+0.0 (")
    said = str(verdict(found))
    assert "+0.0 points" in said and "-0.0" not in said


def test_a_row_of_equal_differences_hides_no_other() -> None:
    """Which is behind, though nothing is known of the one that is as good to the digit."""
    said = str(verdict(summary(runs(random=RANDOM, same=RANDOM, block=above(-1, -2, -1, -2, -1)))))
    assert said.startswith("random is ahead of") and "block" in said and "same" in said and "1.4 points" in said


def test_random_is_not_called_ahead_of_rows_that_are_not_judged() -> None:
    said = str(verdict(summary(runs(random=RANDOM, block=above(-1, -2, -1, -2, -1), high=[70.0, 72.0]))))
    assert "all others" not in said and "random is ahead" in said and "One row has fewer seeds" in said


def test_pairs_are_of_the_same_seed_alone() -> None:
    found = summary(runs(random=RANDOM, semantic=[51.0, 53.0]))
    assert found[1]["seeds"] == 2 and found[1]["probe_top1_difference"]["pairs"] == 2
    assert found[1]["probe_top1_difference"]["mean"] == 1.0 and found[1]["probe_top1"] == 52.0


def test_figures_stand_in_files_table_and_page(tmp_path: Path) -> None:
    every = runs(random=RANDOM, semantic=above(1, 2, 1, 2, 1))
    write_end(tmp_path, every, {"method": "paired"})
    said = verdict(summary(every))
    found = CompareResult.of(tmp_path)
    assert found.verdict == said and found.runs == every and found.rows is not None
    assert found.rows[1]["probe_top1_difference"]["low"] == pytest.approx(0.72, abs=0.005)
    table = tables(found.rows)[0]
    assert "+1.4 (0.7 to 2.1)" in table.rows[1] and "3.5 min" in table.rows[0]
    assert "+1.4 (0.7 to 2.1)" in (tmp_path / "results.md").read_text()
    page = write_report(tmp_path).read_text()
    first = page[page.index('class="verdict"') :]
    assert first[: first.index("</p>")].endswith(str(said))
    assert "+1.4 (0.7 to 2.1)" in page and (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
