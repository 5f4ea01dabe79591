"""Masks: exact counts by property tests, quotas of the released code, and a slow loop as the reference."""

import json
import math
import re
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from refusals import refused
from torch import Tensor

from semmae.masking import (
    attention_mask,
    block_mask,
    block_order,
    colour_mask,
    green_noise,
    hide_first,
    hide_highest,
    most_attended,
    num_hidden,
    num_hints,
    nums_hidden,
    part_counts,
    part_quotas,
    random_mask,
    semantic_mask,
)

many = settings(deadline=None, max_examples=80)
# In floating point 1 − 0.9 and 1 − 5/6 fall short of what they stand for, 1 − 0.6 and 1 − 1/3 do not.
RATIOS = st.sampled_from([0.75, 0.9, 0.6, 0.8, 0.7, 1 / 3, 2 / 3, 5 / 6, 6 / 7, 0.999]) | st.integers(1, 99).map(
    lambda hundredths: hundredths / 100
)
BLENDS = st.sampled_from([0.0, 1.0]) | st.integers(0, 10).map(lambda tenths: tenths / 10)


def hidden_by_fractions(num_patches: int, ratio: float) -> int:
    """L − ⌊L·(1 − r)⌋ in exact arithmetic, r being the fraction that its float stands for."""
    return num_patches - math.floor(num_patches * (1 - Fraction(ratio).limit_denominator(1000)))


def distinct_noise(seed: int, rows: int, length: int) -> Tensor:
    """Uniform noise (rows, length) without ties, which sorting settles differently on each device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(rows)]) / length


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Arguments of `semantic_mask`: any grid, any number and sizes of parts, empty ones among them."""
    rows, length, labels = draw(st.integers(1, 3)), draw(st.integers(2, 90)), draw(st.integers(1, 8))
    ratio, blend, seed = draw(RATIOS), draw(BLENDS), draw(st.integers(0, 2**32))
    assume(hidden_by_fractions(length, ratio) < length)
    generator = torch.Generator().manual_seed(seed)
    # Powers of uniform numbers: from equal parts to one that takes nearly all.
    skew = draw(st.sampled_from([1, 3, 12]))
    parts = (torch.rand(rows, length, generator=generator) ** skew * labels).long()
    return parts, distinct_noise(seed + 1, rows, length), distinct_noise(seed + 2, rows, labels), ratio, blend


def slow_quotas(sizes: list[int], order_noise: list[float], hidden: int, blend: float) -> tuple[list[Fraction], int]:
    """Exact blended quotas, and how many of them have to be rounded up."""
    share, left = Fraction(blend).limit_denominator(1000), hidden
    quotas = [(1 - share) * Fraction(hidden * size, sum(sizes)) for size in sizes]
    for part in sorted(range(len(sizes)), key=lambda part: order_noise[part]):
        taken = min(sizes[part], left)
        left -= taken
        quotas[part] += share * taken
    return quotas, hidden - sum(math.floor(quota) for quota in quotas)


def slow_mask(parts: list[int], noise: list[float], order_noise: list[float], hidden: int, blend: float) -> list[bool]:
    """One row of `semantic_mask`, part by part and patch by patch in exact arithmetic."""
    members = [[patch for patch, label in enumerate(parts) if label == part] for part in range(len(order_noise))]
    quotas, short = slow_quotas([len(patches) for patches in members], order_noise, hidden, blend)
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda part: (quotas[part] % 1, order_noise[part]), reverse=True)
    for part in by_remainder[:short]:
        counts[part] += 1
    mask = [False] * len(parts)
    for patches, count in zip(members, counts, strict=True):
        for patch in sorted(patches, key=lambda patch: noise[patch])[:count]:
            mask[patch] = True
    return mask


@many
@given(st.integers(2, 3000), RATIOS)
def test_the_hidden_count_is_that_of_exact_arithmetic(length: int, ratio: float) -> None:
    expected = hidden_by_fractions(length, ratio)
    assume(expected < length)

    assert num_hidden(length, ratio) == expected


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 1.0, 75.0, math.nan])
def test_a_ratio_that_is_no_share_is_refused_by_value(ratio: float) -> None:
    with refused(f"mask ratio {ratio}", "(0, 1)"):
        num_hidden(196, ratio)


