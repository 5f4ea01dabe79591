"""The objectives against loops over their formulas, and the bounds that they promise."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional

from semmae import losses
from semmae.losses import (
    class_loss,
    diversity_loss,
    image_token_loss,
    masked_pixel_loss,
    masked_token_loss,
    rebuild_loss,
    reconstruction_loss,
    total_variation_loss,
)


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


def test_masked_token_loss_is_the_error_of_tokens_of_mean_0_and_variance_1() -> None:
    prediction, tokens = torch.randn(2, 3, 8), 5 * torch.randn(2, 3, 8) + 2

    loss = masked_token_loss(prediction, tokens.half())

    squares = []
    for guess, token in zip(prediction.flatten(0, 1).tolist(), tokens.half().flatten(0, 1).tolist(), strict=True):
        mean = sum(token) / 8
        deviation = math.sqrt(sum((number - mean) ** 2 for number in token) / 8 + 1e-5)
        squares += [(one - (number - mean) / deviation) ** 2 for one, number in zip(guess, token, strict=True)]
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert masked_token_loss(torch.zeros_like(tokens), tokens).item() == pytest.approx(1, rel=1e-4)


def test_image_token_loss_is_the_squared_error_as_it_stands() -> None:
    prediction, tokens = torch.randn(3, 8), 5 * torch.randn(3, 8) + 2
    pairs = zip(prediction.flatten().tolist(), tokens.flatten().tolist(), strict=True)
    expected = sum((one - other) ** 2 for one, other in pairs) / 24
    assert image_token_loss(prediction, tokens).item() == pytest.approx(expected, rel=1e-5)


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
    # Not so near to 0 that a map has no direction.
    maps = torch.rand(batch, parts, side, side, generator=generator).clamp(min=0.01) ** 4

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


def shares(*shape: int) -> torch.Tensor:
    """Of parts (B, L, K), which share out every patch."""
    return (2 * torch.randn(*shape)).softmax(-1)


def slow_rebuild_loss(maps: torch.Tensor, weights: torch.Tensor, tokens: torch.Tensor) -> float:
    """Image by image, part by part: a weighted mean token a part, a mean of these a patch; beside the mean of all."""
    error, spread = 0.0, 0.0
    mean = (tokens * weights[:, :, None]).sum((0, 1)) / weights.sum()
    for image in range(len(maps)):
        descriptors = []
        for part in range(maps.shape[2]):
            counted = [(maps[image, place, part] * weights[image, place]).item() for place in range(maps.shape[1])]
            added = sum(count * token for count, token in zip(counted, tokens[image], strict=True))
            descriptors.append(added / (sum(counted) + 1e-3))
        for place in range(maps.shape[1]):
            rebuilt = sum(maps[image, place, part] * own for part, own in enumerate(descriptors))
            error += weights[image, place].item() * (tokens[image, place] - rebuilt).square().sum().item()
            spread += weights[image, place].item() * (tokens[image, place] - mean).square().sum().item()
    return error / spread


def test_rebuilding_is_by_one_mean_token_a_part_and_image() -> None:
    maps, weights, tokens = shares(3, 7, 4), torch.rand(3, 7), torch.randn(3, 7, 5)

    assert rebuild_loss(maps, weights, tokens).item() == pytest.approx(slow_rebuild_loss(maps, weights, tokens), 1e-5)


def test_parts_of_patches_that_are_alike_are_rebuilt() -> None:
    labels = torch.arange(64).remainder(4).expand(2, -1)
    tokens = torch.randn(2, 4, 5).gather(1, labels[:, :, None].expand(-1, -1, 5))
    hard = functional.one_hot(labels, 4).float()

    # The sums over a part are divided by a thousandth more than it has.
    assert rebuild_loss(hard, torch.ones(2, 64), tokens).item() < 1e-6
    assert rebuild_loss(hard[:, torch.randperm(64)], torch.ones(2, 64), tokens).item() > 0.5


def test_the_order_of_parts_does_not_matter_to_rebuilding() -> None:
    maps, weights, tokens = shares(3, 7, 4), torch.rand(3, 7), torch.randn(3, 7, 5)
    order = torch.tensor([2, 0, 3, 1])

    assert rebuild_loss(maps[:, :, order], weights, tokens).item() == pytest.approx(
        rebuild_loss(maps, weights, tokens).item(), rel=1e-6
    )


def test_a_patch_without_weight_is_not_seen_in_rebuilding() -> None:
    maps, weights, tokens = shares(1, 7, 4), torch.rand(1, 7), torch.randn(1, 7, 5)
    weights[0, 2] = 0
    others = [0, 1, 3, 4, 5, 6]
    left = rebuild_loss(maps[:, others], weights[:, others], tokens[:, others]).item()

    for token in (tokens[0, 2], 100 * torch.ones(5)):
        tokens[0, 2] = token
        assert rebuild_loss(maps, weights, tokens).item() == pytest.approx(left, rel=1e-5)
    assert rebuild_loss(maps, torch.zeros(1, 7), tokens) == 0.0


def test_total_variation_counts_the_borders_of_hard_parts() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :, 2:] = 1  # one border of four cells, seen by two parts, among 12 pairs of neighbours each way
    maps = functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()

    assert total_variation_loss(maps).item() == pytest.approx(2 * 4 / 12)
    assert total_variation_loss(maps.transpose(2, 3)).item() == pytest.approx(2 * 4 / 12)
    assert total_variation_loss(torch.full((1, 2, 4, 4), 0.5)).item() == 0
    assert total_variation_loss(torch.full((1, 2, 1, 1), 0.5)).item() == 0  # no neighbours


def maps(*shape: int) -> torch.Tensor:
    return (torch.randn(shape) * 0.01).softmax(1)


ARGUMENTS: dict[str, Any] = {
    "masked_pixel_loss": lambda: (torch.randn(2, 5, 12), torch.randn(2, 5, 12)),
    "masked_token_loss": lambda: (torch.randn(2, 5, 12), torch.randn(2, 5, 12)),
    "image_token_loss": lambda: (torch.randn(2, 12), torch.randn(2, 12)),
    "reconstruction_loss": lambda: (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)),
    "diversity_loss": lambda: (maps(2, 4, 6, 6),),
    "rebuild_loss": lambda: (shares(2, 9, 3), torch.rand(2, 9), torch.randn(2, 9, 8)),
    "total_variation_loss": lambda: (maps(2, 4, 6, 6),),
    "class_loss": lambda: (torch.randn(4, 5), torch.tensor([0, 1, 2, 4])),
}


@pytest.mark.parametrize("name", sorted(name for name in vars(losses) if name.endswith("_loss")))
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_every_loss_is_that_of_float32(name: str, half: torch.dtype) -> None:
    loss, given = getattr(losses, name), ARGUMENTS[name]()
    halves = [tensor.to(half) if tensor.is_floating_point() else tensor for tensor in given]
    wanted = loss(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in halves))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*halves)

    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_float32_reaches_tensors_in_tuples_and_leaves_all_else() -> None:
    seen: list[Any] = []
    pair = [torch.ones(2, dtype=torch.float16), torch.ones(1, dtype=torch.float64)]
    mask = torch.tensor([True])

    losses.in_float32(lambda *given, **named: seen.extend([*given, *named.values()]))(
        pair, mask, "mse", more=(pair[0],)
    )

    assert [tensor.dtype for tensor in seen[0]] == [torch.float32, torch.float64]
    assert seen[1] is mask and seen[2] == "mse" and seen[3][0].dtype == torch.float32


def test_class_loss_is_the_cross_entropy_of_classes_or_of_shares() -> None:
    logits, classes = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    surely = -logits.log_softmax(1)[torch.arange(6), classes].mean()
    assert class_loss(logits, classes).item() == pytest.approx(surely.item(), rel=1e-6)
    assert class_loss(logits, functional.one_hot(classes, 4).float()).item() == pytest.approx(surely.item(), rel=1e-6)
