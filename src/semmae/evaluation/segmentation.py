"""Semantic segmentation measured: windows slid over whole images, and how well the pixels' classes are told.

Notable here:
- an image is shown at the scale of training, in overlapping windows of that size, whose logits are averaged: every
  pixel is seen as the network saw pixels when it learned (mmsegmentation's `slide` mode);
- logits are brought to the mask's own size, strip by strip, so that 150 classes of a large photo fit into memory;
- all figures come from one table of true and told classes, which torchmetrics counts on the device;
- a class that is neither there nor told anywhere has no IoU, and does not count in the mean.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassConfusionMatrix

from semmae.data.loaders import normalise
from semmae.evaluation.features import evaluating
from semmae.progress import Progress

Batch = Mapping[str, Tensor]  # of one: "image" uint8 (1, 3, h, w), "labels" uint8 (1, H, W), "row" int64 (1,)
_TOGETHER = 8  # windows in one pass
_STRIP = 2**24  # logits brought to the mask's size at a time
_IGNORED = 255


@torch.inference_mode()
def evaluate(
    segmenter: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: int,
    size: int,
    stride: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    keep: Collection[int] = (),
    total: int | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Which classes are told for which, over all images.

    Args:
        segmenter: normalised images (B, 3, size, size) → logits (B, K, size, size); on `device`. Run in evaluation
            mode, left in the mode it came in.
        batches: one image each, at the scale to look at it, and its labels at their own size, 255 = not measured.
        classes: K.
        size: pixels a side of a window.
        stride: pixels between windows.
        mean: of the normalisation, one number a channel, for pixels in 0 to 1.
        std: likewise.
        device: where to compute.
        dtype: of matrix products, where not float32.
        keep: rows whose predictions are wanted.
        total: images in all, for the progress line.

    Returns:
        The table, int64 (K, K) on the CPU: true classes down, told ones across. The predictions kept, uint8 (H, W)
        each, by row.
    """
    table = _counter(classes).to(device)
    kept: dict[int, Tensor] = {}
    autocast = torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()
    with evaluating(segmenter), autocast, Progress(total, label="segmentation") as progress:
        for batch in progress.iterate(batches):
            image = normalise(batch["image"].to(device, non_blocking=True), mean, std)
            labels = batch["labels"].to(device, non_blocking=True)
            told = most_likely(slide(segmenter, image, size, stride), *labels.shape[1:])
            table.update(told.flatten(), labels.flatten().long())
            if (row := int(batch["row"])) in keep:
                kept[row] = told[0].to(torch.uint8).cpu()
            progress.update()
    return table.compute().long().cpu(), kept


def _counter(classes: int) -> MulticlassConfusionMatrix:
    """The table; counted by one process alone, for whom others would have to be asked if it were to sum over all."""
    return MulticlassConfusionMatrix(classes, ignore_index=_IGNORED, validate_args=False, sync_on_compute=False)


def slide(segmenter: Callable[[Tensor], Tensor], image: Tensor, size: int, stride: int) -> Tensor:
    """Logits of an image of any size, the mean over the windows that show a pixel.

    Args:
        segmenter: (B, 3, size, size) → (B, K, size, size).
        image: normalised, (1, 3, h, w); where smaller than a window it is filled up with the mean colour.
        size: pixels a side of a window.
        stride: pixels between windows; the last one ends at the edge.

    Returns:
        float32 (1, K, h, w).
    """
    height, width = image.shape[-2:]
    image = functional.pad(image, (0, max(0, size - width), 0, max(0, size - height)))
    corners = [
        (top, left)
        for top in window_starts(image.shape[-2], size, stride)
        for left in window_starts(image.shape[-1], size, stride)
    ]
    summed: Tensor | None = None
    seen = image.new_zeros(image.shape[-2:])
    for start in range(0, len(corners), _TOGETHER):
        some = corners[start : start + _TOGETHER]
        windows = torch.cat([image[..., top : top + size, left : left + size] for top, left in some])
        for (top, left), logits in zip(some, segmenter(windows).float(), strict=True):
            if summed is None:
                summed = logits.new_zeros(1, len(logits), *image.shape[-2:])
            summed[..., top : top + size, left : left + size] += logits
            seen[top : top + size, left : left + size] += 1
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


def figures(table: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What a table of true (down) and told (across) classes says, in percent.

    Returns:
        "miou", the mean intersection over union of the classes; "pixel_accuracy", the share of pixels told right;
        "mean_class", the mean of the classes' shares; "per_class", of each class "class", its name, "iou", "accuracy"
        (None where undefined) and "pixels" that it has in truth.
    """
    counts = table.double()
    right, true, told = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou, accuracy = 100 * right / (true + told - right), 100 * right / true  # NaN where a class is absent
    per_class = [
        {"class": name, "iou": _number(iou[index]), "accuracy": _number(accuracy[index]), "pixels": int(true[index])}
        for index, name in enumerate(names)
    ]
    return {
        "miou": _number(iou.nanmean()),
        "pixel_accuracy": _number(100 * right.sum() / counts.sum()),
        "mean_class": _number(accuracy.nanmean()),
        "per_class": per_class,
    }


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