@pytest.mark.parametrize("length", [3, 16, 49, 144, 196, 256, 784, 4096])
def test_a_ratio_that_leaves_nothing_visible_is_refused_with_one_that_works(length: int) -> None:
    with refused("mask ratio 0.99999", length) as error:
        num_hidden(length, 0.99999)

    remedy = re.search(r"use at most ([\d.]+),", str(error.value))
    assert remedy is not None
    assert num_hidden(length, float(remedy[1])) == length - 1


def test_a_ratio_that_hides_nothing_is_refused_by_value() -> None:
    with refused("mask ratio 1e-12", 196):
        num_hidden(196, 1e-12)


@many
@given(st.integers(1, 3), st.integers(1, 50), st.data())
def test_hide_highest_hides_the_highest(rows: int, length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, length))
    scores = distinct_noise(data.draw(st.integers(0, 2**32)), rows, length) - 0.5

    mask = hide_highest(scores, count)

    for row, hidden in zip(scores.tolist(), mask.tolist(), strict=True):
        assert hidden == [score in sorted(row, reverse=True)[:count] for score in row]


def test_a_random_mask_hides_the_lowest_noise() -> None:
    noise = torch.tensor([[0.5, 0.0, 0.9, 0.2, 0.7], [0.1, 0.2, 0.3, 0.4, 0.0]])

    mask = random_mask(noise, 0.6)

    assert mask.tolist() == [[True, True, False, True, False], [True, True, False, False, True]]


@many
@given(problems())
def test_part_counts_count(problem: tuple[Tensor, Tensor, Tensor, float, float]) -> None:
    parts, _, order_noise, _, _ = problem
    labels = order_noise.shape[1]

    # The stored labels are uint8.
    counts = part_counts(parts.to(torch.uint8), labels)

    assert counts.tolist() == [[row.count(part) for part in range(labels)] for row in parts.tolist()]


@many
@given(problems())
def test_quotas_sum_exactly_and_stay_within_one_of_the_blend(
    problem: tuple[Tensor, Tensor, Tensor, float, float],
) -> None:
    parts, _, order_noise, ratio, blend = problem
    counts = part_counts(parts, order_noise.shape[1])
    hidden = hidden_by_fractions(parts.shape[1], ratio)

    quotas = part_quotas(counts, order_noise, ratio, blend)

    assert quotas.sum(1).tolist() == [hidden] * len(parts)
    assert (quotas <= counts).all() and (quotas >= 0).all()
    for sizes, order, rounded in zip(counts.tolist(), order_noise.tolist(), quotas.tolist(), strict=True):
        exact, _ = slow_quotas(sizes, order, hidden, blend)
        assert all(abs(given - wanted) < 1 for given, wanted in zip(rounded, exact, strict=True))


@many
@given(problems(), st.floats(0.0, 1.0))
def test_any_blend_keeps_the_count(problem: tuple[Tensor, Tensor, Tensor, float, float], blend: float) -> None:
    """Also a blend a hair above 0 or below 1, where remainders are lost in rounding."""
    parts, noise, order_noise, ratio, _ = problem
    counts = part_counts(parts, order_noise.shape[1])

    quotas = part_quotas(counts, order_noise, ratio, blend)
    mask = semantic_mask(parts, noise, order_noise, ratio, blend)

    assert (quotas <= counts).all() and (quotas >= 0).all()
    assert mask.sum(1).tolist() == [hidden_by_fractions(parts.shape[1], ratio)] * len(parts)


