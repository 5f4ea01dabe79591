"""k-means, for what parts start from and what they are compared with."""

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

_STARTS = 16  # of what is learned from them, so that seeds agree; a second or two


def fit_clusters(tokens: Tensor, clusters: int, seed: int, starts: int = 4) -> Tensor:
    """Centres (K, C) of k-means over tokens (N, C), on their device; fewer than asked where tokens are fewer.

    The tightest of so many runs from other centres. Repeatable to the last bit on a machine: one thread, as sums split
    over threads are not.
    """
    means = KMeans(min(clusters, len(tokens)), n_init=starts, random_state=seed)
    with threadpool_limits(1):
        means.fit(tokens.float().cpu().numpy())
    return torch.from_numpy(means.cluster_centers_).to(tokens)


def fit_directions(tokens: Tensor, clusters: int, seed: int) -> Tensor:
    """As `fit_clusters`, of the tokens' directions: centres of length 1, always as many as asked."""
    found = fit_clusters(functional.normalize(tokens.float(), dim=1), clusters, seed, _STARTS)
    centres = functional.normalize(found, dim=1)
    # Of too few tokens some clusters are the same ones again: what they lead to is no worse.
    return centres.repeat(-(-clusters // len(centres)), 1)[:clusters]
