"""Sliding windows and the figures of segmentation, against loops and against torchmetrics."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional import accuracy, jaccard_index

from semmae.data.loaders import normalise
from semmae.evaluation.segmentation import evaluate, figures, most_likely, slide, window_starts

K = 4


def position_dependent(windows: Tensor) -> Tensor:
    """Logits that depend on the pixel and on its place in the window: (B, 3, S, S) → (B, K, S, S)."""
    side = windows.shape[-1]
    ramp = torch.linspace(0, 1, side).expand(side, side)
    base = windows.mean(1, keepdim=True) + ramp
    return torch.cat([base * (k + 1) + ramp.T for k in range(K)], 1)


@pytest.mark.parametrize("length", [8, 9, 12, 13, 14, 24, 25])
@pytest.mark.parametrize("stride", [3, 5, 8])
def test_windows_reach_the_end_and_overlap(length: int, stride: int) -> None:
    starts = window_starts(length, 8, stride)
    seen = {start + offset for start in starts for offset in range(8)}
    assert seen == set(range(length)) and starts == sorted(set(starts))
    # mmsegmentation's grid
    count = max(length - 8 + stride - 1, 0) // stride + 1
    assert starts == [min(index * stride, length - 8) for index in range(count)]


@pytest.mark.parametrize("size", [(8, 8), (11, 30), (20, 8)])
def test_logits_are_the_mean_over_windows(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size)
    total, seen = torch.zeros(1, K, *size), torch.zeros(size)
    for top in window_starts(size[0], 8, 5):
        for left in window_starts(size[1], 8, 5):
            total[..., top : top + 8, left : left + 8] += position_dependent(image[..., top : top + 8, left : left + 8])
            seen[top : top + 8, left : left + 8] += 1
    torch.testing.assert_close(slide(position_dependent, image, 8, 5), total / seen)


def test_logits_are_held_once() -> None:
    """Of 150 classes and a large photo they are gigabytes."""
    made: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == (1, K, 20, 30):
                made.add(out.untyped_storage().data_ptr())
                kept.append(out)  # so that no memory is given out twice
            return out

    kept: list[Tensor] = []
    with Watch():
        slide(position_dependent, torch.randn(1, 3, 20, 30), 8, 5)
    assert len(made) == 1


def test_an_image_smaller_than_a_window_is_filled_up() -> None:
    image = torch.randn(1, 3, 5, 20)
    found = slide(position_dependent, image, 8, 8)
    filled = slide(position_dependent, functional.pad(image, (0, 0, 0, 3)), 8, 8)
    torch.testing.assert_close(found, filled[..., :5, :])


@pytest.mark.parametrize(("size", "target"), [((6, 9), (17, 40)), ((30, 20), (11, 7)), ((8, 8), (8, 8))])
def test_classes_at_another_size_as_by_interpolation(
    size: tuple[int, int], target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semmae.evaluation.segmentation._STRIP", 3 * K * target[1])  # three rows at a time
    logits = torch.randn(1, K, *size)
    expected = functional.interpolate(logits, target, mode="bilinear", align_corners=False)
    found = most_likely(logits, *target)
    # Of classes nearly alike the last bit decides.
    best = expected.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(best, expected.amax(1))
    assert (found == expected.argmax(1)).float().mean() > 0.99


class Painter(nn.Module):
    """Predicts the class that the first channel's colour means."""

    def forward(self, windows: Tensor) -> Tensor:
        centres = normalise(torch.arange(K).view(K, 1, 1, 1).mul(60).byte().expand(K, 3, 1, 1), (0, 0, 0), (1, 1, 1))
        return -((windows[:, :1] - centres[:, 0, 0, 0].view(1, K, 1, 1)) ** 2)