@many
@given(problems(), st.integers(0, 12), st.booleans())
def test_hints_and_background_keep_the_count_and_give_way_in_their_order(
    problem: tuple[Tensor, Tensor, Tensor, float, float], hints: int, keep_background: bool
) -> None:
    parts, noise, order_noise, ratio, blend = problem
    counts, given = part_counts(parts, order_noise.shape[1]), (hints, keep_background)
    hidden = hidden_by_fractions(parts.shape[1], ratio)

    quotas = part_quotas(counts, order_noise, ratio, blend, *given)
    mask = semantic_mask(parts, noise, order_noise, ratio, blend, *given)

    assert quotas.sum(1).tolist() == [hidden] * len(parts)
    assert torch.equal(part_counts(parts + mask * counts.shape[1], 2 * counts.shape[1])[:, counts.shape[1] :], quotas)
    assert (quotas <= counts).all() and (quotas >= 0).all()
    for sizes, visible in zip(counts.tolist(), (counts - quotas).tolist(), strict=True):
        larger, room = [size > hints for size in sizes], parts.shape[1] - hidden
        # Hints that there is room for, or of each larger part the same share of them, and then nothing else is visible.
        share = Fraction(min(hints * sum(larger), room), max(1, sum(larger)))
        crowded = hints * sum(larger) > room
        for left, size, is_larger in zip(visible, sizes, larger, strict=True):
            wanted = share if is_larger else Fraction(0)
            assert math.floor(wanted) <= left <= (math.ceil(wanted) if crowded else size)
        if keep_background:
            apart = share * sum(larger)
            share_of_it = hidden * (sizes[0] - larger[0] * share) / (sum(sizes) - apart)
            assert abs(sizes[0] - visible[0] - share_of_it) < 1


@many
@given(problems())
def test_beside_a_background_that_keeps_its_share_at_most_one_part_is_cut(
    problem: tuple[Tensor, Tensor, Tensor, float, float],
) -> None:
    parts, noise, order_noise, ratio, _ = problem

    mask = semantic_mask(parts, noise, order_noise, ratio, 1.0, keep_background=True)

    for labels, hidden, order in zip(parts, mask, order_noise, strict=True):
        in_turn = [part for part in order.argsort().tolist() if part and (labels == part).any()]
        shares = [hidden[labels == part].float().mean().item() for part in in_turn]
        assert shares == sorted(shares, reverse=True)
        assert sum(0 < share < 1 for share in shares) <= 1


def test_the_background_and_hints_by_hand() -> None:
    """Half of 24 patches; the turns are label 0, 2, 1, 3."""
    counts, order = torch.tensor([[12, 5, 5, 2]]), torch.tensor([[0.1, 0.5, 0.2, 0.7]])

    def quotas(blend: float, hints: int = 0, keep_background: bool = False) -> list[int]:
        return part_quotas(counts, order, 0.5, blend, hints, keep_background)[0].tolist()

    assert quotas(1.0) == [12, 0, 0, 0]  # the background alone
    assert quotas(1.0, keep_background=True) == [6, 1, 5, 0]
    assert quotas(1.0, hints=2) == [10, 0, 2, 0]  # of 10, 3, 3 and 2 that may be hidden
    assert quotas(0.0, hints=2) == [7, 2, 2, 1]  # two thirds of these: 6.67, 2, 2, 1.33
    assert quotas(1.0, hints=2, keep_background=True) == [7, 2, 3, 0]  # 6.67, then 3 and the 2.33 that are left
    assert quotas(1.0, hints=6) == [6, 1, 5, 0]  # the background alone is larger
    assert quotas(1.0, hints=12) == quotas(1.0)  # no part is larger


@pytest.mark.parametrize("blend", [-0.01, 1.01, math.nan])
def test_a_blend_that_is_no_share_is_refused(blend: float) -> None:
    with pytest.raises(ValueError, match="blend"):
        part_quotas(torch.tensor([[3, 5]]), torch.tensor([[0.1, 0.2]]), 0.75, blend)


def test_fewer_hints_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="hints -1"):
        part_quotas(torch.tensor([[3, 5]]), torch.tensor([[0.1, 0.2]]), 0.75, 0.5, hints=-1)


def test_quotas_are_within_one_of_the_released_code(shared: Path) -> None:
    vectors = json.loads((shared / "vectors/mask-counts.json").read_text())
    assert vectors
    for vector in vectors:
        sizes, order = torch.tensor(vector["part_sizes"]), torch.tensor(vector["part_order"])
        parts = torch.arange(len(sizes)).repeat_interleave(sizes)[None]
        # The part that is hidden first has the lowest noise.
        order_noise = (order.argsort() / len(order))[None]

        mask = semantic_mask(
            parts, torch.rand(parts.shape), order_noise, vector["mask_ratio"], 1 - vector["intra_weight"]
        )

        hidden = part_counts(parts[mask][None], len(sizes))[0]
        assert (~mask).sum() == vector["num_visible"], vector
        assert (hidden - torch.tensor(vector["mask_counts"])).abs().max() <= 1, (hidden.tolist(), vector)


