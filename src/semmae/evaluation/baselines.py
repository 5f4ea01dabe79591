"""What learned parts are compared with: labels that the same frozen encoder gives without any learning.

- `head_labels`: the heads of its last block are the parts (SemMAE's own starting point).
- `cluster_labels`: its last patch tokens are clustered by k-means, as Amir et al. (arXiv 2112.05814) cluster
  the keys made from them.
- k-means in two steps: object and background by last tokens, then the object's keys of the last block but one. That
  is a `PartLearner` that has learned nothing, its keys not mapped, with the same borders of its labels.

The first two are upsampled, soft and before the argmax; their borders are not drawn to the image's, and they are not
blurred: both are a part of the methods. Clusters are fitted to a sample of images: memory is bounded.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semmae.clusters import fit_clusters
from semmae.data.loaders import normalise
from semmae.evaluation.features import evaluating
from semmae.filters import guides, upsample_maps
from semmae.models.parts import PartLearner, PartsSpec, as_grid
from semmae.models.vit import Encoder, TokenViews
from semmae.progress import Progress
from semmae.sizes import Grid

Batch = Mapping[str, Tensor]  # "image" uint8 (B, 3, H, W)
Labels = npt.NDArray[np.uint8]

FIT_TOKENS = 2**14  # tokens that k-means of all tokens is fitted to, at most: 25 MB for ViT-S


def head_labels(attention: Tensor, grid: int, *, background: bool, patches: Grid | None = None) -> Tensor:
    """The head that looks at a place most.

    Class-to-patch attention (B, heads, L) → uint8 (B, grid, grid). Each head's attention is scaled to sum to 1 over
    the patches, so that heads which look at the class token or at registers lose nothing by it. With `background`
    label 0 is where all heads together look less than they do on average, and heads are labels from 1 on. `patches`:
    rows and columns of the L; None: a square.
    """
    shares = (attention / attention.sum(-1, keepdim=True)).transpose(1, 2)
    maps = upsample_maps(as_grid(shares, patches), grid)
    if background:
        average = torch.full_like(maps[:, :1], 1 / attention.shape[2])
        looked_at = maps.mean(1, keepdim=True) >= average
        return ((maps.argmax(1, keepdim=True) + 1) * looked_at).squeeze(1).to(torch.uint8)
    return maps.argmax(1).to(torch.uint8)


def cluster_labels(patches: Tensor, centres: Tensor, grid: int, cells: Grid | None = None) -> Tensor:
    """Tokens (B, L, C), interpolated between the patches → the nearest of centres (K, C): uint8 (B, grid, grid).

    `cells`: rows and columns of the L; None: a square.
    """
    # |f - c|² but for |f|², which all clusters share: linear in f, so upsampling it is upsampling f.
    nearness = 2 * patches @ centres.T - centres.square().sum(1)
    return upsample_maps(as_grid(nearness, cells), grid).argmax(1).to(torch.uint8)


# Clusterings by name → the tokens (B, L, C) that they are of; centred: less the mean token of their image.
_CLUSTERED: dict[str, Callable[[Tensor], Tensor]] = {
    "kmeans": lambda patches: patches,
    "kmeans_centred": lambda patches: patches - patches.mean(1, keepdim=True),
}


class Clusters(NamedTuple):
    """What labels by clusters need: centres (K, C) of every clustering of all tokens, and a learner of two steps."""

    centres: dict[str, Tensor]
    two_steps: PartLearner


@torch.inference_mode()
def fit_baselines(encoder: Encoder, batches: Iterable[Batch], labels: int, seed: int, *, images: int) -> Clusters:
    """So many clusters of the patch tokens of some images, which the batches hold, `images` in all.

    Of all tokens equally many of each image count, `FIT_TOKENS` at most. In two steps there are as many labels.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = []
    with evaluating(encoder), Progress(images, label="tokens for k-means") as progress:
        for batch in progress.iterate(batches):
            views, _, _ = encoder.token_views(_pixels(encoder, batch))
            seen.append(TokenViews(*(view.half() for view in views)))
            progress.update(len(batch["image"]))
    views = TokenViews(*(torch.cat(each) for each in zip(*seen, strict=True)))
    count, length, _ = views.last.shape
    places = torch.rand(count, length, generator=generator).argsort(1)[:, : min(length, -(-FIT_TOKENS // count))]
    rows = torch.arange(count)[:, None]
    centres = {
        name: fit_clusters(prepared(views.last.float())[rows, places].flatten(0, 1)[:FIT_TOKENS], labels, seed)
        for name, prepared in _CLUSTERED.items()
    }
    two_steps = PartLearner(PartsSpec.of(encoder, max(labels - 1, 1))).to(views.last.device).eval()
    two_steps.fit_reductions(views)
    two_steps.start_from_clusters(two_steps.reduce(views), seed, grid=encoder.grid_of(batch["image"]))
    return Clusters(centres, two_steps)


@torch.inference_mode()
def baseline_labels(
    encoder: Encoder, batches: Iterable[Batch], clusters: Clusters, grid: int, *, images: int
) -> dict[str, Labels]:
    """Labels of every image by each baseline that looks at it: uint8 (N, grid, grid) each, in the order of the batches.

    By attention "heads" and "heads_background"; by each clustering of all tokens; and "kmeans_two_steps".
    """
    labels: dict[str, list[Labels]] = {}
    with evaluating(encoder), Progress(images, label="baselines") as progress:
        for batch in progress.iterate(batches):
            views, _, attention = encoder.token_views(_pixels(encoder, batch), attention=True)
            assert attention is not None, "it was asked for"
            two_steps, small = clusters.two_steps, guides(batch["image"].to(attention.device), grid)
            cells = encoder.grid_of(batch["image"])
            found = {
                "heads": head_labels(attention, grid, background=False, patches=cells),
                "heads_background": head_labels(attention, grid, background=True, patches=cells),
                **{
                    name: cluster_labels(_CLUSTERED[name](views.last), centres, grid, cells)
                    for name, centres in clusters.centres.items()
                },
                "kmeans_two_steps": two_steps.labels(two_steps.reduce(views), small, cells),
            }
            for name, own in found.items():
                labels.setdefault(name, []).append(own.cpu().numpy())
            progress.update(len(small))
    return {name: np.concatenate(parts) for name, parts in labels.items()}


def _pixels(encoder: Encoder, batch: Batch) -> Tensor:
    device = next(encoder.parameters()).device
    return normalise(batch["image"].to(device, non_blocking=True), encoder.spec.mean, encoder.spec.std)
