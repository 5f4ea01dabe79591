"""The objectives against loops over their formulas, and the bounds that they promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semmae.losses import diversity_loss, masked_pixel_loss, reconstruction_loss


def test_masked_pixel_loss_is_that_of_the_release() -> None:
    """MAE averages each patch, then the hidden patches of the batch: Σ mask·error / Σ mask."""
    prediction, target = torch.randn(2, 9, 12), torch.randn(2, 9, 12)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1, 1, 0]]).bool()

    loss = masked_pixel_loss(prediction[mask].view(2, 5, 12), target[mask].view(2, 5, 12))

    errors = [
        sum((prediction[b, patch, d].item() - target[b, patch, d].item()) ** 2 for d in range(12)) / 12
        for b, patch in mask.nonzero().tolist()
    ]
    assert loss.item() == pytest.approx(sum(errors) / mask.sum().item(), rel=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_reconstructions_are_compared_with_area_averages(factor: int) -> None:
    reconstruction, images = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4 * factor, 4 * factor)

    loss = reconstruction_loss(reconstruction, images)

    squares = []
    for b in range(2):
        for channel in range(3):
            for row in range(4):
                for column in range(4):
                    block = [
                        images[b, channel, row * factor + i, column * factor + j].item()
                        for i in range(factor)
                        for j in range(factor)
                    ]
                    squares.append((sum(block) / factor**2 - reconstruction[b, channel, row, column].item()) ** 2)
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_diversity_is_the_mean_cosine_over_pairs(parts: int) -> None:
    maps = torch.rand(3, parts, 4, 5)

    cosines = []
    for image in maps.flatten(2).tolist():
        for first in range(parts):
            for second in range(first):
                product = sum(a * b for a, b in zip(image[first], image[second], strict=True))
                cosines.append(product / math.hypot(*image[first]) / math.hypot(*image[second]))
    assert diversity_loss(maps).item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_diversity_is_one_for_equal_and_zero_for_disjoint_maps() -> None:
    equal = torch.rand(2, 1, 4, 4).expand(-1, 5, -1, -1) * torch.rand(2, 5, 1, 1)
    disjoint = torch.eye(16)[:6].reshape(1, 6, 4, 4)

    assert diversity_loss(equal).item() == pytest.approx(1.0, abs=1e-6)
    assert diversity_loss(disjoint) == 0.0


def test_one_map_is_diverse() -> None:
    maps = torch.rand(2, 1, 4, 4, requires_grad=True)

    assert diversity_loss(maps) == 0.0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(2, 7), st.integers(1, 6))
def test_diversity_lies_between_zero_and_one_and_ignores_scale(seed: int, batch: int, parts: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(batch, parts, side, side, generator=generator) ** 4

    loss = diversity_loss(maps)
    scaled = diversity_loss(maps * (0.1 + torch.rand(batch, parts, 1, 1, generator=generator)))
    renamed = diversity_loss(maps[:, torch.randperm(parts, generator=generator)])

    assert -1e-6 <= loss.item() <= 1 + 1e-6
    assert loss.item() == pytest.approx(scaled.item(), abs=1e-5)
    assert loss.item() == pytest.approx(renamed.item(), abs=1e-5)


def test_maps_that_vanish_have_a_finite_gradient() -> None:
    maps = torch.rand(2, 4, 3, 3)
    maps[:, 1:3] = 0
    maps.requires_grad_()

    loss = diversity_loss(maps)
    loss.backward()

    assert loss.isfinite()
    assert maps.grad is not None and maps.grad.isfinite().all()


def test_descending_the_diversity_separates_maps() -> None:
    logits = (0.1 * torch.randn(2, 4, 4, 4)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    before = diversity_loss(logits.softmax(1)).item()

    for _ in range(60):
        optimizer.zero_grad()
        loss = diversity_loss(logits.softmax(1))
        loss.backward()
        optimizer.step()

    assert before > 0.9
    assert loss.item() < 0.3
