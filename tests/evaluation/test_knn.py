"""k-NN: equal to a slow loop and to scikit-learn, deterministic under ties, honest about itself."""

import decimal
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from semmae.evaluation import knn
from semmae.evaluation.knn import NO_VOTE, knn_accuracy, knn_ranks, knn_scores

CLASSES = 7


def features(count: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Noisy clusters (count, 16), one per class and overlapping, and their classes."""
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=noise)
    return centres[labels] + 2.5 * torch.randn(count, 16, generator=noise), labels


def slow_scores(train, labels, test, classes, k, temperature, skip_self=False) -> list[list[float]]:
    """Votes by the definition, one query and one neighbour at a time, shares of the sum."""
    rows = []
    for number, query in enumerate(test.tolist()):
        near = []
        for row, other in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(query, other, strict=True))
            near.append((-dot / (math.hypot(*query) * math.hypot(*other)), row))
        near = sorted(pair for pair in near if not (skip_self and pair[1] == number))[:k]
        votes = [0.0] * classes
        for distance, row in near:
            votes[int(labels[row])] += math.exp(-distance / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return rows


@pytest.mark.parametrize("skip_self", [False, True])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (13, 1.0)])
def test_equals_the_definition(k: int, temperature: float, skip_self: bool) -> None:
    train, labels = features(60, seed=0)
    test = train if skip_self else features(25, seed=1)[0]
    options = {"num_classes": CLASSES, "k": k, "temperature": temperature, "leave_one_out": skip_self}
    scores = knn_scores(train, labels, test, block=8, **options)
    expected = slow_scores(train, labels, test, CLASSES, k, temperature, skip_self)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_equals_scikit_learn() -> None:
    (train, labels), (test, truths) = features(500, seed=0), features(200, seed=1)
    reference = KNeighborsClassifier(
        n_neighbors=20,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    ).fit(train.numpy(), labels.numpy())
    shares = reference.predict_proba(test.numpy())
    scores = knn_scores(train, labels, test, num_classes=CLASSES)
    torch.testing.assert_close(scores.double(), torch.from_numpy(shares).double(), rtol=1e-4, atol=1e-5)
    accuracy = knn_accuracy(train, labels, test, truths, num_classes=CLASSES)
    assert accuracy["top1"] == pytest.approx(100 * reference.score(test.numpy(), truths.numpy()))
    first_five = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    hits = (first_five == truths.numpy()[:, None]) & (np.take_along_axis(shares, first_five, 1) > 0)
    assert accuracy["top5"] == pytest.approx(100 * hits.any(1).mean())
    assert 100 / CLASSES < accuracy["top1"] < accuracy["top5"] < 100, "neither chance nor certainty"


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, truths) = features(90, seed=0), features(50, seed=1)
    whole = knn_accuracy(train, labels, test, truths, num_classes=CLASSES)
    assert knn_accuracy(train, labels, test, truths, num_classes=CLASSES, block=7) == whole
    monkeypatch.setattr(knn, "SIMILARITIES", 200)  # two queries at a time
    assert knn_accuracy(train, labels, test, truths, num_classes=CLASSES) == whole


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    nearest = knn._nearest

    def spy(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append(similarity.numel())
        return nearest(similarity, k)

    monkeypatch.setattr(knn, "_nearest", spy)
    monkeypatch.setattr(knn, "SIMILARITIES", 1000)
    train, labels = features(300, seed=0)
    knn_scores(train, labels, train, num_classes=CLASSES, leave_one_out=True)
    assert max(sizes) <= 1000


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest new tensor has; views of known ones are not new."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.numel())
        return found


def test_beside_the_features_only_a_block_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy of them, be it normalised or one of truth values: so a million of them fit where one does."""
    monkeypatch.setattr(knn, "SIMILARITIES", 4000)
    train, labels = features(2000, seed=0)
    train, test = train.repeat(1, 8), torch.randn(50, 128)  # 256,000 numbers
    with Largest(train, test) as seen:
        knn_accuracy(train, labels, test, torch.zeros(50, dtype=torch.int64), num_classes=CLASSES)
    assert 4000 <= seen.largest <= 4000 + 2000  # two queries' similarities, and numbers one an image


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at the same time, from when it is entered; views once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in (*args, *(kwargs or {}).values()):
            if isinstance(tensor, Tensor):  # what was there before is not counted
                self.known.add(tensor.untyped_storage()._cdata)
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


def test_what_is_held_at_once_is_bounded_where_all_are_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks are never held beside each other, and ties are settled in pieces."""
    block, piece, count = 400_000, 4_000, 2_000
    monkeypatch.setattr(knn, "SIMILARITIES", block)
    monkeypatch.setattr(knn, "PIECE", piece)
    train, labels = torch.ones(count, 4), torch.zeros(count, dtype=torch.int64)
    with Held() as held:
        knn_scores(train, labels, train[:400], num_classes=2)
    rows = 400 * (2 + 2 + 20 * 3) * 4  # scores of all queries, and their neighbours
    assert 4 * block <= held.most <= 4 * block + 30 * piece + 4 * 8 * count + rows


def test_ties_are_settled_alike_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = features(60, seed=0)
    train = train.round(decimals=-1).repeat(3, 1)  # few different ones, each three times or more
    whole = knn_scores(train, labels.repeat(3), train, num_classes=CLASSES, k=7)
    for piece in (1, 400, 2000):
        monkeypatch.setattr(knn, "PIECE", piece)
        assert torch.equal(knn_scores(train, labels.repeat(3), train, num_classes=CLASSES, k=7), whole)


def test_leave_one_out_excludes_oneself() -> None:
    # Every image is its own nearest, and its only other neighbour nearby is of the other class.
    angles = torch.tensor([0.0, 0.01, 2.0, 2.01])
    pairs = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 1, 0, 1])
    alone = knn_accuracy(pairs, labels, pairs, labels, num_classes=2, k=1, leave_one_out=True)
    assert alone["top1"] == 0
    assert knn_accuracy(pairs, labels, pairs, labels, num_classes=2, k=1)["top1"] == 100


def test_leave_one_out_is_right_in_later_blocks() -> None:
    train, labels = features(40, seed=0)
    options = {"num_classes": CLASSES, "k": 5, "leave_one_out": True}
    whole = knn_scores(train, labels, train, **options)
    torch.testing.assert_close(knn_scores(train, labels, train, block=7, **options), whole)


def test_k_shrinks_to_the_images_there_are() -> None:
    train, labels = features(6, seed=0)
    test, _ = features(5, seed=1)
    torch.testing.assert_close(
        knn_scores(train, labels, test, num_classes=CLASSES, k=50),
        knn_scores(train, labels, test, num_classes=CLASSES, k=6),
    )
    alone = knn_scores(train, labels, train, num_classes=CLASSES, k=50, leave_one_out=True)
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(alone.sum(1), torch.ones(6))


def test_a_class_of_one_image_can_win_and_an_empty_one_cannot() -> None:
    train = torch.eye(3)
    scores = knn_scores(train, torch.tensor([0, 0, 3]), train, num_classes=5, k=2)
    assert scores.argmax(1).tolist() == [0, 0, 3]
    assert (scores[:, [1, 2, 4]] == 0).all()


def exact_ranks(train, labels, test, truths, classes, k, temperature) -> list[int]:
    """Ranks by the definition in decimals, so that no vote underflows; of votes level in 14 digits the lower leads."""
    wide = decimal.Context(prec=14, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    found = []
    similarity = F.normalize(test, dim=1) @ train.T / train.norm(dim=1)
    for row, truth in zip(similarity.tolist(), truths.tolist(), strict=True):
        near = sorted(range(len(row)), key=lambda other: (-row[other], other))[:k]
        votes = {}
        for other in near:
            distance = wide.divide(decimal.Decimal(row[other] - row[near[0]]), decimal.Decimal(temperature))
            label = int(labels[other])
            votes[label] = wide.add(votes.get(label, decimal.Decimal(0)), wide.exp(distance))
        order = sorted(votes, key=lambda label: (votes[label], -label), reverse=True)
        found.append(order.index(truth) if truth in votes else NO_VOTE)
    return found


@pytest.mark.parametrize("classes", [2, 4, 7, 30])
@pytest.mark.parametrize("temperature", [1e-12, 1e-3, 0.07, 1.0, 1e12])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_class_without_a_vote_is_no_hit(k: int, temperature: float, classes: int) -> None:
    (train, labels), (test, truths) = features(60, 0, classes), features(25, 1, classes)
    train, test = train.sign(), test.sign()  # similarities are sixteenths: exact, and often the same
    options = {"num_classes": classes, "k": k, "temperature": temperature}
    expected = exact_ranks(train, labels, test, truths, classes, k, temperature)
    assert knn_ranks(train, labels, test, truths, block=9, **options).tolist() == expected
    accuracy = knn_accuracy(train, labels, test, truths, **options)
    assert accuracy["top5"] == pytest.approx(100 * np.mean([rank < 5 for rank in expected]))
    assert k > 1 or accuracy["top1"] == accuracy["top5"] < 100


def test_votes_at_every_temperature_are_shares() -> None:
    (train, labels), (test, _) = features(40, seed=0), features(10, seed=1)
    for temperature in (1e-320, 1e-30, 1e30, 1e300):
        scores = knn_scores(train, labels, test, num_classes=CLASSES, k=5, temperature=temperature)
        torch.testing.assert_close(scores.sum(1), torch.ones(10))


def test_ties_go_to_the_lower_row_and_the_lower_class() -> None:
    # Twelve copies of one image: any five are equally near, the first five must vote.
    copies = torch.ones(12, 4)
    labels = torch.tensor([2, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    scores = knn_scores(copies, labels, copies[:3], num_classes=3, k=5)
    torch.testing.assert_close(scores, torch.tensor([[0.2, 0.4, 0.4]]).expand(3, 3))
    # Classes 1 and 2 are level: class 1 leads.
    options = {"num_classes": 3, "k": 5}
    assert knn_accuracy(copies, labels, copies[:1], torch.tensor([1]), **options)["top1"] == 100
    assert knn_accuracy(copies, labels, copies[:1], torch.tensor([2]), **options)["top1"] == 0


def test_ties_at_the_edge_keep_the_nearer_ones() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    scores = knn_scores(train, torch.arange(4), torch.tensor([[1.0, 1.0]]), num_classes=4, k=2)
    assert (scores[0] > 0).tolist() == [True, False, True, False]


def test_length_of_features_and_a_low_temperature_are_harmless() -> None:
    (train, labels), (test, _) = features(40, seed=0), features(10, seed=1)
    scores = knn_scores(train, labels, test, num_classes=CLASSES)
    torch.testing.assert_close(knn_scores(1000 * train, labels, test / 50, num_classes=CLASSES), scores)
    torch.testing.assert_close(
        knn_scores(train, labels, test, num_classes=CLASSES, temperature=1e-6),
        knn_scores(train, labels, test, num_classes=CLASSES, k=1),
    )


def test_refusals_name_value_and_remedy() -> None:
    train, labels = features(10, seed=0)
    broken = train.clone()
    broken[3, 2] = torch.nan
    with refused("1 of 10"):
        knn_scores(broken, labels, train, num_classes=CLASSES)
    with refused("1 and 0"):
        knn_scores(train[:1], labels[:1], train[:1], num_classes=CLASSES, leave_one_out=True)
    with refused("k is 0"):
        knn_scores(train, labels, train, num_classes=CLASSES, k=0)
    for temperature in (0, math.nan):
        with refused(f"temperature is {temperature}"):
            knn_scores(train, labels, train, num_classes=CLASSES, temperature=temperature)
