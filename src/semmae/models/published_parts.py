"""The part learner as published (SemMAE, section 3.1 and Figure 1 A): class token → part tokens → part maps → image.

Notable here:
- part tokens start as the heads of the frozen encoder's last block: part h's logits are then that
  head's class-to-patch logits, and training refines them;
- parts compete for every patch: the logits are normalised over the parts, then blurred;
- the decoder sees the maps and the class token, nothing else: where comes from the maps, how it looks
  from the token. That bottleneck is what turns maps into parts.
"""

from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from semmae.filters import upsample_maps
from semmae.models.parts import part_names
from semmae.models.vit import Encoder, Features, Look
from semmae.sizes import Grid, square


@dataclass(frozen=True)
class PublishedPartsSpec:
    """What must be known to build a part learner before its weights are loaded."""

    width: int  # of the encoder's tokens
    patch_size: int
    num_parts: int = 6
    background: bool = True  # one more label, 0, for what belongs to no part
    head_dim: int = 64  # channels of one part's query and key
    blur: int = 3  # cells a side of the low-pass kernel over the patch grid, odd; 1 = none
    channels: int = 3  # of the images
    decoder_width: int = 96  # channels at the patch grid, halved at every doubling, at least 32

    @property
    def doublings(self) -> int:
        """How often the decoder doubles the patch grid; past the wanted side where a patch is no power of two."""
        return max(1, (self.patch_size - 1).bit_length() - 1)  # to half the image's side at least

    @property
    def label_names(self) -> list[str]:
        return part_names(self.num_parts, self.background)


class PartsOutput(NamedTuple):
    """Maps (B, M, g, g), M = N or 1 + N; reconstruction (B, 3, s, s) of normalised pixels."""

    maps: Tensor
    reconstruction: Tensor


class PartAttention(nn.Module):
    """Part tokens embedded from the class token, and their logits over the patches.

    A part is a query of the class token and a key of the patches, as an attention head is:
    logit = (W_Q ĉ + b_Q)·(W_K f̂ + b_K)/√d, linear in f̂ with part token W_Kᵀ(W_Q ĉ + b_Q)/√d.
    """

    def __init__(self, width: int, num_parts: int, head_dim: int) -> None:
        super().__init__()
        self.query_weight = nn.Parameter(torch.empty(num_parts, head_dim, width))
        self.query_bias = nn.Parameter(torch.zeros(num_parts, head_dim))
        self.key_weight = nn.Parameter(torch.empty(num_parts, head_dim, width))
        self.key_bias = nn.Parameter(torch.zeros(num_parts, head_dim))
        nn.init.normal_(self.query_weight, std=width**-0.5)
        nn.init.normal_(self.key_weight, std=width**-0.5)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Layer-normed cls (B, C) and patches (B, L, C) of the last block's input → logits (B, N, L)."""
        query = torch.einsum("bc,ndc->bnd", cls, self.query_weight) + self.query_bias
        query = query * self.query_weight.shape[1] ** -0.5
        tokens = torch.einsum("bnd,ndc->bnc", query, self.key_weight)
        bias = (query * self.key_bias).sum(-1, keepdim=True)
        logits: Tensor = tokens @ patches.transpose(1, 2) + bias
        return logits

    @torch.no_grad()
    def start_from_heads(self, encoder: Encoder, generator: torch.Generator | None = None) -> None:
        """Copy queries and keys of the encoder's last block, in place.

        Parts beyond the number of heads repeat the heads with noise half as large as the weights
        (our choice; the paper has as many parts as heads).
        """
        for own, heads in zip(
            (self.query_weight, self.query_bias, self.key_weight, self.key_bias), encoder.last_heads(), strict=True
        ):
            for part in range(len(own)):
                values = heads[part % len(heads)]
                if part >= len(heads):
                    noise = torch.randn(values.shape, generator=generator).to(values)
                    values = values + 0.5 * values.std() * noise
                own[part] = values


