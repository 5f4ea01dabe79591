"""The encoder: a timm Vision Transformer behind one contract, images → `Features`.

Notable here:
- one class for every source (ours, MAE, DINO, iBOT, timm's hub), with timm's own tensor names, so
  that an encoder written by this project loads in timm as it is;
- any image size divisible by the patch size: positions are interpolated where the size differs from
  the one trained at;
- `encode_visible` projects only the patches it is given: the encoder half of MAE;
- the last block's queries and keys are reachable, for attention and for the part learner.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from semmae.patches import patchify, resize_positions, sincos_positions

# name: (width, depth, heads)
MODELS = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


class Features(NamedTuple):
    """What every encoder returns: class token (B, C) and patch tokens (B, L, C), after the final norm."""

    cls: Tensor
    patches: Tensor


@dataclass(frozen=True)
class EncoderSpec:
    """What must be known to build an encoder before its weights are loaded."""

    image_size: int  # pixels a side, as trained
    patch_size: int  # pixels a side
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    @classmethod
    def named(cls, model: str, image_size: int, patch_size: int) -> "EncoderSpec":
        """The specification of a size of `MODELS`."""
        width, depth, heads = MODELS[model]
        return cls(image_size, patch_size, width, depth, heads)


class Encoder(nn.Module):
    """A Vision Transformer with a class token.

    Args:
        spec: sizes and normalisation.
        vit: an existing timm model to wrap; by default a new one with fixed sine-cosine positions and
            MAE's initialisation.
    """

    def __init__(self, spec: EncoderSpec, vit: VisionTransformer | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.vit = build_vit(spec) if vit is None else vit

    @property
    def patch_size(self) -> int:
        """Pixels a side of one patch."""
        return self.spec.patch_size

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.spec.width

    @property
    def last_attention(self) -> Attention:
        """The attention layer of the last block: `qkv`, `q_norm`, `k_norm`, `num_heads`."""
        attention = self.vit.blocks[-1].attn
        assert isinstance(attention, Attention)
        return attention

    def forward(self, images: Tensor) -> Features:
        """Normalised images (B, 3, S, S), S any multiple of the patch size → `Features`."""
        tokens: Tensor = self.vit.forward_features(images)
        return self._split(tokens)

    def last_block_features(self, images: Tensor) -> Features:
        """What the last block's heads look at: its layer-normed input, as `Features`. SemMAE's ĉ and f̂."""
        return self._split(self._last_block_input(images))

    def _split(self, tokens: Tensor) -> Features:
        return Features(tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :])

    def attention(self, images: Tensor) -> Tensor:
        """Class-to-patch attention of the last block: (B, heads, L), softmax over all tokens.

        A row sums to less than 1: the class token attends to itself too.
        """
        queries, keys = self._last_queries_keys(self._last_block_input(images))
        logits = queries[:, :, :1] @ keys.transpose(-2, -1)
        return logits.softmax(-1)[:, :, 0, self.vit.num_prefix_tokens :]

    def _last_block_input(self, images: Tensor) -> Tensor:
        """Layer-normed input of the last block: (B, prefix + L, C)."""
        vit = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        for block in vit.blocks[:-1]:
            tokens = block(tokens)
        last = vit.blocks[-1]
        assert isinstance(last, Block)
        normed: Tensor = last.norm1(tokens)
        return normed

    def _last_queries_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries and keys of the last block, (B, heads, T, d) each, of its normed input (B, T, C)."""
        attention = self.last_attention
        batch, length, _ = tokens.shape
        qkv = attention.qkv(tokens).reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        return attention.q_norm(qkv[0]) * attention.scale, attention.k_norm(qkv[1])

    def encode_visible(self, images: Tensor, visible: Tensor) -> Tensor:
        """Encode only some patches: the encoder half of MAE.

        Args:
            images: normalised (B, 3, S, S).
            visible: indices of the patches to encode (B, V).

        Returns:
            (B, 1 + V, C): class token, then patches in the order of `visible`; after the final norm.
        """
        vit = self.vit
        assert vit.pos_embed is not None and vit.cls_token is not None
        # Gathered before the projection: three quarters of the patches are never multiplied.
        pixels = patchify(images, self.patch_size)
        chosen = pixels.gather(1, visible[:, :, None].expand(-1, -1, pixels.shape[2]))
        projection = vit.patch_embed.proj
        # The convolution's kernel is (C, 3, p, p); patches run over row, column, channel.
        kernel = projection.weight.permute(0, 2, 3, 1).reshape(self.width, -1)
        tokens = nn.functional.linear(chosen, kernel, projection.bias)
        positions = resize_positions(vit.pos_embed, images.shape[-1] // self.patch_size)
        grid = positions[:, 1:].expand(len(images), -1, -1)
        tokens = tokens + grid.gather(1, visible[:, :, None].expand(-1, -1, self.width))
        token = (vit.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([token, tokens], dim=1)
        for block in vit.blocks:
            tokens = block(tokens)
        normed: Tensor = vit.norm(tokens)
        return normed


def build_vit(spec: EncoderSpec) -> VisionTransformer:
    """A timm model of that size, initialised as the MAE release: `init_transformer`, fixed positions."""
    vit = VisionTransformer(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_ratio=spec.mlp_ratio,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        weight_init="skip",
    )
    init_transformer(vit)
    assert vit.pos_embed is not None and vit.cls_token is not None
    nn.init.normal_(vit.cls_token, std=0.02)
    vit.pos_embed.data.copy_(sincos_positions(spec.image_size // spec.patch_size, spec.width))
    vit.pos_embed.requires_grad_(False)
    return vit


def init_transformer(module: nn.Module) -> None:
    """Initialise every layer in place as the MAE release does.

    | layer            | weight                                | bias |
    |------------------|---------------------------------------|------|
    | linear           | Xavier uniform                        | 0    |
    | patch projection | Xavier uniform of the flat (C, 3·p·p) | 0    |
    | layer norm       | 1                                     | 0    |
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
