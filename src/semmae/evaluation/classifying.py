"""What a classifier predicts of every image: its first choice, and how many classes come before the true one.

Two numbers an image: scores of a million images and ten thousand classes would be 40 GB.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semmae.data.loaders import normalise
from semmae.evaluation.accuracy import class_ranks
from semmae.evaluation.features import Batch, evaluating
from semmae.evaluation.linear import SCORES
from semmae.models.head import LinearHead
from semmae.progress import Progress


class Predictions(NamedTuple):
    """Of every image, int64 (N,) each: the class chosen, and the number of classes before the true one."""

    chosen: Tensor
    ranks: Tensor


@torch.inference_mode()
def classify(
    classifier: nn.Module,
    batches: Iterable[Batch],
    targets: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    label: str = "classes",
) -> Predictions:
    """Classify every image, in evaluation mode.

    The classifier, on `device`, makes logits (B, K) of images normalised by `mean` and `std`; batches have each row
    of `targets`, int64 (N,), once, in any order.
    """
    chosen, ranks = (torch.full_like(targets, -1) for _ in range(2))
    with evaluating(classifier), Progress(len(targets), label=label) as progress:
        for batch in progress.iterate(batches):
            rows = batch["row"]
            scores = classifier(normalise(batch["image"].to(device, non_blocking=True), mean, std)).float().cpu()
            chosen[rows], ranks[rows] = scores.argmax(1), class_ranks(scores, targets[rows])
            progress.update(len(rows))
    assert (chosen >= 0).all(), "a row never came"
    return Predictions(chosen, ranks)


@torch.inference_mode()
def classify_features(head: LinearHead, features: Tensor, targets: Tensor) -> Predictions:
    """Classify features (N, C), pooled as the head wants them, by a linear head in eval mode, block by block."""
    size = max(1, SCORES // len(head.spec.classes))
    found = []
    for vectors, truths in zip(torch.split(features, size), torch.split(targets, size), strict=True):
        scores = head.logits(vectors)
        found.append((scores.argmax(1), class_ranks(scores, truths)))
    chosen, ranks = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Predictions(chosen, ranks)