@many
@given(problems())
def test_semantic_mask_is_that_of_the_slow_loop(problem: tuple[Tensor, Tensor, Tensor, float, float]) -> None:
    parts, noise, order_noise, ratio, blend = problem

    mask = semantic_mask(parts, noise, order_noise, ratio, blend)

    hidden = hidden_by_fractions(parts.shape[1], ratio)
    rows = zip(parts.tolist(), noise.tolist(), order_noise.tolist(), strict=True)
    assert mask.tolist() == [slow_mask(*row, hidden, blend) for row in rows]


@many
@given(problems())
def test_blend_zero_hides_near_equal_shares(problem: tuple[Tensor, Tensor, Tensor, float, float]) -> None:
    parts, noise, order_noise, ratio, _ = problem

    mask = semantic_mask(parts, noise, order_noise, ratio, 0.0)

    share = mask.sum(1)[0].item() / parts.shape[1]
    for part in range(order_noise.shape[1]):
        inside = parts == part
        assert (((mask & inside).sum(1) - share * inside.sum(1)).abs() < 1 + 1e-6).all()


@many
@given(problems())
def test_blend_one_cuts_at_most_one_part(problem: tuple[Tensor, Tensor, Tensor, float, float]) -> None:
    parts, noise, order_noise, ratio, _ = problem

    mask = semantic_mask(parts, noise, order_noise, ratio, 1.0)

    for labels, hidden, order in zip(parts, mask, order_noise, strict=True):
        shares = [hidden[labels == part].float().mean().item() for part in order.argsort() if (labels == part).any()]
        # In their order: whole parts, at most one cut, untouched parts.
        assert shares == sorted(shares, reverse=True)
        assert sum(0 < share < 1 for share in shares) <= 1


@many
@given(problems())
def test_relabelling_parts_changes_nothing(problem: tuple[Tensor, Tensor, Tensor, float, float]) -> None:
    parts, noise, order_noise, ratio, blend = problem
    renamed = torch.randperm(order_noise.shape[1], generator=torch.Generator().manual_seed(parts.sum().item()))
    moved = torch.empty_like(order_noise)
    moved[:, renamed] = order_noise

    mask = semantic_mask(renamed[parts], noise, moved, ratio, blend)

    assert torch.equal(mask, semantic_mask(parts, noise, order_noise, ratio, blend))


@many
@given(problems())
def test_the_same_noise_gives_the_same_mask_in_any_batch(
    problem: tuple[Tensor, Tensor, Tensor, float, float],
) -> None:
    parts, noise, order_noise, ratio, blend = problem

    mask = semantic_mask(parts, noise, order_noise, ratio, blend)

    torch.rand(7)  # the global generator has no say
    alone = [semantic_mask(parts[row, None], noise[row, None], order_noise[row, None], ratio, blend) for row in (0, -1)]
    assert torch.equal(mask, semantic_mask(parts, noise, order_noise, ratio, blend))
    assert torch.equal(mask[[0, -1]], torch.cat(alone))
    assert torch.equal(mask, semantic_mask(parts.to(torch.uint8), noise, order_noise, ratio, blend))


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labels", [2, 7, 200])
def test_the_ends_of_the_noise_stay_inside_their_part(labels: int, blend: float) -> None:
    """A part's highest noise, just below 1, must not be sorted behind the next part's 0.0."""
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    # The later a part, the earlier in the row: a tie with the next part would be settled wrongly.
    parts = torch.arange(labels - 1, -1, -1).repeat_interleave(4)[None]
    noise = torch.tensor([0.0, 0.25, 0.5, below_one]).repeat(labels)[None]
    order_noise = distinct_noise(0, 1, labels)

    mask = semantic_mask(parts, noise, order_noise, 0.75, blend)

    expected = slow_mask(
        parts[0].tolist(), noise[0].tolist(), order_noise[0].tolist(), num_hidden(4 * labels, 0.75), blend
    )
    assert mask[0].tolist() == expected


def test_equal_noise_keeps_the_count() -> None:
    parts = torch.tensor([[0, 1, 2, 1, 0, 2, 1, 1, 0]])

    mask = semantic_mask(parts, torch.zeros(1, 9), torch.zeros(1, 3), 0.6, 0.5)

    assert mask.sum() == 6


