"""Masks for masked image modelling, as pure functions of their inputs.

A mask is bool (B, L) over the row-major patch grid, True = hidden, and every row hides the same
number of patches, so that the visible ones stack into one tensor. Randomness enters as `noise`,
uniform numbers drawn by the caller: the same noise gives the same mask on every device.

| strategy  | source                                   | what it reads                         |
|-----------|------------------------------------------|---------------------------------------|
| random    | MAE (arXiv 2111.06377), section 3        | noise                                 |
| block     | BEiT (arXiv 2106.08254), Algorithm 1     | noise, box noise                      |
| colour    | ColorMAE (arXiv 2407.13036), green noise | window noise, a field made once       |
| attention | AttMask (arXiv 2203.12719), section 3    | attention, noise, hint noise          |
| intra     | SemMAE (arXiv 2206.10207), setting 1     | parts, noise; blend 0                 |
| inter     | SemMAE, setting 2                        | parts, noise, order noise; blend 1    |
| semantic  | SemMAE, setting 3: from intra to inter   | parts, noise, order noise; any blend  |

Where hidden patches are replaced and nothing has to stack, as in iBOT, `hide_first` gives each row a count of its own.
How `blend` moves from 0 to 1 during training is the task's business, not this file's.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semmae.errors import UserError
from semmae.sizes import Grid, square


def num_hidden(num_patches: int, ratio: float) -> int:
    """How many of `num_patches` are hidden: L − ⌊L·(1 − ratio)⌋.

    MAE rounds the visible count down, and so does this: the only rounding in the project.

    Raises:
        UserError: the ratio is outside (0, 1), or leaves no visible or no hidden patch.
    """
    if not 0.0 < ratio < 1.0:
        raise UserError(f"mask ratio {ratio} is outside (0, 1); 0.75 is the usual choice")
    # 1 − 0.9 is 0.0999…98 in floating point: without the guard, 10 patches at 0.9 would keep none.
    visible = int(num_patches * (1.0 - ratio) + 1e-9)
    if visible < 1:
        # Rounded down: 1 − 1/196 to four digits is 0.9949, which would be refused too.
        highest = int((1.0 - 1.0 / num_patches) * 1e4) / 1e4
        lower = f"at most {highest:g}, " if highest else ""  # of a single patch nothing can be hidden
        raise UserError(
            f"mask ratio {ratio} leaves no visible patch of {num_patches}; use {lower}larger images or smaller patches"
        )
    if visible >= num_patches:
        raise UserError(f"mask ratio {ratio} hides no patch of {num_patches}; use a larger ratio")
    return num_patches - visible


def nums_hidden(num_patches: int, ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`num_hidden` of many ratios (B,), but that each hides one patch at least and leaves one visible: (B,).

    Of no tensor: how many patches a device hides is known without asking it.
    """
    visible = (num_patches * (1.0 - ratios) + 1e-9).astype(np.int64)
    return num_patches - visible.clip(1, num_patches - 1)


def hide_highest(scores: Tensor, count: int) -> Tensor:
    """Hide the `count` highest-scoring patches of every row: scores (B, L) → mask bool (B, L)."""
    hidden = scores.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, hidden, True)


def hide_first(order: Tensor, counts: Tensor) -> Tensor:
    """Hide of each row its own number of patches, the lowest first: order (B, L), counts (B,) → mask bool (B, L)."""
    return order.argsort(dim=1).argsort(dim=1) < counts[:, None]


def random_mask(noise: Tensor, ratio: float) -> Tensor:
    """Hide patches at random, the lowest noise first: noise (B, L) in [0, 1) → mask bool (B, L)."""
    return hide_highest(-noise, num_hidden(noise.shape[1], ratio))


def block_mask(noise: Tensor, box_noise: Tensor, ratio: float, grid: Grid | None = None) -> Tensor:
    """Hide rectangles of patches, box after box, the last one only in part → mask bool (B, L), True = hidden.

    At ratio 0.3 on 14 × 14, 79 % of the neighbours of a hidden patch are hidden, in BEiT's masks 84 %, by chance 30 %.

    Args:
        noise: uniform [0, 1) (B, L): which patches of the last box stay visible, and which others are hidden where
            all boxes together are too small.
        box_noise: uniform [0, 1) (B, K, 4), the area, aspect, row and column of K boxes in their order.
        ratio: share of patches to hide, the same count in every row.
        grid: rows and columns of the patches; None: as many of both.
    """
    hidden = num_hidden(noise.shape[1], ratio)
    return hide_highest(-block_order(noise, box_noise, torch.full_like(noise[:, 0], hidden), grid), hidden)


