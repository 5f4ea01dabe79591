"""The fast linear probe: each head as torch trains it, all heads as one, the choice blind to what is measured."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from semmae.evaluation import linear
from semmae.evaluation.linear import probe_features, probe_folds, train_heads
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.vit import Features

CLASSES, WIDTH = 5, 12
SPEC = HeadSpec(WIDTH, tuple("abcde"))


def features(count: int, seed: int, noise: float = 2.0) -> tuple[Tensor, Tensor]:
    """Clusters (count, 12), one per class, overlapping, of unequal scale per channel; and their classes."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    points = centres[labels] + noise * torch.randn(count, WIDTH, generator=random)
    return points * torch.logspace(-2, 2, WIDTH) + 3, labels


def standardising(vectors: Tensor) -> LinearHead:
    head = LinearHead(SPEC).eval()
    head.standardise_by(vectors)
    return head


def slow_head(inputs: Tensor, targets: Tensor, rate: float, epochs: int, seed: int) -> nn.Linear:
    """One head by torch's own layer, loss, gradient and optimiser."""
    layer = nn.Linear(WIDTH, CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(inputs) / 32)
    for epoch in range(epochs):
        for number, rows in enumerate(torch.randperm(len(inputs), generator=order).split(32)):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * (epoch + number / steps) / epochs)) / 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return layer


def test_every_head_is_what_torch_trains() -> None:
    vectors, targets = features(100, seed=0)
    head, rates = standardising(vectors), [0.01, 0.3, 3.0]
    rows = torch.arange(100)
    heads = train_heads(head, vectors, targets, rows, rates, epochs=3, seed=7, batch=32)
    inputs = head.norm(vectors)
    for number, rate in enumerate(rates):
        slow = slow_head(inputs, targets, rate, epochs=3, seed=7)
        torch.testing.assert_close(heads.weight[:, number], slow.weight.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias[number], slow.bias, rtol=1e-4, atol=1e-5)


def test_heads_in_groups_are_the_same_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, targets = features(100, seed=0)
    head, rows = standardising(vectors), torch.arange(100)
    rates = [0.01, 0.1, 1.0]
    whole = train_heads(head, vectors, targets, rows, rates, epochs=2, seed=0, batch=32)
    monkeypatch.setattr(linear, "SCORES", 2 * 32 * CLASSES)  # two heads at a time
    grouped = train_heads(head, vectors, targets, rows, rates, epochs=2, seed=0, batch=32)
    torch.testing.assert_close(grouped.weight, whole.weight)
    torch.testing.assert_close(grouped.bias, whole.bias)


def test_reaches_logistic_regression() -> None:
    """The convex optimum, up to what stopping early is worth."""
    (train, labels), (test, truths) = features(1000, seed=0), features(1000, seed=1)
    probed = probe_features(train, labels, SPEC, range(0, 1000, 10), epochs=50)
    with torch.no_grad():
        found = float((probed.head.logits(test).argmax(1) == truths).float().mean())
    norm = standardising(train).norm
    reference = LogisticRegression(max_iter=1000).fit(norm(train).numpy(), labels.numpy())
    best = reference.score(norm(test).numpy(), truths.numpy())
    assert 0.5 < best < 0.98, "neither hopeless nor trivial"
    assert found == pytest.approx(best, abs=0.015)


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    train, labels = features(300, seed=0)
    plain = probe_features(train, labels, SPEC, range(30), rates=[0.1], epochs=3)
    moved = probe_features(50 * train - 7, labels, SPEC, range(30), rates=[0.1], epochs=3)
    with torch.no_grad():
        torch.testing.assert_close(moved.head.logits(50 * train - 7), plain.head.logits(train), rtol=1e-3, atol=1e-3)


def test_the_rate_is_chosen_on_the_rows_held_out_alone() -> None:
    """With their classes shuffled no rate is good; with those of the others shuffled none learns anything."""
    train, labels = features(600, seed=0)
    out = range(500, 600)
    honest = probe_features(train, labels, SPEC, out, epochs=5)
    assert max(top1 for _, top1 in honest.sweep) > 50
    assert honest.rate == max(honest.sweep, key=lambda pair: (pair[1], -pair[0]))[0]
    shuffled = labels.clone()
    shuffled[500:] = labels[500:].roll(37)
    blind = probe_features(train, shuffled, SPEC, out, epochs=5)
    assert max(top1 for _, top1 in blind.sweep) < 40


def test_the_chosen_head_learns_from_all_rows() -> None:
    train, labels = features(200, seed=0)
    chosen = probe_features(train, labels, SPEC, range(0, 200, 4), epochs=3, seed=5)
    alone = probe_features(train, labels, SPEC, [], rates=[chosen.rate], epochs=3, seed=5)
    assert alone.sweep == []
    assert torch.equal(chosen.head.linear.weight, alone.head.linear.weight)


def test_the_seed_decides_everything() -> None:
    train, labels = features(300, seed=0)
    heads = [probe_features(train, labels, SPEC, range(30), epochs=2, seed=seed).head for seed in (3, 3, 4)]
    weights = [head.linear.weight for head in heads]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_head_pools_as_it_is_given() -> None:
    tokens = Features(torch.randn(4, WIDTH), torch.randn(4, 9, WIDTH))
    for pooling, pooled in (("cls", tokens.cls), ("mean", tokens.patches.mean(1))):
        head = LinearHead(HeadSpec(WIDTH, tuple("abcde"), pooling)).eval()
        assert torch.equal(head(tokens), head.logits(pooled))


def test_no_fold_is_classified_by_a_head_that_has_seen_it() -> None:
    """Features that only name the image say nothing of another; those of the class say all."""
    targets = torch.arange(40) % 2
    parts = [list(range(first, 40, 4)) for first in (0, 1, 2, 3)]
    parts = [[*parts[0][:5], *parts[1][5:]], [*parts[1][:5], *parts[0][5:]], parts[2], parts[3]]
    names = torch.eye(40)
    assert (probe_folds(names, targets, parts) == 0).float().mean() < 0.7
    assert (probe_folds(torch.cat([names, targets[:, None] * 3.0], 1), targets, parts) == 0).all()