@pytest.mark.parametrize("blend", [0.0, 0.4, 1.0])
def test_patches_of_a_part_are_hidden_equally_often(blend: float) -> None:
    draws = 20_000
    parts = torch.tensor([0, 1, 0, 2, 2, 1, 2, 1, 0, 2, 2, 3, 3, 3])
    noise, order_noise = torch.rand(draws, len(parts)), torch.rand(draws, 4)

    hidden = semantic_mask(parts.expand(draws, -1), noise, order_noise, 0.6, blend).float()

    once, together = hidden.mean(0), hidden.T @ hidden / draws
    six_deviations = 6 * 0.5 * (2 / draws) ** 0.5
    for part in range(4):
        members = (parts == part).nonzero().flatten().tolist()
        pairs = torch.stack([together[pair] for pair in combinations(members, 2)])
        assert once[members].max() - once[members].min() < six_deviations
        assert pairs.max() - pairs.min() < six_deviations
    # Parts of the same size have the same chances, whatever their labels.
    assert abs(once[parts == 0].mean() - once[parts == 3].mean()) < six_deviations


def slow_blocks(noise: list[float], boxes: list[list[float]], hidden: int, rows: int, columns: int) -> list[bool]:
    """One row of `block_mask`: box by box, patch by patch."""
    mask, areas = [False] * len(noise), []
    smallest = min(4, hidden)
    for area_noise, aspect_noise, row_noise, column_noise in boxes:
        area = smallest + (hidden - smallest) * area_noise
        aspect = 0.3 ** (1 - 2 * aspect_noise)
        height = min(max(round(math.sqrt(area * aspect)), 1), rows)
        width = min(max(round(math.sqrt(area / aspect)), 1), columns)
        top, left = int(row_noise * (rows - height + 1)), int(column_noise * (columns - width + 1))
        areas.append([r * columns + c for r in range(top, top + height) for c in range(left, left + width)])
    areas.append(list(range(len(noise))))  # after all boxes, any that are left
    for patches in areas:
        for patch in sorted((patch for patch in patches if not mask[patch]), key=lambda patch: noise[patch]):
            if sum(mask) < hidden:
                mask[patch] = True
    return mask


@many
@given(
    st.tuples(st.integers(3, 12), st.integers(3, 12)),
    st.integers(1, 6),
    st.sampled_from([0.1, 0.3, 0.5, 0.75]),
    st.integers(0, 2**32),
)
def test_blocks_are_those_of_a_slow_loop(grid: tuple[int, int], boxes: int, ratio: float, seed: int) -> None:
    length, generator = math.prod(grid), torch.Generator().manual_seed(seed)
    noise, box_noise = distinct_noise(seed, 3, length), torch.rand(3, boxes, 4, generator=generator)

    mask = block_mask(noise, box_noise, ratio, grid)

    hidden = hidden_by_fractions(length, ratio)
    assert mask.sum(1).tolist() == [hidden] * 3
    assert mask.tolist() == [
        slow_blocks(row, shapes, hidden, *grid) for row, shapes in zip(noise.tolist(), box_noise.tolist(), strict=True)
    ]


