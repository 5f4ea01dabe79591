"""The weighted k-nearest-neighbour classifier of InstDisc and DINO: what features know without training.

Cosine similarity to the training features; each of the k nearest votes for its class with weight
exp(similarity / temperature) (InstDisc, arXiv 1805.01978, section 3.4; DINO, arXiv 2104.14294,
section 4.1: k = 20, temperature 0.07).

Notable here:
- the result does not hang on luck: of equally near images the one with the lower row votes, of
  classes with equal votes the lower one leads, and votes are summed on the CPU in a fixed order;
- votes are compared by their logarithms, so that none is lost at a low temperature, and a class without a vote
  is no answer at any rank, however few classes there are;
- similarities are held for one block of queries at a time, and blocks shrink as the training set grows; ties are
  looked for and settled in smaller pieces of a block. Beside that nothing grows but the features themselves, of
  which no copy is made: a million of 1024 channels are 4 GB.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from semmae.errors import UserError
from semmae.evaluation.accuracy import percent, ranks_of
from semmae.options.knn import KnnRecipe

SIMILARITIES = 2**26  # held at once at most: 256 MiB of float32
PIECE = 2**20  # of them, those among which ties are settled at once; sorting takes some 25 bytes for each
NO_VOTE = torch.iinfo(torch.int64).max  # the rank of a class that no neighbour votes for: behind every other
_SHORTEST = 1e-12  # a feature of zeros is similar to nothing


def knn_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    num_classes: int,
    k: int = KnnRecipe.k,
    temperature: float = KnnRecipe.temperature,
    block: int = 1024,
    leave_one_out: bool = False,
) -> Tensor:
    """Each class's share of the votes, for each query: float32 (M, num_classes) on the CPU.

    Images with features (N, C) and classes, integers (N,), vote, on the device to compute on; `test` (M, C) are the
    queries, at most `block` at a time. The k neighbours vote, or all where there are fewer. Similarities are divided
    by the temperature: the lower, the more the nearest decide. With `leave_one_out` the queries are `train` itself,
    and no image votes for itself.
    """
    neighbours = _neighbours(train, test, k=k, block=block, leave_one_out=leave_one_out)
    assert len(train) == len(train_labels), "one class for each training image"
    labels = train_labels.cpu()
    votes = [_log_votes(near, labels[rows], num_classes, temperature) for near, rows in neighbours]
    return torch.cat([shares.softmax(1).float() for shares in votes])


def knn_ranks(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    k: int = KnnRecipe.k,
    temperature: float = KnnRecipe.temperature,
    block: int = 1024,
    leave_one_out: bool = False,
) -> Tensor:
    """How many classes get more votes than the right one, for each query: int64 (M,), 0 where it leads.

    `test_labels` (M,) are the classes of the queries; everything else is as for `knn_scores`. Where no neighbour
    votes for the right one, the rank is `NO_VOTE`.
    """
    neighbours = _neighbours(train, test, k=k, block=block, leave_one_out=leave_one_out)
    assert len(train) == len(train_labels), "one class for each training image"
    assert len(test) == len(test_labels), "one class for each query"
    labels, truths = train_labels.cpu(), test_labels.cpu()
    ranks: list[Tensor] = []
    done = 0
    for near, rows in neighbours:
        votes = _log_votes(near, labels[rows], num_classes, temperature)
        targets = truths[done : done + len(votes)]
        voted = (labels[rows] == targets[:, None]).any(1)
        ranks.append(torch.where(voted, ranks_of(votes, targets), NO_VOTE))
        done += len(votes)
    return torch.cat(ranks)


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    k: int = KnnRecipe.k,
    temperature: float = KnnRecipe.temperature,
    block: int = 1024,
    leave_one_out: bool = False,
) -> dict[str, float]:
    """How often the right class leads, and how often it is among the first five; arguments as for `knn_ranks`.

    "top1" and "top5" in percent; a class without a vote is among no five.
    """
    ranks = knn_ranks(
        train,
        train_labels,
        test,
        test_labels,
        num_classes=num_classes,
        k=k,
        temperature=temperature,
        block=block,
        leave_one_out=leave_one_out,
    )
    return {"top1": percent(ranks < 1), "top5": percent(ranks < 5)}


def _neighbours(
    train: Tensor, test: Tensor, *, k: int, block: int, leave_one_out: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities (B, k) and rows in `train` (B, k) of the nearest, block of queries by block."""
    voters = len(train) - 1 if leave_one_out else len(train)
    _check(train, test, voters, k)
    assert not leave_one_out or len(train) == len(test), "leave-one-out compares a set with itself"
    keys = train.float()  # itself where it is float32
    # Similarities are divided by the keys' lengths afterwards: keys divided before would be a second copy of them.
    lengths = _lengths(keys).clamp_min(_SHORTEST)
    size = max(1, min(block, SIMILARITIES // len(train)))
    for start in range(0, len(test), size):
        queries = F.normalize(test[start : start + size].to(keys), dim=1)
        similarity = (queries @ keys.T).div_(lengths)
        if leave_one_out:
            own = torch.arange(len(queries), device=keys.device)
            similarity[own, start + own] = -torch.inf
        near, rows = _nearest(similarity, min(k, voters))
        del similarity  # or it would be held beside the next block's
        yield near.cpu(), rows.cpu()


def _check(train: Tensor, test: Tensor, voters: int, k: int) -> None:
    """Refuse what gives no result, or a meaningless one."""
    if k < 1:
        raise UserError(f"k is {k}; at least one neighbour must vote (the usual k is 20)")
    if voters < 1 or not len(test):
        raise UserError(
            f"k-NN needs at least one query and one image to vote: there are {len(test)} and {voters}; "
            "give --data with more images"
        )
    for name, features in (("training", train), ("test", test)):
        broken = int((~_lengths(features).isfinite()).sum())
        if broken:
            raise UserError(
                f"{broken} of {len(features)} {name} features are not finite; "
                "the encoder's weights are broken (its training diverged?)"
            )


def _lengths(features: Tensor) -> Tensor:
    """Euclidean length of each row: (N,) from (N, C); not finite where any number of the row is not."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, dtype=torch.float32)
    return lengths


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row (B, N): values (B, k), indices (B, k); of equal values the first ones.

    `topk` is fast but picks any of the values equal to the k-th: only rows where there is such a
    choice are sorted in full, `PIECE` values at a time.
    """
    near, rows = similarity.topk(k, dim=1)
    together = max(1, PIECE // similarity.shape[1])
    for start in range(0, len(similarity), together):
        piece, chosen = similarity[start : start + together], rows[start : start + together]
        tied = ((piece >= near[start : start + together, -1:]).sum(1) > k).nonzero()[:, 0]
        if len(tied):
            chosen[tied] = piece[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return near, rows


def _log_votes(near: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Logarithm of each class's votes, float64 (B, num_classes), -inf where it has none.

    From neighbours' similarities (B, k) and classes (B, k), up to a constant of each row: the nearest weighs 1.
    """
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be above 0 (the usual one is 0.07)")
    distance = near.double() - near.double().amax(1, keepdim=True)
    weights = (distance / temperature).clamp_min(torch.finfo(torch.float64).min)
    labels = labels.long()
    largest = weights.new_full((len(near), num_classes), -torch.inf).scatter_reduce_(1, labels, weights, "amax")
    # Divided by the class's largest weight, a sum is 1 or more: neither it nor its logarithm can underflow.
    sums = torch.zeros_like(largest).scatter_add_(1, labels, (weights - largest.gather(1, labels)).exp())
    return largest + sums.log()
