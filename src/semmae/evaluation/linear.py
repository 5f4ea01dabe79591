"""The fast linear probe: heads on features that were computed once.

Notable here:
- heads of many learning rates are columns of one matrix and see the same batches, so that a sweep is one
  program; DINOv2 (arXiv 2304.07193) trains its classifiers side by side likewise;
- the rate is chosen on training images held out, never on those the encoder is measured on;
- the gradient is written down, softmax minus truth: a step is two matrix products;
- heads start at zero, for the problem is convex: the order of the batches is all that is random.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semmae.evaluation.accuracy import class_ranks, percent
from semmae.models.head import HeadSpec, LinearHead
from semmae.options.probe import USUAL_EPOCHS
from semmae.progress import Progress

# Weight decay is not swept: on 25,000 images logistic regression gained from ever less of it (docs/probe.md).
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
BATCH = 256
MOMENTUM = 0.9
SCORES = 2**26  # logits held at once at most: 256 MiB of float32


class TrainedHead(NamedTuple):
    """A head, and how its learning rate was chosen."""

    head: LinearHead  # on the CPU, in eval mode
    rate: float
    sweep: list[tuple[float, float]]  # rate, top-1 in percent on held-out training images; empty where none was chosen


class Heads(NamedTuple):
    """H linear heads on the same inputs."""

    weight: Tensor  # (C, H, K)
    bias: Tensor  # (H, K)

    def logits(self, inputs: Tensor) -> Tensor:
        """Inputs (B, C) → (B, H, K)."""
        flat = torch.addmm(self.bias.flatten(), inputs, self.weight.flatten(1))
        return flat.view(len(inputs), *self.bias.shape)


@torch.no_grad()
def probe_features(
    features: Tensor,
    targets: Tensor,
    spec: HeadSpec,
    held_out: Sequence[int],
    *,
    rates: Sequence[float] = RATES,
    epochs: int = USUAL_EPOCHS["features"],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TrainedHead:
    """Choose a learning rate on held-out training images, then train a head with it on all of them.

    The training images' features, float (N, C), pooled as `spec` says, go to `device` as a whole; targets are
    integers (N,). The rate is chosen on the rows `held_out`, the lowest of those equally good; a single one is taken
    as it is, and nothing held out. So many epochs take the choice and again the head itself; `seed` is of the order
    of batches.
    """
    features, targets = features.to(device), targets.to(device).long()
    head = LinearHead(spec).to(device).eval()
    head.standardise_by(features)
    everything = torch.arange(len(features))
    sweep: list[tuple[float, float]] = []
    rate = rates[0]
    if len(rates) > 1:
        out = torch.tensor(held_out)
        kept = everything[~torch.isin(everything, out)]
        tried = train_heads(head, features, targets, kept, rates, epochs=epochs, seed=seed, label="learning rates")
        sweep = list(zip(rates, _top1(tried, head, features, targets, out), strict=True))
        rate = max(sweep, key=lambda tried: (tried[1], -tried[0]))[0]
    chosen = train_heads(head, features, targets, everything, [rate], epochs=epochs, seed=seed, label="linear head")
    head.linear.weight.copy_(chosen.weight[:, 0].T)
    head.linear.bias.copy_(chosen.bias[0])
    return TrainedHead(head.cpu(), rate, sweep)


def probe_folds(features: Tensor, targets: Tensor, folds: Sequence[Sequence[int]], *, seed: int = 0) -> Tensor:
    """How many classes come before the true one, int64 (N,): every image classified by a head that has not seen it.

    Features are float (N, C), targets integers (N,), folds the rows of each part; a head learns from all parts but one,
    its rate chosen on the next one.
    """
    spec = HeadSpec(features.shape[1], tuple(map(str, range(int(targets.max()) + 1))))
    ranks = torch.empty_like(targets, dtype=torch.int64)
    for index, asked in enumerate(folds):
        kept = [row for other in (*folds[index + 1 :], *folds[:index]) for row in other]
        head = probe_features(
            features[kept], targets[kept], spec, range(len(folds[(index + 1) % len(folds)])), seed=seed
        ).head
        ranks[asked] = class_ranks(head.logits(features[asked]).detach(), targets[asked])
    return ranks


@torch.no_grad()
def train_heads(
    head: LinearHead,
    features: Tensor,
    targets: Tensor,
    rows: Tensor,
    rates: Sequence[float],
    *,
    epochs: int,
    seed: int,
    label: str = "",
    batch: int = BATCH,
) -> Heads:
    """One head for each learning rate, by stochastic gradient descent with momentum and a cosine to zero.

    They learn from `rows`, int64 (M,) on the CPU, of features (N, C) and targets, int64 (N,). `head` gives the
    classes, and standardises; it is not changed. `seed` is of the order of rows, of which a step takes `batch`.
    """
    classes = len(head.spec.classes)
    together = max(1, SCORES // (batch * classes))
    groups = [rates[start : start + together] for start in range(0, len(rates), together)]
    found = []
    with Progress(epochs * len(groups), "epochs", label) as progress:
        for group in groups:
            order = torch.Generator().manual_seed(seed)
            scale = torch.tensor(group, device=features.device)[:, None]  # (H, 1)
            heads, speeds = _zeros(features, len(group), classes), _zeros(features, len(group), classes)
            for epoch in range(epochs):
                batches = torch.split(rows[torch.randperm(len(rows), generator=order)].to(features.device), batch)
                for number, chosen in enumerate(batches):
                    done = (epoch + number / len(batches)) / epochs
                    rate = scale * 0.5 * (1 + math.cos(math.pi * done))
                    _step(heads, speeds, head.norm(features[chosen]), targets[chosen], rate)
                progress.update()
            found.append(heads)
    return Heads(torch.cat([heads.weight for heads in found], 1), torch.cat([heads.bias for heads in found]))


def _zeros(features: Tensor, heads: int, classes: int) -> Heads:
    return Heads(features.new_zeros(features.shape[1], heads, classes), features.new_zeros(heads, classes))


def _step(heads: Heads, speeds: Heads, inputs: Tensor, targets: Tensor, rate: Tensor) -> None:
    """One step of every head in place: mean cross-entropy of inputs (B, C), classes (B,); rates (H, 1)."""
    slope = heads.logits(inputs).softmax(-1)  # (B, H, K)
    slope[torch.arange(len(inputs)), :, targets] -= 1
    slope /= len(inputs)
    speeds.weight.flatten(1).mul_(MOMENTUM).addmm_(inputs.T, slope.flatten(1))
    speeds.bias.mul_(MOMENTUM).add_(slope.sum(0))
    heads.weight.sub_(rate * speeds.weight)
    heads.bias.sub_(rate * speeds.bias)


def _top1(heads: Heads, head: LinearHead, features: Tensor, targets: Tensor, rows: Tensor) -> list[float]:
    """How often each head is right on these rows, in percent."""
    size = max(1, SCORES // heads.bias.numel())
    right = []
    for chosen in torch.split(rows.to(features.device), size):
        logits, truths = heads.logits(head.norm(features[chosen])), targets[chosen]
        right.append(torch.stack([class_ranks(scores, truths) == 0 for scores in logits.unbind(1)]))
    return [percent(hits) for hits in torch.cat(right, 1)]
