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

    Args:
        classifier: normalised images (B, 3, S, S) → logits (B, K); on `device`.
        batches: "image" uint8 (B, 3, S, S) and "row" int64 (B,), each row once, in any order.
        targets: true classes by row, int64 (N,).
        mean: of the normalisation, one number a channel, for pixels in 0 to 1.
        std: likewise.
        device: where the classifier runs.
        label: what the progress line says is being done.

    Raises:
        UserError: a score is not finite.
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
    """Classify features (N, C) by a linear head, pooled as it wants them, block by block.

    Args:
        head: in eval mode, on the features' device.
        features: of every image.
        targets: true classes, int64 (N,).

    Raises:
        UserError: a score is not finite.
    """
    size = max(1, SCORES // len(head.spec.classes))
    found = []
    for vectors, truths in zip(torch.split(features, size), torch.split(targets, size), strict=True):
        scores = head.logits(vectors)
        found.append((scores.argmax(1), class_ranks(scores, truths)))
    chosen, ranks = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Predictions(chosen, ranks)
