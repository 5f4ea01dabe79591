"""What learned parts are compared with: labels that the same frozen encoder gives without any learning.

- `head_labels`: the heads of its last block are the parts (SemMAE's own starting point).
- `cluster_labels`: its patch tokens are clustered by k-means, as Amir et al. (arXiv 2112.05814) cluster
  the keys made from them. (Tokens after the final norm, or of length 1, scored the same: on 200 drawn
  creatures NMI 10.5 to 11.0, no further apart than two seeds.)

Both see what the part learner sees, the layer-normed input of the last block, and both are upsampled as its maps are,
soft and before the argmax: neither content nor resolution is the difference. Neither is blurred: the blur is a part of
the method. Clusters are fitted to a sample of tokens: memory is bounded.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from semmae.data.loaders import normalise
from semmae.evaluation.features import evaluating
from semmae.models.vit import Encoder
from semmae.progress import Progress

Batch = Mapping[str, Tensor]  # "image" uint8 (B, 3, S, S)
Labels = npt.NDArray[np.uint8]

FIT_IMAGES = 256  # images that clusters are fitted to, at most: enough that no single one matters
FIT_TOKENS = 2**14  # tokens of them, at most: 25 MB for ViT-S
_FIT_STARTS = 4  # runs of k-means from other centres, of which the tightest is kept


def head_labels(attention: Tensor, grid: int, *, background: bool) -> Tensor:
    """The head that looks at a place most.

    Class-to-patch attention (B, heads, L) → uint8 (B, grid, grid). Each head's attention is scaled to sum to 1 over
    the patches, so that heads which look at the class token or at registers lose nothing by it. With `background`
    label 0 is where all heads together look less than they do on average, and heads are labels from 1 on.
    """
    maps = _upsampled(attention / attention.sum(-1, keepdim=True), grid)
    if background:
        average = torch.full_like(maps[:, :1], 1 / attention.shape[2])
        looked_at = maps.mean(1, keepdim=True) >= average
        return ((maps.argmax(1, keepdim=True) + 1) * looked_at).squeeze(1).to(torch.uint8)
    return maps.argmax(1).to(torch.uint8)


def cluster_labels(patches: Tensor, centres: Tensor, grid: int) -> Tensor:
    """Tokens (B, L, C), interpolated between the patches → the nearest of centres (K, C): uint8 (B, grid, grid)."""
    # |f - c|² but for |f|², which all clusters share: linear in f, so upsampling it is upsampling f.
    nearness = 2 * patches @ centres.T - centres.square().sum(1)
    return _upsampled(nearness.transpose(1, 2), grid).argmax(1).to(torch.uint8)


def fit_clusters(tokens: Tensor, clusters: int, seed: int) -> Tensor:
    """Centres (K, C) of k-means over tokens (N, C), on their device; fewer than asked where tokens are fewer.

    Repeatable to the last bit on a machine: one thread, as sums split over threads are not.
    """
    means = KMeans(min(clusters, len(tokens)), n_init=_FIT_STARTS, random_state=seed)
    with threadpool_limits(1):
        means.fit(tokens.float().cpu().numpy())
    return torch.from_numpy(means.cluster_centers_).to(tokens)


# Clusterings by name → the tokens (B, L, C) that they are of; centred: less the mean token of their image.
_CLUSTERED: dict[str, Callable[[Tensor], Tensor]] = {
    "kmeans": lambda patches: patches,
    "kmeans_centred": lambda patches: patches - patches.mean(1, keepdim=True),
}


@torch.inference_mode()
def sample_tokens(
    encoder: Encoder, batches: Iterable[Batch], *, images: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Patch tokens of the last block's input, equally many of each image, `FIT_TOKENS` in all at most.

    `images` is how many the batches hold in all. Clustering → its tokens (N, C), the same ones for each, on the
    encoder's device.
    """
    chosen: dict[str, list[Tensor]] = {name: [] for name in _CLUSTERED}
    with evaluating(encoder), Progress(images, label="tokens for k-means") as progress:
        for batch in progress.iterate(batches):
            patches = encoder.last_block_features(_pixels(encoder, batch)).patches
            count, length, _ = patches.shape
            share = min(length, -(-FIT_TOKENS // images))
            places = torch.rand(count, length, generator=generator).argsort(1)[:, :share].to(patches.device)
            index = places[:, :, None].expand(-1, -1, patches.shape[2])
            for name, prepared in _CLUSTERED.items():
                chosen[name].append(prepared(patches).gather(1, index).flatten(0, 1))
            progress.update(count)
    return {name: torch.cat(found)[:FIT_TOKENS] for name, found in chosen.items()}


@torch.inference_mode()
def baseline_labels(
    encoder: Encoder, batches: Iterable[Batch], centres: Mapping[str, Tensor], grid: int, *, images: int
) -> dict[str, Labels]:
    """Labels of every image by each baseline that looks at it: uint8 (N, grid, grid) each, in the order of the batches.

    By attention "heads" and "heads_background"; and by each clustering, of which `centres` has the centres (K, C).
    """
    labels: dict[str, list[Labels]] = {name: [] for name in ("heads", "heads_background", *centres)}
    with evaluating(encoder), Progress(images, label="baselines") as progress:
        for batch in progress.iterate(batches):
            pixels = _pixels(encoder, batch)
            attention = encoder.attention(pixels)
            patches = encoder.last_block_features(pixels).patches
            labels["heads"].append(head_labels(attention, grid, background=False).cpu().numpy())
            labels["heads_background"].append(head_labels(attention, grid, background=True).cpu().numpy())
            for name, found in centres.items():
                labels[name].append(cluster_labels(_CLUSTERED[name](patches), found, grid).cpu().numpy())
            progress.update(len(pixels))
    return {name: np.concatenate(parts) for name, parts in labels.items()}


def _pixels(encoder: Encoder, batch: Batch) -> Tensor:
    device = next(encoder.parameters()).device
    return normalise(batch["image"].to(device, non_blocking=True), encoder.spec.mean, encoder.spec.std)


def _upsampled(maps: Tensor, grid: int) -> Tensor:
    """Maps over the patches (B, K, L) → (B, K, grid, grid), as the part learner's are."""
    side = round(maps.shape[2] ** 0.5)
    squares = maps.reshape(*maps.shape[:2], side, side)
    return functional.interpolate(squares, (grid, grid), mode="bilinear", align_corners=False)
