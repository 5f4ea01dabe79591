"""Accuracy: equal to torchmetrics, scikit-learn and slow counts; ties, absent classes and broken scores."""

import math

import pytest
import torch
from refusals import refused
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_accuracy

from semmae.evaluation.accuracy import (
    class_ranks,
    class_report,
    confusion_matrix,
    mean_interval,
    rank_report,
    wilson_interval,
)

CLASSES = 8


def guesses(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that often point to the right one of 8 classes, the last of which never occurs."""
    noise = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES - 1, (count,), generator=noise) ** 2 % (CLASSES - 1)  # not equally frequent
    scores = torch.randn(count, CLASSES, generator=noise)
    scores[torch.arange(count), targets] += 1.0
    return scores, targets


def test_equals_torchmetrics_and_scikit_learn() -> None:
    scores, targets = guesses()
    report = class_report(scores, targets)
    for name, top in (("top1", 1), ("top5", 5)):
        expected = multiclass_accuracy(scores, targets, CLASSES, average="micro", top_k=top)
        assert report[name] == pytest.approx(100 * float(expected))
    pred = scores.argmax(1)
    occurring = sorted(set(targets.tolist()))
    recalls = metrics.recall_score(targets, pred, labels=occurring, average=None)
    assert [report["per_class"][label] for label in occurring] == pytest.approx(100 * recalls)
    assert report["mean_class"] == pytest.approx(100 * recalls.mean())
    assert report["mean_class"] != pytest.approx(report["top1"], abs=0.1), "classes are not equally frequent"
    assert report["per_class"][-1] is None
    assert report["top1_low"] < report["top1"] < report["top1_high"]


def test_the_confusion_matrix_is_scikit_learns() -> None:
    scores, targets = guesses()
    counts = confusion_matrix(scores.argmax(1), targets, CLASSES)
    expected = metrics.confusion_matrix(targets, scores.argmax(1), labels=range(CLASSES))
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (7, 20), (20, 20), (83_100, 100_000)])
def test_the_interval_holds_what_the_data_do_not_refute(hits: int, count: int) -> None:
    """Wilson's: the shares p from which the seen one is no more than 1.96 of p's own deviations away."""
    low, high = (bound / 100 for bound in wilson_interval(hits, count))
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            distance = abs(hits / count - bound) / math.sqrt(bound * (1 - bound) / count)
            assert distance == pytest.approx(1.959964, abs=1e-4)
    assert 0 <= low <= hits / count <= high <= 1
    assert high > low


def test_of_equal_scores_the_lower_class_leads() -> None:
    level = torch.zeros(7, 7)
    assert class_ranks(level, torch.arange(7)).tolist() == list(range(7))
    report = class_report(level, torch.arange(7))
    assert report["top1"] == pytest.approx(100 / 7)
    assert report["top5"] == pytest.approx(500 / 7)


def test_five_classes_or_fewer_make_top5_certain() -> None:
    assert class_report(torch.randn(20, 4), torch.randint(4, (20,)))["top5"] == 100


def test_scores_that_are_not_finite_are_no_result() -> None:
    """Compared with NaN, nothing is larger: every image would count as right."""
    scores, targets = guesses(10)
    scores[3, 1] = torch.nan
    with refused("1 of 10 images"):
        class_report(scores, targets)


def test_ranks_alone_give_the_same() -> None:
    scores, targets = guesses()
    assert rank_report(class_ranks(scores, targets), targets, CLASSES) == class_report(scores, targets)


def test_the_mean_of_classes_lies_in_its_interval_as_often_as_given() -> None:
    """Draws of 8 classes, from 3 to 60 images each, of known recalls: 95 % of the intervals hold their mean."""
    generator = torch.Generator().manual_seed(0)
    recalls, counts = torch.linspace(0.1, 0.95, 8).double(), torch.tensor([3, 5, 8, 13, 20, 30, 45, 60])
    held = 0
    for _ in range(400):
        hits = torch.stack([
            (torch.rand(int(count), generator=generator, dtype=torch.float64) < recall).sum()
            for recall, count in zip(recalls, counts, strict=True)
        ])  # fmt: skip
        low, high = mean_interval(hits.double(), counts.double())
        held += low <= 100 * float(recalls.mean()) <= high
    assert held / 400 > 0.94
    low, high = mean_interval(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert low < 60 and high == 100  # two images that were classified rightly make nothing certain
