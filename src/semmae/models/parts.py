"""The part learner (SemMAE, section 3.1 and Figure 1 A): class token → part tokens → part maps → image.

Notable here:
- part tokens start as the heads of the frozen encoder's last block: part h's logits are then that
  head's class-to-patch logits, and training refines them;
- parts compete for every patch: the logits are normalised over the parts, then blurred;
- the decoder sees the maps and the class token, nothing else: where comes from the maps, how it looks
  from the token. That bottleneck is what turns maps into parts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from semmae.models.vit import Encoder, Features

# The binomial kernel of width 3: a fixed low-pass filter over the patch grid.
_BLUR = (0.25, 0.5, 0.25)


@dataclass(frozen=True)
class PartsSpec:
    """What must be known to build a part learner before its weights are loaded."""

    width: int  # of the encoder's tokens
    patch_size: int
    num_parts: int = 6
    background: bool = True  # one more label, 0, for what belongs to no part
    head_dim: int = 64  # channels of one part's query and key
    decoder_width: int = 96

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the order of the maps."""
        parts = [f"part {number}" for number in range(1, self.num_parts + 1)]
        return ["background", *parts] if self.background else parts


class PartsOutput(NamedTuple):
    """Maps (B, N or 1 + N, g, g), sum 1 at every patch; reconstruction (B, 3, s, s), normalised."""

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

        Raises:
            ValueError: the encoder normalises queries and keys, so that its logits are not linear.
        """
        attention = encoder.last_attention
        if not isinstance(attention.q_norm, nn.Identity):
            raise ValueError("the encoder normalises its queries and keys; start the parts at random")
        heads = attention.num_heads
        weight = attention.qkv.weight.reshape(3, heads, -1, self.key_weight.shape[2])
        bias = torch.zeros(weight.shape[:3]) if attention.qkv.bias is None else attention.qkv.bias.reshape(3, heads, -1)
        for part in range(len(self.key_weight)):
            own = ((self.query_weight, weight[0]), (self.query_bias, bias[0]))
            for parameter, source in (*own, (self.key_weight, weight[1]), (self.key_bias, bias[1])):
                values = source[part % heads]
                if part >= heads:
                    noise = torch.randn(values.shape, generator=generator).to(values)
                    values = values + 0.5 * values.std() * noise
                parameter[part] = values


class StyleDecoder(nn.Module):
    """Part maps → image: convolutions carry the layout, AdaIN the look (StyleGAN, arXiv 1812.04948)."""

    def __init__(self, num_maps: int, style_width: int, width: int, doublings: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_maps, width, 3, padding=1)
        self.layers = nn.ModuleList()
        for _ in range(doublings):
            narrower = max(width // 2, 32)
            self.layers.append(StyleLayer(width, narrower, style_width))
            width = narrower
        self.to_rgb = nn.Conv2d(width, 3, 1)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps (B, M, g, g) and style (B, C) → normalised pixels (B, 3, g·2^doublings, g·2^doublings)."""
        features = functional.leaky_relu(self.first(maps), 0.2)
        for layer in self.layers:
            features = layer(features, style)
        image: Tensor = self.to_rgb(features)
        return image


class StyleLayer(nn.Module):
    """Upsample ×2 → convolution → AdaIN → nonlinearity."""

    def __init__(self, width_in: int, width_out: int, style_width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.style = nn.Linear(style_width, 2 * width_out)
        nn.init.normal_(self.style.weight, std=0.02)
        nn.init.zeros_(self.style.bias)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Features (B, W, s, s), style (B, C) → (B, W', 2s, 2s)."""
        features = functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
        features = functional.instance_norm(self.convolution(features))
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        return functional.leaky_relu(features * (1.0 + scale) + shift, 0.2)


class PartLearner(nn.Module):
    """Part attention and style decoder over the tokens of a frozen encoder.

    Args:
        spec: sizes.
        encoder: its last block's heads start the part tokens; without it they start at random.
        generator: randomness of the parts beyond the number of heads.
    """

    def __init__(
        self, spec: PartsSpec, encoder: Encoder | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.kernel: Tensor
        self.attention = PartAttention(spec.width, spec.num_parts, spec.head_dim)
        # Background is what the parts together turn away from: bias − scale · mean of their logits.
        self.background = nn.Parameter(torch.tensor([0.0, 1.0])) if spec.background else None
        # Up to at least half the image's side, g·p/2; more where the patch size is no power of two.
        doublings = max(1, (spec.patch_size - 1).bit_length() - 1)
        self.decoder = StyleDecoder(len(spec.label_names), spec.width, spec.decoder_width, doublings)
        if encoder is not None:
            self.attention.start_from_heads(encoder, generator)
        blur = torch.tensor(_BLUR)
        self.register_buffer("kernel", torch.outer(blur, blur), persistent=False)

    def forward(self, features: Features) -> PartsOutput:
        """`Encoder.last_block_features` of a batch → maps and reconstruction."""
        maps = self.part_maps(features)
        return PartsOutput(maps, self.decoder(maps, features.cls))

    def part_maps(self, features: Features) -> Tensor:
        """Soft parts of a batch: (B, N or 1 + N, g, g), background first, sum 1 at every patch."""
        logits = self.attention(features.cls, features.patches)
        # A head's softmax runs over patches and ignores its mean; parts are compared at equal mean.
        logits = logits - logits.mean(-1, keepdim=True)
        if self.background is not None:
            bias, scale = self.background.to(logits.dtype)
            logits = torch.cat([bias - scale * logits.mean(1, keepdim=True), logits], dim=1)
        side = int(logits.shape[2] ** 0.5)
        return self._blur(logits.softmax(dim=1).unflatten(2, (side, side)))

    def _blur(self, maps: Tensor) -> Tensor:
        count = maps.shape[1]
        kernel = self.kernel.to(maps.dtype).expand(count, 1, 3, 3)
        return functional.conv2d(functional.pad(maps, (1, 1, 1, 1), mode="replicate"), kernel, groups=count)

    def labels(self, features: Features, grid: int) -> Tensor:
        """Hard parts of a batch on a grid × grid raster: uint8 (B, grid, grid).

        The soft maps are upsampled before the argmax, so that borders fall between patches.
        """
        maps = self.part_maps(features)
        maps = functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
        return maps.argmax(dim=1).to(torch.uint8)