def block_order(noise: Tensor, box_noise: Tensor, counts: Tensor, grid: Grid | None = None) -> Tensor:
    """The order in which `block_mask` hides patches, the lowest first: float64 (B, L).

    Aspects are those of BEiT and iBOT: height / width log-uniform in 0.3 to 1 / 0.3. They draw one rectangle after the
    other, of 16 patches (on 14 × 14) up to what is still to be hidden, and draw again where it does not fit. Here all
    are drawn at once, of 4 patches up to all that is to be hidden, sides cut to the grid's, so that a batch is one
    call and the count is exact: `counts` (B,), how many patches each row is to hide.
    """
    rows, columns = grid or square(noise.shape[1])
    assert rows * columns == noise.shape[1], "boxes need a whole grid"
    hidden = counts[:, None].to(box_noise)
    smallest = hidden.clamp(max=4)
    area = smallest + (hidden - smallest) * box_noise[..., 0]
    aspect = torch.exp(math.log(0.3) * (1.0 - 2.0 * box_noise[..., 1]))
    lengths = ((area * aspect).sqrt().round(), (area / aspect).sqrt().round())  # heights and widths, (B, K) each
    down, across = (
        _within(own, box_noise[..., axis], cells)
        for axis, own, cells in ((2, lengths[0], rows), (3, lengths[1], columns))
    )
    covered = (down[..., :, None] & across[..., None, :]).flatten(2)  # (B, K, L)
    # The place of the first box over a patch; K where there is none. A maximum takes a twentieth of argmax's time.
    boxes = box_noise.shape[1]
    left = torch.arange(boxes, 0, -1, device=noise.device, dtype=torch.int16)
    first = boxes - (covered * left[:, None]).amax(1)
    # float64, in which no noise below 1 is rounded up into the next box.
    return first + noise.double()


def _within(lengths: Tensor, noise: Tensor, cells: int) -> Tensor:
    """Which of a line of cells lie in stretches of lengths (B, K) that begin by noise: bool (B, K, cells)."""
    lengths = lengths.clamp(1, cells)
    starts = (noise * (cells - lengths + 1)).floor()
    line = torch.arange(cells, device=noise.device)
    return (line >= starts[..., None]) & (line < (starts + lengths)[..., None])


def green_noise(white: Tensor, weak: float = 1.0, strong: float = 2.0) -> Tensor:
    """Waves of middle length (ColorMAE, section 3): white noise after a weak blur, less that after a strong one.

    A number is a patch, whatever the grid: with these deviations waves of 6.5 patches are the strongest, of 8, 14 or 16
    patches a side alike. The deviations are ours: the authors' code loads noise that is ready and names none.

    Args:
        white: independent numbers (S, S), S up to 4096; float64, lest processors that round differently order the
            result differently. Its opposite borders meet.
        weak: standard deviation of the Gaussian that takes short waves away, in patches.
        strong: that of the Gaussian whose waves are taken away.

    Returns:
        float32 (S, S), each number's place in ascending order: no two are alike, so that every device hides the same.
    """
    squared = torch.fft.fftfreq(len(white), dtype=white.dtype).square()  # frequencies in waves a patch
    decay = -2.0 * math.pi**2 * (squared[:, None] + squared)
    band = (decay * weak**2).exp() - (decay * strong**2).exp()
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * band).real
    return filtered.flatten().argsort().argsort().view_as(filtered).float()


def colour_mask(
    field: Tensor, window_noise: Tensor, num_patches: int, ratio: float, grid: Grid | None = None
) -> Tensor:
    """Hide the highest numbers of a window of filtered noise (ColorMAE) → mask bool (B, L), True = hidden.

    The authors leave the highest visible and flip windows at random, which noise that is alike upside down and in all
    directions needs not. At ratio 0.75 on 14 × 14, 85 % of the neighbours of a hidden patch are hidden, by chance 75 %.

    Args:
        field: `green_noise`, (S, S) on the masks' device, the same for all batches.
        window_noise: uniform [0, 1) (B, 2): the first row and column of each image's window, which may cross borders.
        num_patches: L.
        ratio: share of patches to hide, the same count in every row.
        grid: rows and columns of the patches; None: as many of both.
    """
    first = (window_noise * len(field)).long()
    down, across = (
        (first[:, axis, None] + torch.arange(cells, device=field.device)) % len(field)
        for axis, cells in enumerate(grid or square(num_patches))
    )
    window = field[down[:, :, None], across[:, None, :]]
    assert window[0].numel() == num_patches, "windows need a whole grid"
    return hide_highest(window.flatten(1), num_hidden(num_patches, ratio))