def test_blocks_hang_together() -> None:
    """Of the neighbours of a hidden patch far more are hidden than by chance."""
    generator = torch.Generator().manual_seed(0)
    noise, box_noise = torch.rand(64, 196, generator=generator), torch.rand(64, 16, 4, generator=generator)

    def neighbours_hidden(mask: Tensor) -> float:
        grid = mask.view(-1, 14, 14)
        return float((grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid[:, :, 1:].sum())

    assert neighbours_hidden(random_mask(noise, 0.3)) < 0.35
    assert neighbours_hidden(block_mask(noise, box_noise, 0.3)) > 0.75


FIELD = green_noise(torch.rand(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def power(masks: Tensor, low: float, high: float) -> float:
    """Mean power of waves of low to high waves a patch, masks (B, side, side); of white noise 1."""
    waves = torch.fft.fft2(masks.double() - masks.double().mean()).abs().square().mean(0)
    frequency = torch.fft.fftfreq(masks.shape[-1])
    length = (frequency[:, None].square() + frequency.square()).sqrt()
    within = (length >= low) & (length < high)
    return float(waves[within].mean() / (masks.double().var() * masks[0].numel()))


@pytest.mark.parametrize("side", [8, 14, 16, 64])
def test_colour_masks_are_of_middle_waves_and_random_ones_of_all(side: int) -> None:
    generator = torch.Generator().manual_seed(1)
    windows, noise = torch.rand(256, 2, generator=generator), torch.rand(256, side * side, generator=generator)
    green = colour_mask(FIELD, windows, side * side, 0.75).view(-1, side, side)
    white = random_mask(noise, 0.75).view(-1, side, side)

    bands = [(0.1, 0.2), (0.3, 0.5), (0.5, 0.8)] + [(0.01, 0.05)] * (side > 16)
    assert [power(white, *band) for band in bands] == pytest.approx([1.0] * len(bands), abs=0.1)
    middle, *others = (power(green, *band) for band in bands)
    assert middle > 2.4 and middle > 3 * max(others)


def test_filtered_noise_has_every_place_once_and_no_border() -> None:
    white = torch.rand(64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    field = green_noise(white)

    assert field.flatten().sort().values.tolist() == list(range(64 * 64))
    # Moved round the torus, the noise moves with it.
    assert torch.equal(green_noise(white.roll((5, -9), (0, 1))), field.roll((5, -9), (0, 1)))


def test_a_blur_by_hand_gives_the_filtered_noise() -> None:
    white = torch.rand(32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    away = torch.arange(32, dtype=torch.float64)
    away = torch.minimum(away, 32 - away)

    def blurred(deviation: float) -> Tensor:
        weights = (-0.5 * (away / deviation) ** 2).exp()
        around = torch.stack([weights.roll(row) for row in range(32)]) / weights.sum()
        return around @ white @ around.T

    wanted, found = (blurred(1.5) - blurred(3.0)).flatten(), green_noise(white, 1.5, 3.0).flatten()
    # Sampled weights are not quite the Gaussian's: the order is the same but among neighbours.
    assert torch.corrcoef(torch.stack([wanted.argsort().argsort().float(), found]))[0, 1] > 0.9999


@many
@given(st.integers(2, 20), st.integers(2, 20), RATIOS, st.integers(0, 2**32))
def test_colour_masks_are_the_highest_of_their_window(rows: int, columns: int, ratio: float, seed: int) -> None:
    length, grid = rows * columns, (rows, columns)
    hidden = hidden_by_fractions(length, ratio)
    assume(hidden < length)
    windows = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed))
    windows[0] = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))  # the last one, over both borders

    mask = colour_mask(FIELD, windows, length, ratio, grid)

    assert mask.sum(1).tolist() == [hidden] * 3
    assert torch.equal(mask[1:2], colour_mask(FIELD, windows[1:2], length, ratio, grid))
    for row, (top, left) in enumerate((windows * 256).long().tolist()):
        seen = FIELD.roll((-top, -left), (0, 1))[:rows, :columns].flatten().tolist()
        assert mask[row].tolist() == [value in sorted(seen, reverse=True)[:hidden] for value in seen]


@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 20), st.integers(0, 10**6))
@many
def test_most_attended_agrees_with_a_slow_sort(rows: int, length: int, levels: int, seed: int) -> None:
    noise = distinct_noise(seed, rows, length)
    attention = torch.randint(levels, (rows, length), generator=torch.Generator().manual_seed(seed)) / levels
    for count in {1, (length + 1) // 2, length}:
        found = most_attended(attention, noise, count)
        for row in range(rows):
            order = sorted(range(length), key=lambda i: (-float(attention[row, i]), float(noise[row, i])))  # noqa: B023
            assert found[row].tolist() == sorted(order[:count])


def slow_attention_mask(
    attention: list[float], noise: list[float], hint_noise: list[float], hidden: int, among: int, hints: int
) -> list[bool]:
    """One row of `attention_mask`, patch by patch."""
    order = sorted(range(len(noise)), key=lambda patch: (-attention[patch], noise[patch]))
    revealed = {order[place] for place in sorted(range(among), key=lambda place: -hint_noise[place])[:hints]}
    mask = [False] * len(noise)
    for patch in order:
        if patch not in revealed and sum(mask) < hidden:
            mask[patch] = True
    return mask


@many
@given(st.integers(2, 90), st.integers(1, 30), RATIOS, st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_attention_masks_are_those_of_a_slow_loop(
    length: int, levels: int, ratio: float, hint: float, seed: int
) -> None:
    """Also with few levels of attention, where most patches are attended alike."""
    hidden = hidden_by_fractions(length, ratio)
    among = min(hidden, max(1, round(length / 10)))
    hints = max(1, round(hint * among)) if hint else 0
    assume(0 < length - hidden >= hints)
    noise, hint_noise = distinct_noise(seed, 3, length), distinct_noise(seed + 1, 3, length)
    attention = torch.randint(levels, (3, length), generator=torch.Generator().manual_seed(seed)) / levels

    mask = attention_mask(attention, noise, hint_noise, ratio, hint)

    assert num_hints(length, hidden, hint) == (among, hints)
    assert mask.sum(1).tolist() == [hidden] * 3
    rows = zip(attention.tolist(), noise.tolist(), hint_noise.tolist(), strict=True)
    assert mask.tolist() == [slow_attention_mask(*row, hidden, among, hints) for row in rows]
    assert torch.equal(mask, attention_mask(attention, noise, hint_noise, ratio, hint))
    alone = [attention_mask(attention[[row]], noise[[row]], hint_noise[[row]], ratio, hint) for row in range(3)]
    assert torch.equal(mask, torch.cat(alone))


def test_attention_hides_the_most_attended_and_its_opposite_the_least() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0]])

    assert attention_mask(attention, torch.rand(1, 5), torch.rand(1, 5), 0.6).tolist() == [
        [False, True, True, True, False]
    ]
    assert attention_mask(-attention, torch.rand(1, 5), torch.rand(1, 5), 0.6).tolist() == [
        [True, False, True, False, True]
    ]


