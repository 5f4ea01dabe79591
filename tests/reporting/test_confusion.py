"""The confusion picture: rows add up, the right classes are chosen, numbers stand where they belong."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from semmae.reporting import confusion, results
from semmae.reporting.confusion import confusion_picture, most_confused
from semmae.reporting.results import draw_confusion, write_per_class


def drawn(monkeypatch: pytest.MonkeyPatch, counts: torch.Tensor, path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """What reaches the figure: shares, labels of rows and of columns."""
    seen = []
    draw = confusion._draw

    def spy(shares, rows, columns, title):
        seen.append((shares, list(rows), list(columns)))
        return draw(shares, rows, columns, title)

    monkeypatch.setattr(confusion, "_draw", spy)
    confusion_picture(counts, [f"class {number}" for number in range(len(counts))], path)
    return seen[0]


def test_shares_are_of_the_true_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = torch.tensor([[3, 1, 0], [10, 30, 0], [0, 0, 0]])
    shares, rows, columns = drawn(monkeypatch, counts, tmp_path / "a.png")
    assert np.allclose(shares[:2], [[75, 25, 0], [25, 75, 0]])
    assert np.isnan(shares[2]).all(), "a class without images has no shares"
    assert rows == columns == ["class 0", "class 1", "class 2"]
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_of_many_classes_the_most_confused_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = 50 * torch.eye(60, dtype=torch.int64)
    for first in range(20, 50, 2):  # fifteen pairs, the first five confused less
        counts[first, first + 1] = 3 if first < 30 else 9
    counts[30, 59] = 1
    shares, rows, columns = drawn(monkeypatch, counts, tmp_path / "a.png")
    assert rows == [f"class {number}" for number in range(30, 50)]
    assert columns == [*rows, "all others"]
    assert np.allclose(shares.sum(1), 100)
    assert shares[0, -1] == pytest.approx(100 / 60)  # of 50 right, 9 and 1


@pytest.mark.filterwarnings("error")
def test_letters_without_a_glyph_are_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No box stands for them, nor does the library warn of its font on the terminal."""
    names = ["a\x1bb\n\t\x7f\x9b", "猫", "\U0001f9ff", "\udcff", "$x_1$", "W" * 40, "ä × é", "\u202eb", "", "\x07" * 30]
    figures: list[Figure] = []
    draw = confusion._draw
    monkeypatch.setattr(confusion, "_draw", lambda *args: figures.append(draw(*args)) or figures[0])
    confusion_picture(torch.eye(len(names), dtype=torch.int64), names, tmp_path / "a.png")
    for axis in (figures[0].axes[0].xaxis, figures[0].axes[0].yaxis):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert shown[:5] == [r"a\x1bb\n\t\x7f\x9b", r"\u732b", r"\U0001f9ff", r"\xff", "$x_1$"]
        assert shown[5:9] == ["W" * 23 + "…", "ä × é", r"\u202eb", ""]
        assert all(name.isprintable() and len(name) <= 24 for name in shown)


def test_the_most_confused_come_in_pairs() -> None:
    counts = np.zeros((6, 6), dtype=np.int64)
    counts[4, 1], counts[1, 4], counts[2, 3] = 2, 2, 3
    assert most_confused(counts, 2) == [1, 4]  # four confusions between them, three between 2 and 3
    assert most_confused(counts, 4) == [1, 2, 3, 4]


def test_every_class_has_its_line(tmp_path: Path) -> None:
    targets, chosen = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 0, 1, 2, 1, 0, 0])
    write_per_class(tmp_path / "a.csv", ["coat, long", "hat", "scarf"], chosen, targets)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["class"] for row in rows] == ["coat, long", "hat", "scarf"]
    assert [tuple(row.values())[1:] for row in rows] == [
        ("4", "4", "100.00", "", "0"),
        ("5", "2", "40.00", "coat, long", "2"),
        ("0", "0", "", "", "0"),
    ]


def test_of_equally_frequent_mistakes_the_lower_class_is_named(tmp_path: Path) -> None:
    write_per_class(tmp_path / "a.csv", ["a", "b", "c"], torch.tensor([2, 1, 1, 2]), torch.tensor([0, 0, 0, 0]))
    assert next(csv.DictReader((tmp_path / "a.csv").open()))["most_taken_for"] == "b"


def test_a_matrix_that_would_fill_the_memory_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = torch.tensor([0, 1]), torch.tensor([0, 0])
    draw_confusion(tmp_path / "few.png", ["a", "b"], *answers)
    assert (tmp_path / "few.png").is_file()
    monkeypatch.setattr(results, "confusion_matrix", lambda *_: pytest.fail("K x K counts were made"))
    draw_confusion(tmp_path / "many.png", [str(number) for number in range(results.MOST_IN_PICTURE + 1)], *answers)
    assert not (tmp_path / "many.png").exists()
