"""What a classifier says, image by image: as from all its scores at once, which are never there at once."""

import pytest
import torch
from refusals import refused

from semmae.evaluation import classifying
from semmae.evaluation.accuracy import class_report, rank_report
from semmae.evaluation.classifying import classify_features
from semmae.models.head import HeadSpec, LinearHead

CLASSES = 7


def probed(count: int = 50) -> tuple[LinearHead, torch.Tensor, torch.Tensor]:
    head = LinearHead(HeadSpec(6, tuple("abcdefg"))).eval()
    torch.nn.init.normal_(head.linear.weight)
    return head, torch.randn(count, 6), torch.randint(CLASSES, (count,))


def test_in_blocks_it_is_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features, targets = probed()
    sizes = []
    real = head.logits
    monkeypatch.setattr(head, "logits", lambda vectors: sizes.append(len(vectors)) or real(vectors))
    monkeypatch.setattr(classifying, "SCORES", 8 * CLASSES + 3)
    chosen, ranks = classify_features(head, features, targets)
    assert sizes == [8] * 6 + [2]
    with torch.no_grad():
        scores = real(features)
    assert torch.equal(chosen, scores.argmax(1))
    assert rank_report(ranks, targets, CLASSES) == class_report(scores, targets)


def test_broken_scores_are_refused() -> None:
    head, features, targets = probed()
    features[33] = torch.nan
    with refused("not finite"):
        classify_features(head, features, targets)