class StyleDecoder(nn.Module):
    """Part maps → image: convolutions carry the layout, AdaIN the look (StyleGAN, arXiv 1812.04948)."""

    def __init__(self, spec: PublishedPartsSpec) -> None:
        super().__init__()
        width = spec.decoder_width
        self.first = nn.Conv2d(spec.num_parts + spec.background, width, 3, padding=1)
        self.layers = nn.ModuleList()
        for _ in range(spec.doublings):
            narrower = max(width // 2, 32)
            self.layers.append(StyleLayer(width, narrower, spec.width))
            width = narrower
        self.last = nn.Conv2d(width, spec.channels, 1)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps (B, M, h, w), style (B, C) → (B, 3, H, W), each side 2^doublings times as long."""
        features = functional.leaky_relu(self.first(maps), 0.2)
        for layer in self.layers:
            features = layer(features, style)
        rebuilt: Tensor = self.last(features)
        return rebuilt


class StyleLayer(nn.Module):
    """Upsample → convolution → AdaIN → nonlinearity."""

    def __init__(self, width_in: int, width_out: int, style_width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.style = nn.Linear(style_width, 2 * width_out)
        nn.init.normal_(self.style.weight, std=0.02)
        nn.init.zeros_(self.style.bias)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Features (B, W, s, s), style (B, C) → (B, W', 2·s, 2·s)."""
        features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        features = functional.instance_norm(self.convolution(features))
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        return functional.leaky_relu(features * (1.0 + scale) + shift, 0.2)


class PublishedPartLearner(nn.Module):
    """Part attention and style decoder over the tokens of a frozen encoder.

    The heads of the encoder's last block start the part tokens, `generator` those beyond; without an encoder all start
    at random.
    """

    def __init__(
        self, spec: PublishedPartsSpec, encoder: Encoder | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.kernel: Tensor
        self.attention = PartAttention(spec.width, spec.num_parts, spec.head_dim)
        # Background is what the parts together turn away from: bias − scale · mean of their logits.
        self.background = nn.Parameter(torch.tensor([0.0, 1.0])) if spec.background else None
        self.decoder = StyleDecoder(spec)
        if encoder is not None:
            self.attention.start_from_heads(encoder, generator)
        self.register_buffer("kernel", _binomial(spec.blur), persistent=False)

    def forward(self, features: Features, grid: Grid | None = None) -> PartsOutput:
        """`Encoder.last_block_features` of a batch → maps and reconstruction; `grid` as `part_maps`."""
        maps = self.part_maps(features, grid)
        return PartsOutput(maps, self.decoder(maps, features.cls))

    def part_maps(self, features: Features, grid: Grid | None = None) -> Tensor:
        """Soft parts of a batch: (B, M, *grid), background first; they compete for each patch, where they sum to 1.

        `grid`: rows and columns of the patches; None: a square.
        """
        logits = self.attention(features.cls, features.patches)
        # A head's softmax runs over patches and ignores its mean; parts are compared at equal mean.
        logits = logits - logits.mean(-1, keepdim=True)
        if self.background is not None:
            bias, scale = self.background.to(logits.dtype)
            logits = torch.cat([bias - scale * logits.mean(1, keepdim=True), logits], dim=1)
        return self._blur(logits.softmax(dim=1).unflatten(2, grid or square(logits.shape[2])))

    def _blur(self, maps: Tensor) -> Tensor:
        margin, count = self.spec.blur // 2, maps.shape[1]
        kernel = self.kernel.to(maps.dtype).expand(count, 1, -1, -1)
        padded = functional.pad(maps, (margin,) * 4, mode="replicate")
        return functional.conv2d(padded, kernel, groups=count)

    def look(self, encoder: Encoder, images: Tensor, attention: bool = False) -> Look[Features]:
        """What enters the last block, of normalised images (B, 3, H, W)."""
        seen, heads = encoder.last_block(images) if attention else (encoder.last_block_features(images), None)
        return Look(seen, heads, None)

    def labels(self, features: Features, images: Tensor, grid: Grid | None = None) -> Tensor:
        """Hard parts uint8 (B, G, G) of images (B, 3, G, G), whose size alone matters; `grid` as `part_maps`."""
        return upsample_maps(self.part_maps(features, grid), images.shape[-1]).argmax(dim=1).to(torch.uint8)


def _binomial(side: int) -> Tensor:
    """The (side, side) kernel of binomial coefficients, sum 1: the usual small low-pass filter."""
    row = torch.tensor([float(comb(side - 1, k)) for k in range(side)]) / 2 ** (side - 1)
    return torch.outer(row, row)