def test_evaluation_counts_every_pixel_once() -> None:
    """A network that reads the class off the colour: what it gets wrong is what was painted wrong."""
    generator = torch.Generator().manual_seed(0)
    batches, truths, found = [], [], []
    for row in range(3):
        labels = torch.randint(0, K, (1, 11 + row, 17), generator=generator).byte()
        colours = labels.clone()
        colours[:, :2] = (colours[:, :2] + 1) % K
        labels[:, 5] = 255
        image = (60 * colours).unsqueeze(1).expand(-1, 3, -1, -1)
        batches.append({"image": image, "labels": labels, "row": torch.tensor([row])})
        truths.append(labels.flatten())
        found.append(colours.flatten())
    counts, kept = evaluate(
        Painter(), batches, classes=K, size=8, stride=5, mean=(0, 0, 0), std=(1, 1, 1), keep=[1], total=3
    )
    expected = [counts_of(truth.long(), guess.long()) for truth, guess in zip(truths, found, strict=True)]
    assert torch.equal(counts, torch.stack(expected))
    assert list(kept) == [1] and torch.equal(kept[1].flatten(), found[1])


def table_of(truth: Tensor, guess: Tensor) -> Tensor:
    """True classes down, predicted ones across, int64 (K, K)."""
    known = truth != 255
    return torch.bincount(truth[known] * K + guess[known], minlength=K * K).view(K, K)


def counts_of(truth: Tensor, guess: Tensor) -> Tensor:
    table = table_of(truth, guess)
    return torch.stack([table.diagonal(), table.sum(1), table.sum(0)])


def test_figures_agree_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, guess = (torch.randint(0, K, (500,), generator=generator) for _ in range(2))
    guess[:200] = truth[:200]
    halves = [counts_of(truth[half], guess[half]) for half in (slice(0, 170), slice(170, 500))]
    found = figures(torch.stack(halves), ["a", "b", "c", "d"])
    options = {"task": "multiclass", "num_classes": K}
    assert found["miou"] == pytest.approx(100 * float(jaccard_index(guess, truth, average="macro", **options)))
    assert found["pixel_accuracy"] == pytest.approx(100 * float(accuracy(guess, truth, average="micro", **options)))
    assert found["mean_class"] == pytest.approx(100 * float(accuracy(guess, truth, average="macro", **options)))
    per_class = jaccard_index(guess, truth, average="none", **options)
    assert [facts["iou"] for facts in found["per_class"]] == pytest.approx((100 * per_class).tolist(), rel=1e-5)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    """c is predicted but not there: IoU 0; d is neither: none."""
    table = torch.tensor([[3, 1, 0, 0], [0, 4, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts = torch.stack([table.diagonal(), table.sum(1), table.sum(0)])[None]
    found = figures(counts, ["a", "b", "c", "d"])
    assert [facts["iou"] for facts in found["per_class"]] == [75.0, pytest.approx(400 / 7), 0.0, None]
    assert found["miou"] == pytest.approx((75 + 400 / 7 + 0) / 3)
    assert found["mean_class"] == pytest.approx(100 * (3 / 4 + 4 / 6) / 2)
    assert found["pixel_accuracy"] == 70.0
    assert [facts["pixels"] for facts in found["per_class"]] == [4, 6, 0, 0]
    assert not math.isnan(found["miou"])
    assert "miou_low" not in found  # one image says nothing of others


def images_of(number: int, generator: torch.Generator) -> Tensor:
    """Counts of images of 100 pixels, each of its own difficulty: shares that are right are spread as by Beta(8, 2)."""
    truth = torch.randint(0, K, (number, 100), generator=generator)
    share = 1 - torch.rand(number, 10, generator=generator).kthvalue(2, dim=1).values[:, None]  # an order statistic
    wrong = torch.rand(number, 100, generator=generator) > share
    return torch.stack(
        [counts_of(*pair) for pair in zip(truth, torch.where(wrong, (truth + 1) % K, truth), strict=True)]
    )


def test_intervals_hold_what_they_promise_and_pixels_would_not() -> None:
    """Of 100 draws of 60 images about 95 intervals hold the true share, 9/11; pixels taken one by one: far fewer."""
    generator = torch.Generator().manual_seed(0)
    held = narrow = 0
    for _ in range(100):
        found = figures(images_of(60, generator), ["a", "b", "c", "d"])
        held += found["pixel_accuracy_low"] <= 100 * 9 / 11 <= found["pixel_accuracy_high"]
        share = found["pixel_accuracy"] / 100
        narrow += abs(share - 9 / 11) <= 1.96 * math.sqrt(share * (1 - share) / 6000)
        for name in ("miou", "mean_class"):
            assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert 89 <= held <= 99 and narrow < 70