def test_hints_are_drawn_evenly_from_the_most_attended_tenth() -> None:
    """Also where the tenth is cut out of patches attended alike: each of these is as often visible."""
    draws, length = 20_000, 40
    attention = torch.zeros(length)
    attention[:2], attention[2:6] = 2.0, 1.0  # the pool of 4: two for sure, two of the next four
    shape = (draws, length)

    mask = attention_mask(attention.expand(shape), torch.rand(shape), torch.rand(shape), 0.75, hint=0.5)

    visible = (~mask).float().mean(0)
    six_deviations = 6 * 0.5 * draws**-0.5
    assert (visible[:2] - 0.5).abs().max() < six_deviations
    assert (visible[2:6] - 0.25).abs().max() < six_deviations
    assert (visible[6:].mean() - (10 - 2) / 34).abs() < 1e-5


def test_more_hints_than_visible_patches_are_refused_with_a_number_that_works() -> None:
    with refused("attention hint 1.0", 20, "10 of all 196") as error:
        attention_mask(torch.rand(1, 196), torch.rand(1, 196), torch.rand(1, 196), 186 / 196, hint=1.0)

    remedy = re.search(r"use at most ([\d.]+),", str(error.value))
    assert remedy is not None
    mask = attention_mask(torch.rand(1, 196), torch.rand(1, 196), torch.rand(1, 196), 186 / 196, float(remedy[1]))
    assert mask.sum() == 186


def test_rows_with_ratios_of_their_own_hide_what_each_would_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = [0.1, 0.3, 0.42, 0.9]
    noise, boxes = torch.rand(4, 49, generator=generator), torch.rand(4, 16, 4, generator=generator)
    counts = torch.from_numpy(nums_hidden(49, np.array(ratios)))
    assert counts.tolist() == [num_hidden(49, ratio) for ratio in ratios]
    masks = hide_first(block_order(noise, boxes, counts), counts), hide_first(noise, counts)
    for row, ratio in enumerate(ratios):
        own, own_boxes = noise[row : row + 1], boxes[row : row + 1]
        assert torch.equal(masks[0][row], block_mask(own, own_boxes, ratio)[0])
        assert torch.equal(masks[1][row], random_mask(own, ratio)[0])


def test_a_row_hides_one_patch_at_least_and_leaves_one() -> None:
    assert nums_hidden(16, np.array([0.0, 0.01, 0.99, 1.0])).tolist() == [1, 1, 15, 15]
