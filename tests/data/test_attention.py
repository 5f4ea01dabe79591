"""Ranks, against SciPy's; the grid they are stored on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import rankdata, spearmanr

from semmae.data.attention import MOST_ATTENDED, attention_ranks, ranks, stored_side
from semmae.data.crop import WHOLE, Crop, crop_scores


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200))
@settings(max_examples=100, deadline=None)
def test_ranks_are_scipys_and_equal_scores_share_theirs(scores: list[int]) -> None:
    places = (rankdata(scores, method="average") - 1) * MOST_ATTENDED / (len(scores) - 1)
    found = ranks(torch.tensor([scores, scores[::-1]]).float())
    assert found.dtype == torch.uint8
    assert np.abs(found[0].numpy() - places).max() <= 0.5 + 1e-9
    assert torch.equal(found[1], found[0].flip(0))


def test_a_heavy_tail_does_not_collapse() -> None:
    scores = torch.rand(1, 196).double().pow(40)
    assert len(set(ranks(scores)[0].tolist())) == 196
    assert ranks(torch.full((1, 196), 0.3)).unique().tolist() == [127]
    assert ranks(torch.full((1, 1), 0.3)).tolist() == [[0]]


@pytest.mark.parametrize(("side", "stored"), [(2, 2), (14, 14), (16, 14), (28, 14)])
def test_labels_and_attention_are_below_a_kilobyte(side: int, stored: int) -> None:
    attention = torch.rand(3, side * side)
    found = attention_ranks(attention)
    assert found.shape == (3, stored, stored) and stored == stored_side(side) and 28 * 28 + stored**2 <= 1000
    assert found.amin((1, 2)).tolist() == [0] * 3 and found.amax((1, 2)).tolist() == [MOST_ATTENDED] * 3
    if side == stored:
        assert torch.equal(found.flatten(1).argsort(1), attention.argsort(1))
    if side == 28:
        cells = attention.view(3, 14, 2, 14, 2).mean((2, 4)).flatten(1)
        assert torch.equal(found.flatten(1).argsort(1), cells.argsort(1))


@pytest.mark.parametrize("side", [8, 14, 16, 28])
@pytest.mark.parametrize("crop", [WHOLE, Crop(0.25, 0.125, 0.5, 0.75, flip=True)])
def test_attention_of_one_grid_of_patches_reaches_another(side: int, crop: Crop) -> None:
    """A hill over the 16 × 16 patches of 14 of 224 pixels, seen at the centres of other patches."""

    def hill(down: np.ndarray, across: np.ndarray) -> np.ndarray:
        return np.exp(-((down - 0.4)[:, None] ** 2 + (across - 0.3)[None, :] ** 2) / 0.08)

    def centres(count: int) -> np.ndarray:
        return (np.arange(count) + 0.5) / count

    given = torch.from_numpy(hill(centres(16), centres(16)).ravel()[None])
    found = crop_scores(attention_ranks(given)[0].numpy(), crop, side)
    across = 1 - centres(side) if crop.flip else centres(side)
    expected = hill(crop.top + crop.height * centres(side), crop.left + crop.width * across)
    assert spearmanr(found, expected.ravel()).statistic > 0.99
