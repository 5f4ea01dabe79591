"""Semantic segmentation measured: windows slid over whole images, and how well pixels are classified.

Notable here:
- an image is shown at the scale of training, in overlapping windows of that size, whose logits are averaged: every
  pixel is seen as the network saw pixels when it learned (mmsegmentation's `slide` mode);
- logits are brought to the annotation's own size, strip by strip, so that 150 classes of a large photo fit into memory;
- all figures come from three counts of pixels of each image and class, made on the device;
- pixels of an image are alike: how sure a figure is depends on the number of images, so it is asked of samples of
  whole images, drawn from those measured (the bootstrap of Efron, 1979);
- a class that is neither there nor predicted anywhere has no IoU, and does not count in the mean.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from semmae.data.loaders import normalise
from semmae.evaluation.features import evaluating
from semmae.progress import Progress
from semmae.sizes import Size, sides

Batch = Mapping[str, Tensor]  # of one: "image" uint8 (1, 3, h, w), "labels" uint8 (1, H, W), "row" int64 (1,)
_TOGETHER = 8  # windows in one pass
_STRIP = 2**24  # logits brought to the annotation's size at a time
_IGNORED = 255
_SAMPLES = 1000  # drawn for an interval
_ENDS = (0.025, 0.975)  # between which the figures of 95 % of the samples lie


@torch.inference_mode()
def evaluate(
    segmenter: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: int,
    size: Size,
    stride: Size,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    keep: Collection[int] = (),
    total: int | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Right, true and predicted pixels of each class, int64 (N, 3, K) on the CPU; and the predictions kept, by row.

    The segmenter, on `device`, makes logits (B, K, *size) of images (B, 3, *size) normalised by `mean` and
    `std`, one number a channel, for pixels in 0 to 1; it is run in evaluation mode, and left in the mode it came in.
    Batches have one image each, at the scale to look at it, and its labels at their own size, 255 = not measured.
    `dtype` is that of matrix products, where not float32; `keep`: rows whose predictions, uint8 (H, W), are kept.
    """
    counts: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    autocast = torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()
    with evaluating(segmenter), autocast, Progress(total, label="segmentation") as progress:
        for batch in progress.iterate(batches):
            image = normalise(batch["image"].to(device, non_blocking=True), mean, std)
            labels = batch["labels"].to(device, non_blocking=True)
            predicted = most_likely(slide(segmenter, image, size, stride), *labels.shape[1:])
            counts.append(pixel_counts(predicted.flatten(), labels.flatten().long(), classes))
            if (row := int(batch["row"])) in keep:
                kept[row] = predicted[0].to(torch.uint8).cpu()
            progress.update()
    return torch.stack(counts).cpu(), kept


def pixel_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Predicted and true classes (P,), 255 = not measured → right, true and predicted pixels of each: int64 (3, K)."""
    known = labels != _IGNORED
    # One class more takes what is not counted: a selection would make the device wait for its size.
    right, true, given = (
        torch.where(counted, values, classes)
        for counted, values in ((known & (predicted == labels), labels), (known, labels), (known, predicted))
    )
    return torch.stack([_occurring(values, classes) for values in (right, true, given)])


def _occurring(values: Tensor, classes: int) -> Tensor:
    """How often each of K classes is among values in [0, K]; `bincount` would look for the highest on the device."""
    return torch.zeros(classes + 1, dtype=torch.long, device=values.device).scatter_add_(
        0, values, torch.ones_like(values)
    )[:classes]


def slide(segmenter: Callable[[Tensor], Tensor], image: Tensor, size: Size, stride: Size) -> Tensor:
    """Logits of an image of any size, the mean over the windows that show a pixel: float32 (1, K, h, w).

    The image (1, 3, h, w) is normalised; where smaller than a window it is filled up with the mean colour. The
    segmenter makes (B, K, *size) of windows (B, 3, *size), which begin every `stride` down and across.
    """
    (height, width), (down, across) = image.shape[-2:], sides(size)
    image = functional.pad(image, (0, max(0, across - width), 0, max(0, down - height)))
    lines = zip(image.shape[-2:], (down, across), sides(stride), strict=True)
    corners = list(itertools.product(*(window_starts(*line) for line in lines)))
    summed: Tensor | None = None
    seen = image.new_zeros(image.shape[-2:])
    for start in range(0, len(corners), _TOGETHER):
        some = corners[start : start + _TOGETHER]
        windows = torch.cat([image[..., top : top + down, left : left + across] for top, left in some])
        for (top, left), logits in zip(some, segmenter(windows).float(), strict=True):
            if summed is None:
                summed = logits.new_zeros(1, len(logits), *image.shape[-2:])
            summed[..., top : top + down, left : left + across] += logits
            seen[top : top + down, left : left + across] += 1
    assert summed is not None
    return summed.div_(seen)[..., :height, :width]  # in place: with many classes they are most of the memory


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of `size` begin on a line of `length`: every `stride`, and the last one ends at the end."""
    last = max(0, length - size)
    return [min(start, last) for start in range(0, last + stride, stride)]


