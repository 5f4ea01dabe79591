"""k-means: found where clusters lie apart, repeatable, and as many directions as asked."""

import numpy as np
import torch

from semmae.clusters import fit_clusters, fit_directions


def test_clusters_that_lie_far_apart_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(5)
    truth = torch.randint(0, 5, (48,), generator=generator)
    tokens = centres[truth] + torch.randn(48, 5, generator=generator)
    distances = torch.cdist(fit_clusters(tokens, 5, seed=0), centres)
    assert sorted(distances.argmin(1).tolist()) == list(range(5)) and distances.min(1).values.max() < 1.5


def test_clusters_are_the_same_for_a_seed_whatever_ran_before() -> None:
    tokens = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    first = fit_clusters(tokens, 7, seed=4)
    np.random.random(5)
    torch.rand(5)
    assert torch.equal(fit_clusters(tokens, 7, seed=4), first)
    assert not torch.equal(fit_clusters(tokens, 7, seed=5), first)


def test_there_are_no_more_clusters_than_tokens() -> None:
    assert sorted(fit_clusters(torch.tensor([[0.0], [1.0]]), 7, seed=0).flatten().tolist()) == [0, 1]


def test_directions_do_not_ask_how_long_a_token_is() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat(30)
    tokens = torch.eye(6)[truth] + 0.05 * torch.randn(120, 6, generator=generator)
    tokens = tokens * torch.logspace(-2, 2, 120)[:, None]
    found = fit_directions(tokens, 4, seed=0)
    assert torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-6)
    nearest = (found @ torch.eye(6)[:4].T).max(1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3] and nearest.values.min() > 0.99


def test_directions_of_few_tokens_are_repeated() -> None:
    found = fit_directions(torch.eye(3)[:2], 5, seed=0)
    assert found.shape == (5, 3) and torch.equal(found[:2], found[2:4]) and torch.equal(found[0], found[4])