def num_hints(num_patches: int, hidden: int, hint: float, pool: float = 0.1) -> tuple[int, int]:
    """(patches that hints are drawn from, hints among them) for `attention_mask`.

    Raises:
        UserError: more hints than the `num_patches` − `hidden` visible patches.
    """
    visible = num_patches - hidden
    among = min(hidden, max(1, round(pool * num_patches)))
    hints = max(1, round(hint * among)) if hint > 0 else 0
    if hints > visible:
        raise UserError(
            f"attention hint {hint} leaves {hints} of the most attended patches visible, the mask ratio only {visible} "
            f"of all {num_patches}; use at most {int(visible / among * 1e4) / 1e4:g}, or a smaller ratio"
        )
    return among, hints


def attention_mask(
    attention: Tensor, noise: Tensor, hint_noise: Tensor, ratio: float, hint: float = 0.0, pool: float = 0.1
) -> Tensor:
    """Hide the most attended patches, but for a few as a hint (AttMask-High, -Hint) → mask bool (B, L), True = hidden.

    The paper reveals hints among the patches that it hides, so that fewer are hidden; here as many of the next most
    attended are hidden for them, so that the count stays that of `ratio`. Of equally attended patches those of the
    lowest noise are hidden first. AttMask-Low, the least attended, is this with `-attention`.

    Args:
        attention: what the patches are ordered by, (B, L), any scale.
        noise: uniform [0, 1) (B, L), settles ties.
        hint_noise: uniform [0, 1) (B, L): of the pool, the patches in their places of highest noise stay visible.
        ratio: share of patches to hide, the same count in every row.
        hint: share of the pool that stays visible; above 0 it is at least one patch.
        pool: share of patches, the most attended, that hints are drawn from.
    """
    length = attention.shape[1]
    hidden = num_hidden(length, ratio)
    among, hints = num_hints(length, hidden, hint, pool)
    by_attention = _by_attention(attention, noise)
    chosen = (torch.arange(length, device=noise.device) < hidden + hints).repeat(len(noise), 1)
    chosen[:, :among] &= ~hide_highest(hint_noise[:, :among], hints)
    return torch.zeros_like(chosen).scatter_(1, by_attention, chosen)


def most_attended(attention: Tensor, noise: Tensor, count: int) -> Tensor:
    """Attention (B, L), any scale → indices (B, count) of the most attended, ascending; noise (B, L) settles ties."""
    return _by_attention(attention, noise)[:, :count].sort(dim=1).values


def _by_attention(attention: Tensor, noise: Tensor) -> Tensor:
    """Patches (B, L) from the most to the least attended; equals in ascending order of noise."""
    by_noise = noise.argsort(dim=1)
    # A stable sort keeps the order of noise among equals.
    places = attention.gather(1, by_noise).argsort(dim=1, descending=True, stable=True)
    return by_noise.gather(1, places)


def part_counts(parts: Tensor, num_parts: int) -> Tensor:
    """Patches of every part: parts (B, L) integers in [0, K) → counts (B, K) int64."""
    counts = parts.new_zeros(parts.shape[0], num_parts, dtype=torch.long)
    return counts.scatter_add_(1, parts.long(), torch.ones_like(parts, dtype=torch.long))


def part_quotas(
    counts: Tensor, order_noise: Tensor, ratio: float, blend: float, hints: int = 0, keep_background: bool = False
) -> Tensor:
    """How many patches each part has to hide.

    Two quotas are blended (SemMAE, section 3.2): the intra quota H·n_k/L, the same share of every
    part, and the inter quota, whole parts in ascending order of `order_noise` until the budget H ends.

    Ours, and off by default: `hints` are set aside before either, so that both quotas are of what is left of a part
    and of the image; the background, `keep_background`, has its intra quota for both. Where the two want more than
    there is, hints give way first: with more of them than visible patches in an image, every larger part keeps the same
    share of its hints, rounded like quotas. The background's share can always be kept, and so is the sum.

    Args:
        counts: patches of each part (B, K), the same sum L in every row.
        order_noise: uniform [0, 1) (B, K); also settles ties of the rounding.
        ratio: share of patches to hide.
        blend: 0 hides a share of every part, 1 hides whole parts.
        hints: patches of every larger part that stay visible; a part is larger if it has more than so many.
        keep_background: label 0 hides its share at any blend, and whole parts are drawn among the others alone.

    Returns:
        (B, K) int64; every row sums to `num_hidden(L, ratio)`, each entry is within 1 of the blended
        quota and never above the part's size.
    """
    return _quotas(counts, order_noise, int(counts[0].sum()), ratio, blend, hints, keep_background)


