"""The part learner: patch tokens of a frozen encoder → soft maps of parts.

Notable here:
- one small learner twice: object and background by the encoder's last tokens, then parts within the object by keys of
  the last block but one. Within one softmax the background would take the parts' place;
- a map is a softmax over cosines to prototypes, which start as clusters of tokens: where a part is absent from an
  image, its map is empty there;
- nothing is drawn from a map but what it says: its parts' mean tokens rebuild the image's tokens (`rebuild_loss`),
  linearly. A decoder with freedom of its own, as the published one has (`published_parts`), rebuilds an image from
  maps that are no parts.

About linear bottlenecks of part descriptors: Choudhury et al. (arXiv 2111.06349); SCOPS (arXiv 1905.01298).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from semmae.clusters import fit_directions
from semmae.filters import refine_maps, upsample_maps
from semmae.models.vit import Encoder, Features, Look, TokenViews, check_finite
from semmae.sizes import Grid, Size, num_patches, square

_TEMPERATURES = (5.0, 10.0)  # what cosines are multiplied by at the start: of object and background, of parts
_FIT_IMAGES, _FIT_BYTES = 256, 2**29  # at most
_FIT_TOKENS = 2**15  # tokens at most that principal components are fitted to
_SUMMED = 2**12  # tokens whose products are summed in float32
_CLUSTERED = 12_000  # tokens at most that clusters are fitted to
_RUNS = 4  # of k-means, of which the tightest counts
_RIDGE = 1e-3  # share of the mean square of keys


def part_names(parts: int, background: bool = True) -> list[str]:
    """Names of the labels, the background's first."""
    return ["background"] * background + [f"part {number}" for number in range(1, parts + 1)]


@dataclass(frozen=True)
class PartsSpec:
    """What must be known to build a part learner before its weights are loaded."""

    width: int  # of the encoder's tokens
    key_width: int  # of its keys and values, all heads together: as a rule the same
    patch_size: int
    num_parts: int = 6
    components: int = 128  # principal components that are kept of tokens, at most
    refine: bool = True  # borders of labels follow those of the image (`refine_maps`)

    @classmethod
    def of(cls, encoder: Encoder, num_parts: int = 6, refine: bool = True) -> "PartsSpec":
        """Of an encoder's sizes."""
        return cls(encoder.width, encoder.key_width, encoder.patch_size, num_parts, refine=refine)

    @property
    def label_names(self) -> list[str]:
        return part_names(self.num_parts)

    def kept(self, width: int) -> int:
        """Numbers that are kept of a token of that width."""
        return min(self.components, width)


class PartTokens(NamedTuple):
    """What is learned from, reduced: last tokens (B, L, c), keys and values (B, L, d) of the last block but one."""

    last: Tensor
    keys: Tensor
    values: Tensor


class Reduction(nn.Module):
    """Tokens on their principal components, in a unit in which their mean squared distance from their mean is 1.

    `unit`: of tokens scaled to length 1, and not centred: directions are what is compared.
    """

    def __init__(self, width: int, kept: int, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit
        self.mean: Tensor
        self.basis: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width)[:, :kept].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (…, C) → float32 (…, kept)."""
        return (self._scaled(tokens) - self.mean) @ self.basis

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Take mean and components of tokens (N, C)."""
        tokens = self._scaled(tokens)
        mean = tokens.mean(0)
        centre = torch.zeros_like(mean) if self.unit else mean
        # In float32, of few enough to lose nothing, and added up in float64: all in float64 takes twice as long.
        shifted, products = tokens - centre, tokens.new_zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
        for at in range(0, len(shifted), _SUMMED):
            some = shifted[at : at + _SUMMED]
            products += some.T @ some
        _, vectors = torch.linalg.eigh(products)  # ascending
        basis = vectors.flip(1)[:, : self.basis.shape[1]].float()
        spread = ((tokens - mean) @ basis).square().sum(1).mean().sqrt()
        size = tokens.square().sum(1).mean().sqrt()  # tokens that are all alike are not blown up to noise
        self.mean.copy_(centre)
        self.basis.copy_(basis / spread.maximum(1e-3 * size).clamp_min(torch.finfo(torch.float32).tiny))

    def _scaled(self, tokens: Tensor) -> Tensor:
        tokens = tokens.float()
        return functional.normalize(tokens, dim=-1) if self.unit else tokens