def most_likely(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (1, K, h, w) → the class of every pixel of (1, height, width), int64.

    As bilinear interpolation and argmax do, but never all logits of the large image at once.
    """
    wide = functional.interpolate(logits, (logits.shape[-2], width), mode="bilinear", align_corners=False)
    rows = ((torch.arange(height, device=logits.device) + 0.5) * (logits.shape[-2] / height) - 0.5).clamp_min(0)
    above = rows.long()
    below = (above + 1).clamp_max(logits.shape[-2] - 1)
    weight = (rows - above)[:, None]
    strip = max(1, _STRIP // (logits.shape[1] * width))
    found = [
        torch.lerp(wide[:, :, above[part]], wide[:, :, below[part]], weight[part]).argmax(1)
        for part in torch.split(torch.arange(height, device=logits.device), strip)
    ]
    return torch.cat(found, dim=1)


def figures(counts: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What counts of pixels, int64 (N, 3, K) by `evaluate`, say of classes with these names, in percent.

    "miou", the mean intersection over union of the classes; "pixel_accuracy", the share of pixels classified rightly;
    "mean_class", the mean of the classes' shares; of more than one image each with its "…_low" and "…_high", between
    which it lies with 95 % confidence (of the images as drawn, not of the training's seed); "per_class", of each class
    "class", its name, "iou", "accuracy" (None where undefined) and "pixels" that it has in truth.
    """
    whole = counts.sum(0).double()
    iou, accuracy = _shares(whole)
    per_class = [
        {
            "class": name,
            "iou": _number(iou[index]),
            "accuracy": _number(accuracy[index]),
            "pixels": int(whole[1, index]),
        }
        for index, name in enumerate(names)
    ]
    intervals = _intervals(counts) if len(counts) > 1 else {}
    found: dict[str, Any] = {}
    for name, value in _means(whole).items():
        found[name] = _number(value)
        if name in intervals:
            found |= {f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
    return {**found, "per_class": per_class}


def _shares(counts: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and share of right pixels by class, percent (..., K), from counts (..., 3, K); NaN where it is absent."""
    right, true, predicted = counts.unbind(-2)
    return 100 * right / (true + predicted - right), 100 * right / true


def _means(counts: Tensor) -> dict[str, Tensor]:
    """The figures of all classes together, each (...), from counts (..., 3, K)."""
    iou, accuracy = _shares(counts)
    right, true, _ = counts.sum(-1).unbind(-1)
    return {"miou": iou.nanmean(-1), "pixel_accuracy": 100 * right / true, "mean_class": accuracy.nanmean(-1)}


def _intervals(counts: Tensor) -> dict[str, tuple[float, float]]:
    """Between which percentages each figure lies, by samples of as many images, drawn with replacement."""
    generator, images = torch.Generator().manual_seed(0), len(counts)
    flat = counts.double().flatten(1)
    drawn = (torch.randint(images, (images,), generator=generator) for _ in range(_SAMPLES))
    sums = torch.stack([torch.bincount(rows, minlength=images).double() @ flat for rows in drawn])
    samples = sums.view(len(sums), *counts.shape[1:])
    ends = torch.tensor(_ENDS, dtype=torch.double)
    found = {name: torch.nanquantile(values, ends).tolist() for name, values in _means(samples).items()}
    return {name: (low, high) for name, (low, high) in found.items()}


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
