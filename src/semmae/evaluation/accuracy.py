"""How often images are classified rightly: what every protocol of classes reports, and how sure it is.

Notable here:
- the true class's rank among the scores says all: top-1, top-5 and each class's recall come from it, and it
  is one number an image, where scores of a million images and a thousand classes are 4 GB;
- of classes with equal scores the lower one leads, on every machine;
- the interval of a share is Wilson's (1927): it stays within 0 and 100 and holds for few images and for figures near
  100.
"""

from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from semmae.errors import UserError

CONFIDENCE = 0.95
_TWO_SIDED = 1.96  # standard deviations either side of it


def class_report(scores: Tensor, targets: Tensor) -> dict[str, Any]:
    """`rank_report` of scores (N, K), logits or probabilities, and true classes, integers (N,) in [0, K)."""
    return rank_report(class_ranks(scores, targets), targets, scores.shape[1])


def rank_report(ranks: Tensor, targets: Tensor, num_classes: int) -> dict[str, Any]:
    """Figures in percent, from how many classes come before the true one, integers (N,), and true classes (N,).

    Each with its "…_low" and "…_high", between which it lies with 95 % confidence (of the images as drawn, not of
    the training's seed): "top1"; "top5", 100 where there are five classes or fewer; "mean_class", the mean of the
    classes' recalls, in which rare classes count as much as frequent ones. And "per_class", the list of K recalls,
    None for a class without images.
    """
    assert len(ranks) == len(targets) > 0, "one rank for each image, and at least one image"
    right = ranks == 0
    occurring = torch.bincount(targets.long(), minlength=num_classes).double()
    hits = torch.bincount(targets[right].long(), minlength=num_classes).double()
    recalls = 100 * hits / occurring
    known = occurring > 0
    return {
        **_with_interval("top1", right),
        **_with_interval("top5", ranks < 5),
        "mean_class": recalls[known].mean().item(),
        **dict(zip(("mean_class_low", "mean_class_high"), mean_interval(hits[known], occurring[known]), strict=True)),
        "per_class": [recall if count else None for recall, count in zip(recalls.tolist(), occurring, strict=True)],
    }


def class_figures(ranks: Tensor, targets: Tensor, num_classes: int) -> dict[str, Any]:
    """What a protocol reports: `rank_report` without the classes one by one, and of how many images and classes."""
    report = rank_report(ranks, targets, num_classes)
    del report["per_class"]  # by name in a table of its own
    return {**report, "images": len(ranks), "classes": num_classes}


def class_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the true one: int64 (N,) from scores (N, K) and classes (N,)."""
    # Compared with a score that is not finite, every class would come first.
    broken = int((~scores.isfinite().all(1)).sum())
    if broken:
        raise UserError(
            f"the scores of {broken} of {len(scores)} images are not finite; "
            "the weights are broken (the training diverged?): lower its learning rate"
        )
    return ranks_of(scores, targets)


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """`class_ranks` of scores known to be finite."""
    own = scores.gather(1, targets.long()[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Between which percentages a share lies with 95 % confidence, of which `hits` of `count` were seen."""
    interval = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mean_interval(hits: Tensor, counts: Tensor) -> tuple[float, float]:
    """Between which percentages the mean of the classes' recalls lies with 95 % confidence.

    `hits` of `counts` images of each class, (K,), were right. Each class is a draw of its own, so that the variances
    add up. Two more hits and two more misses (Agresti and Coull, 1998) keep a class that is always right, or has a
    single image, from seeming certain.
    """
    share = (hits + 2) / (counts + 4)
    error = _TWO_SIDED * float((share * (1 - share) / counts).sum().sqrt()) / len(counts)
    mean = float((hits / counts).mean())
    return 100 * max(0.0, mean - error), 100 * min(1.0, mean + error)


def _with_interval(name: str, right: Tensor) -> dict[str, float]:
    low, high = wilson_interval(int(right.sum()), len(right))
    return {name: percent(right), f"{name}_low": low, f"{name}_high": high}


def confusion_matrix(pred: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """How often which class was taken for which: int64 (K, K), rows are true classes, columns those predicted."""
    counts: Tensor = multiclass_confusion_matrix(pred.long(), targets.long(), num_classes)
    return counts


def percent(hits: Tensor) -> float:
    """The share of true entries."""
    return 100 * hits.double().mean().item()