class Prototypes(nn.Module):
    """Tokens → shares of K prototypes: softmax over k of τ · cos(M z, w_k) + b_k; M starts as the identity."""

    def __init__(self, count: int, width: int, temperature: float, mapped: bool) -> None:
        super().__init__()
        # In tens: so the optimiser, whose steps are alike for all, moves it by what counts.
        self.temperature = nn.Parameter(torch.tensor(temperature / 10))
        self.map = nn.Parameter(torch.eye(width)) if mapped else None
        self.vectors = nn.Parameter(torch.randn(count, width))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, d) → (B, L, K), which sum to 1."""
        if self.map is not None:
            tokens = tokens @ self.map
        cosines = functional.normalize(tokens, dim=-1) @ functional.normalize(self.vectors, dim=1).T
        return (10 * self.temperature * cosines + self.bias).softmax(-1)


class PartLearner(nn.Module):
    """Object and background, and parts within the object, of the tokens of a frozen encoder."""

    def __init__(self, spec: PartsSpec) -> None:
        super().__init__()
        self.spec = spec
        last, keys = spec.kept(spec.width), spec.kept(spec.key_width)
        self.reductions = nn.ModuleList(  # of last tokens, keys, values
            [Reduction(spec.width, last, unit=True), Reduction(spec.key_width, keys), Reduction(spec.key_width, keys)]
        )
        self.object = Prototypes(2, last, _TEMPERATURES[0], mapped=False)  # the background first
        self.parts = Prototypes(spec.num_parts, keys, _TEMPERATURES[1], mapped=True)

    def look(self, encoder: Encoder, images: Tensor, attention: bool = False) -> Look[PartTokens]:
        """Reduced tokens of normalised images (B, 3, H, W)."""
        views, cls, heads = encoder.token_views(images, attention)
        seen = self.reduce(views)
        check_finite(encoder, *seen)
        return Look(seen, heads, Features(cls, views.last))

    def reduce(self, views: TokenViews) -> PartTokens:
        """Tokens as they are stored: of half precision, in half precision, whatever they were computed in."""
        with torch.autocast(views.last.device.type, enabled=False):
            return PartTokens(*(reduce(own.half()).half() for reduce, own in zip(self.reductions, views, strict=True)))

    def fit_reductions(self, views: TokenViews) -> None:
        """Take principal components of an encoder's tokens (N, L, C) of some images."""
        for reduction, tokens in zip(self.reductions, views, strict=True):
            flat = tokens.flatten(0, 1)
            assert isinstance(reduction, Reduction)
            reduction.fit(flat[:: max(1, len(flat) // _FIT_TOKENS)])

    @torch.no_grad()
    def start_from_clusters(
        self, tokens: PartTokens, seed: int, *, mapped: bool = False, grid: Grid | None = None
    ) -> None:
        """Let the prototypes be clusters of reduced tokens (N, L, d): two of all, the others of the object's keys.

        The tightest of some runs of k-means count. `mapped`: keys are mapped before to what they say of the values'
        differences from their image's mean object, which is what parts have to rebuild. Clusters of the keys as they
        are end in several ways, of which some learn worse. `grid`: rows and columns of the L patches; None: a square.
        """
        inside = self._start_object(tokens, seed, grid)
        if mapped:
            assert self.parts.map is not None, "of a part learner"
            self.parts.map.copy_(self._map_to_values(tokens, inside))
        self._start_parts(tokens.keys[inside], seed)

    def _start_object(self, tokens: PartTokens, seed: int, grid: Grid | None) -> Tensor:
        """Two clusters, the background that to which most of the images' borders belong; the object, bool (N, L)."""
        pair = fit_directions(_drawn(tokens.last.flatten(0, 1), seed), 2, seed, _RUNS)
        self.object.vectors.copy_(pair)
        nearest = self._shares(self.object, tokens.last).argmax(-1)
        if nearest[:, border(nearest.shape[1], grid)].float().mean() > 0.5:
            self.object.vectors.copy_(pair.flip(0))
            nearest = 1 - nearest
        inside = nearest == 1
        return inside if inside.sum() >= self.spec.num_parts else torch.ones_like(inside)  # no object: all is its own

    def _map_to_values(self, tokens: PartTokens, inside: Tensor) -> Tensor:
        """Ridge regression of values on keys (N, L, d) of the object (N, L): (d, d), as long as the identity."""
        rows = torch.linspace(0, len(inside) - 1, min(len(inside), _FIT_IMAGES)).round().long()
        weights = inside[rows].float()[:, :, None]
        keys, values = tokens.keys[rows].float() * weights, tokens.values[rows].float()
        means = (values * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        values = (values - means) * weights
        keys, values = keys.flatten(0, 1).double(), values.flatten(0, 1).double()
        products = keys.T @ keys
        products.diagonal().add_(_RIDGE * products.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
        found = torch.linalg.solve(products, keys.T @ values)
        size = float(found.norm())
        # Of values that are all alike there is nothing to say.
        return found.mul(len(found) ** 0.5 / size).float() if size > 0 else torch.eye(len(found))

    def _start_parts(self, inside: Tensor, seed: int) -> None:
        """Clusters of keys (M, d), as the parts see them."""
        inside = _drawn(inside, seed)
        if self.parts.map is not None:
            inside = inside @ self.parts.map
        self.parts.vectors.copy_(fit_directions(inside, self.spec.num_parts, seed, _RUNS))

    def forward(self, tokens: PartTokens) -> tuple[Tensor, Tensor]:
        """Shares of background and object (B, L, 2), and of the parts within the object (B, L, K); in float32."""
        with torch.autocast(tokens.last.device.type, enabled=False):
            return self.object(tokens.last.float()), self.parts(tokens.keys.float())

    def part_maps(self, tokens: PartTokens, grid: Grid | None = None) -> Tensor:
        """Soft parts of a batch: (B, 1 + K, *grid), background first; they sum to 1 at every patch.

        `grid`: rows and columns of the L patches; None: a square.
        """
        shares, parts = self(tokens)
        return _as_maps(shares, parts, grid)

    def labels(self, tokens: PartTokens, images: Tensor, grid: Grid | None = None) -> Tensor:
        """Hard parts of images uint8 (B, 3, G, G), as `guides` gives them: uint8 (B, G, G); `grid` as `part_maps`."""
        maps = self.part_maps(tokens, grid)
        maps = refine_maps(maps, images) if self.spec.refine else upsample_maps(maps, images.shape[-1])
        # Object or not is decided first: many parts share what is the object's.
        inside = maps[:, 1:].sum(1) > maps[:, 0]
        return ((maps[:, 1:].argmax(1) + 1) * inside).to(torch.uint8)

    @staticmethod
    def _shares(prototypes: Prototypes, tokens: Tensor, batch: int = 256) -> Tensor:
        """Shares (N, L, K) of many tokens, without all of them in single precision."""
        starts = range(0, len(tokens), batch)
        return torch.cat([prototypes(tokens[start : start + batch].float()) for start in starts])


def images_to_fit(encoder: Encoder, size: Size) -> int:
    """Of how many images of that size tokens are held at full width for what is fitted to them."""
    numbers = num_patches(size, encoder.patch_size) * (encoder.width + 2 * encoder.key_width)
    return min(_FIT_IMAGES, max(1, _FIT_BYTES // (2 * numbers)))  # in half precision


def border(length: int, grid: Grid | None = None) -> Tensor:
    """Which patches of a grid of L, by default a square, lie at its edge: bool (L,)."""
    edge = torch.zeros(grid or square(length), dtype=torch.bool)
    edge[0] = edge[-1] = edge[:, 0] = edge[:, -1] = True
    return edge.flatten()


def as_grid(shares: Tensor, grid: Grid | None = None) -> Tensor:
    """Shares of patches (B, L, K) → maps (B, K, *grid); without a grid of L patches, of a square."""
    return shares.transpose(1, 2).reshape(len(shares), -1, *(grid or square(shares.shape[1])))


def _drawn(tokens: Tensor, seed: int) -> Tensor:
    """As many of tokens (N, d) as clusters are fitted to."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:_CLUSTERED]
    return tokens[order.to(tokens.device)].float()


def _as_maps(shares: Tensor, parts: Tensor, grid: Grid | None) -> Tensor:
    inside = shares[:, :, 1:]
    return as_grid(torch.cat([1 - inside, inside * parts], 2), grid)