def _quotas(
    counts: Tensor,
    order_noise: Tensor,
    total: int,
    ratio: float,
    blend: float,
    hints: int,
    keep_background: bool,
) -> Tensor:
    """`part_quotas` of rows whose sum is given: to ask the device for it would be to wait for it."""
    if not 0.0 <= blend <= 1.0:
        raise ValueError(f"blend {blend} is outside [0, 1]")
    if hints < 0:
        raise ValueError(f"hints {hints} are below 0")
    hidden = num_hidden(total, ratio)
    # Where an image has more hints than visible patches, so large a share of them that all of these are hints.
    apart = hints * (counts > hints).double()
    apart *= ((total - hidden) / apart.sum(1, keepdim=True)).clamp(max=1.0)
    # float64: H·n_k/L must round down to itself where it is whole.
    sizes = counts.double() - apart
    intra = sizes * hidden / sizes.sum(1, keepdim=True)
    whole, turns = sizes, order_noise
    if keep_background:
        # It takes its share before all others have their turns, as if it had no more.
        whole = torch.cat([intra[:, :1], sizes[:, 1:]], dim=1)
        turns = torch.cat([torch.full_like(order_noise[:, :1], -1.0), order_noise[:, 1:]], dim=1)
    order = turns.argsort(dim=1)
    ordered = whole.gather(1, order)
    before = ordered.cumsum(1) - ordered
    inter = torch.empty_like(whole).scatter_(1, order, torch.minimum(ordered, (hidden - before).clamp(min=0)))
    return _largest_remainder((1.0 - blend) * intra + blend * inter, order_noise, hidden)


def _largest_remainder(quotas: Tensor, tie_noise: Tensor, total: int) -> Tensor:
    """Round quotas (B, K) to integers that sum to `total`: the largest fractions are rounded up."""
    # Sums of halves and thirds land a hair below the whole number they stand for.
    floors = (quotas + 1e-6).floor()
    short = (total - floors.sum(1, keepdim=True)).long()
    # A remainder outweighs any noise: two remainders that differ by less than 1e-6 count as tied.
    remainders = ((quotas - floors) * 1e6).round() + tie_noise.double()
    rank = remainders.argsort(dim=1, descending=True).argsort(dim=1)
    return floors.long() + (rank < short)


def semantic_mask(
    parts: Tensor,
    noise: Tensor,
    order_noise: Tensor,
    ratio: float,
    blend: float,
    hints: int = 0,
    keep_background: bool = False,
) -> Tensor:
    """Hide each part's quota of patches (SemMAE, Figure 1 B) → mask bool (B, L), True = hidden.

    Inside a part the lowest noise is hidden first; whole parts go in ascending order of `order_noise`.

    Args:
        parts: part label of every patch (B, L), integers in [0, K).
        noise: uniform [0, 1) (B, L).
        order_noise: uniform [0, 1) (B, K); K is the number of labels.
        ratio: share of patches to hide, the same count in every row.
        blend: 0 = intra (a share of every part), 1 = inter (whole parts).
        hints: patches of every larger part that stay visible, and
        keep_background: whether label 0 hides its share throughout; ours, see `part_quotas`.
    """
    parts = parts.long()
    counts = part_counts(parts, order_noise.shape[1])
    quotas = _quotas(counts, order_noise, parts.shape[1], ratio, blend, hints, keep_background)
    # Sorted by part and then by noise, a part's quota is its first places. The sort is most of the work, and
    # gathers are the rest.
    by_part = (parts + noise.double()).argsort(dim=1)
    ends = counts.cumsum(1) - counts + quotas
    place = torch.arange(parts.shape[1], device=parts.device)
    under_quota = place < ends.gather(1, parts.gather(1, by_part))
    return torch.zeros_like(under_quota).scatter_(1, by_part, under_quota)
