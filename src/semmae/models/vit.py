"""The encoder: a timm Vision Transformer behind one contract, images → `Features`.

Notable here:
- one class for every source, with timm's own tensor names; `blocks` knows timm's families;
- any image size divisible by the patch size: positions are interpolated where it is not the one trained at;
- `encode_visible` projects only the patches it is given: the encoder half of MAE.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.errors import UserError
from semmae.models.blocks import (
    AnyBlock,
    HeadWeights,
    ViT,
    class_attention,
    embed,
    head_weights,
    is_rotary,
    keys_and_values,
    run_block,
    run_blocks,
)
from semmae.names import shown
from semmae.options.shared import Pooling
from semmae.patches import patchify, resize_positions, sincos_positions
from semmae.sizes import Grid, Size, patch_grid, sides, size_shown

# name: (width, depth, heads)
MODELS = {
    "vit_mini": (96, 4, 3),  # ours, for drawings and minutes; the others have names in timm
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


IMAGENET: tuple[tuple[float, ...], tuple[float, ...]] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class Features(NamedTuple):
    """What every encoder returns: class token (B, C) and patch tokens (B, L, C), after the final norm."""

    cls: Tensor
    patches: Tensor


class TokenViews(NamedTuple):
    """Patch tokens (B, L, C) after the final norm; keys and values (B, L, C) of the last block but one."""

    last: Tensor
    keys: Tensor
    values: Tensor


Seen = TypeVar("Seen")


class Look(NamedTuple, Generic[Seen]):
    """What a part learner has seen of images in one pass of an encoder, and what else that pass gave."""

    seen: Seen  # what its maps are made of
    attention: Tensor | None  # of the last block (B, heads, L), where it was asked for
    said: Features | None  # the encoder's output, where the pass came that far


@dataclass(frozen=True)
class EncoderSpec:
    """What must be known to build an encoder before its weights are loaded."""

    image_size: Size  # pixels, as trained
    patch_size: int  # pixels a side
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN  # a number a channel, of pixels from 0 to 1
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    @property
    def grid(self) -> Grid:
        """Rows and columns of the patches of an image, as trained."""
        return patch_grid(self.image_size, self.patch_size)

    @property
    def channels(self) -> int:
        """Of its images: three are RGB."""
        return len(self.mean)

    @classmethod
    def named(
        cls,
        model: str,
        image_size: Size,
        patch_size: int,
        colours: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
    ) -> "EncoderSpec":
        """Of a name among `MODELS`; `colours`: mean and standard deviation of its images."""
        width, depth, heads = MODELS[model]
        mean, std = colours
        return cls(image_size, patch_size, width, depth, heads, mean=mean, std=std)


def check_finite(encoder: "Encoder", *tokens: Tensor) -> None:
    """Refuse an encoder whose tokens, in half precision as they are stored, are no numbers."""
    if not all(own.isfinite().all() for own in tokens):
        raise UserError(
            f"--teacher {encoder.source}: its tokens are no numbers, or beyond 65504 and so too large for half "
            "precision, in which they are stored; use another encoder"
        )


class Encoder(nn.Module):
    """A Vision Transformer with a class token: the timm model given, or a new one (`build_vit`)."""

    def __init__(self, spec: EncoderSpec, vit: ViT | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.vit: ViT = build_vit(spec) if vit is None else vit
        # What no weight shows, set by `load_encoder` (the first by `MaskedAutoencoder` too): which vector says most of
        # an image, where it was loaded from as that was given, and what makes the transform of a specification
        # (networks know no files of images).
        self.pooling: Pooling = "cls"
        self.source = ""
        self.make_transform: Callable[[EncoderSpec], Callable[[Any], Tensor]] | None = None

    def __repr__(self) -> str:
        spec = self.spec
        pixels = spec.image_size if isinstance(spec.image_size, int) else size_shown(spec.image_size)
        sizes = f"{spec.width} x {spec.depth}, {pixels} px / {spec.patch_size}"
        return f"Encoder({shown(self.source)[:40] + ', ' if self.source else ''}{sizes})"

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """What makes input of images, see `ImageTransform`; ValueError where `load_encoder` did not load this."""
        if self.make_transform is None:
            raise ValueError("an encoder that was not loaded has no transform; make an ImageTransform by its spec")
        return self.make_transform(self.spec)

    @property
    def patch_size(self) -> int:
        return self.spec.patch_size

    @property
    def width(self) -> int:
        return self.spec.width

    @property
    def key_width(self) -> int:
        """Numbers of a patch's key, all heads together."""
        weight = head_weights(self.vit.blocks[-1]).key_weight
        return weight.shape[0] * weight.shape[1]

    def forward(self, images: Tensor) -> Features:
        """Normalised images (B, 3, H, W), sides any multiples of the patch size → `Features`."""
        self._check_size(images)
        tokens, rotary = embed(self.vit, images)
        for block, positions in zip(self.vit.blocks, rotary, strict=True):
            tokens = run_block(block, tokens, positions)
        return self._split(self.vit.norm(tokens))

    def set_image_size(self, image_size: Size) -> None:
        """Be an encoder of images of that size: learned or fixed positions are resampled in place."""
        if isinstance(self.vit, VisionTransformer):
            self.vit.set_input_size(img_size=sides(image_size))
        self.spec = replace(self.spec, image_size=image_size)

    def last_block_features(self, images: Tensor) -> Features:
        """What the last block's heads look at: its layer-normed input, as `Features`. SemMAE's ĉ and f̂."""
        block, tokens, _ = next(islice(self._blocks(images), self.spec.depth - 1, None))
        return self._split(block.norm1(tokens))

    def last_block(self, images: Tensor) -> tuple[Features, Tensor]:
        """`last_block_features` and `attention` of one pass; the second costs a twelfth of a block more."""
        block, tokens, rotary = next(islice(self._blocks(images), self.spec.depth - 1, None))
        attention = class_attention(block, tokens, rotary, self.vit.num_prefix_tokens)
        return self._split(block.norm1(tokens)), attention

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Class-to-patch attention of one block: (B, heads, L); later blocks are not run.

        A row sums to less than 1: the class token attends to itself too, and to registers.
        """
        depth = self.spec.depth
        if not -depth <= block < depth:
            raise ValueError(f"block {block} of an encoder of {depth}; choose from {-depth} to {depth - 1}")
        found = next(islice(self._blocks(images), block % depth, None))
        return class_attention(*found, self.vit.num_prefix_tokens)

    def token_views(self, images: Tensor, attention: bool = False) -> tuple[TokenViews, Tensor, Tensor | None]:
        """Of one pass: patch tokens in three views, class token (B, C) and, where asked for, the last `attention`."""
        prefix = self.vit.num_prefix_tokens
        for index, entered in enumerate(self._blocks(images)):
            block, tokens, rotary = entered
            if index == max(self.spec.depth - 2, 0):
                keys, values = keys_and_values(block, tokens[:, prefix:])
        heads = class_attention(block, tokens, rotary, prefix) if attention else None
        last = self._split(self.vit.norm(run_block(block, tokens, rotary)))
        return TokenViews(last.patches, keys, values), last.cls, heads

    def last_heads(self) -> HeadWeights:
        """Queries and keys of the last block's heads; ValueError where logits are not linear in its features."""
        block: AnyBlock = self.vit.blocks[-1]
        if is_rotary(self.vit):
            raise ValueError("the encoder rotates its keys by position; start the parts at random")
        if not isinstance(block.attn.q_norm, nn.Identity):
            raise ValueError("the encoder normalises its queries and keys; start the parts at random")
        return head_weights(block)

    def _blocks(self, images: Tensor) -> Iterator[tuple[AnyBlock, Tensor, Tensor | None]]:
        """Every block, what enters it (B, prefix + L, C), and its rotary positions; run when the next is asked for."""
        self._check_size(images)
        tokens, rotary = embed(self.vit, images)
        for index, (block, positions) in enumerate(zip(self.vit.blocks, rotary, strict=True)):
            yield block, tokens, positions
            if index + 1 < len(self.vit.blocks):
                tokens = run_block(block, tokens, positions)

    def grid_of(self, images: Tensor) -> Grid:
        """Rows and columns of the patches of images (…, H, W)."""
        return patch_grid((images.shape[-2], images.shape[-1]), self.patch_size)

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height}×{width} pixels do not divide into patches of {self.patch_size}; "
                f"resize them to multiples of {self.patch_size}"
            )

    def _split(self, tokens: Tensor) -> Features:
        return Features(tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :])

    def encode_visible(self, images: Tensor, visible: Tensor, checkpointing: bool = False) -> Tensor:
        """Encode the patches of indices (B, V) only: (B, 1 + V, C), class token first, after the final norm."""
        tokens = self.embed_visible(images, visible)
        normed: Tensor = self.vit.norm(run_blocks(self.vit.blocks, tokens, checkpointing))
        return normed

    def embed_visible(self, images: Tensor, visible: Tensor) -> Tensor:
        """What enters the first block of the patches of indices (B, V): (B, 1 + V, C), class token first."""
        vit = self.vit
        assert isinstance(vit, VisionTransformer) and vit.pos_embed is not None and vit.cls_token is not None
        # Gathered before the projection: three quarters of the patches are never multiplied.
        pixels = patchify(images, self.patch_size)
        chosen = pixels.gather(1, visible[:, :, None].expand(-1, -1, pixels.shape[2]))
        projection = vit.patch_embed.proj
        # The convolution's kernel is (C, 3, p, p); patches run over row, column, channel.
        kernel = projection.weight.permute(0, 2, 3, 1).reshape(self.width, -1)
        tokens = nn.functional.linear(chosen, kernel, projection.bias)
        positions = resize_positions(vit.pos_embed, self.grid_of(images), self.spec.grid)
        grid = positions[:, 1:].expand(len(images), -1, -1)
        tokens = tokens + grid.gather(1, visible[:, :, None].expand(-1, -1, self.width))
        token = (vit.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        return torch.cat([token, tokens], dim=1)


def build_vit(spec: EncoderSpec) -> VisionTransformer:
    """A timm model of that size, initialised as the MAE release: `init_transformer`, fixed positions."""
    vit = VisionTransformer(
        img_size=sides(spec.image_size),
        patch_size=spec.patch_size,
        in_chans=spec.channels,
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
    vit.pos_embed.data.copy_(sincos_positions(spec.grid, spec.width))
    vit.pos_embed.requires_grad_(False)
    return vit


def init_as_dino(vit: VisionTransformer, learned_positions: bool = False) -> None:
    """Initialise a new model in place as DINO and iBOT do: truncated normal weights and tokens, deviation 0.02.

    Biases are 0; the patch projection stays as torch draws it. With `learned_positions` these are drawn likewise.
    """
    assert vit.cls_token is not None and vit.pos_embed is not None
    for layer in vit.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.trunc_normal_(vit.cls_token, std=0.02)
    if learned_positions:
        nn.init.trunc_normal_(vit.pos_embed, std=0.02)
        vit.pos_embed.requires_grad_(True)


def init_transformer(module: nn.Module) -> None:
    """Initialise every layer in place as the MAE release does.

    | layer            | weight                                | bias             |
    |------------------|---------------------------------------|------------------|
    | linear           | Xavier uniform                        | 0                |
    | patch projection | Xavier uniform of the flat (C, 3·p·p) | stays as it came |
    | layer norm       | 1                                     | 0                |

    A new patch projection comes with a bias uniform in ±1/√(3·p·p), torch's default, which the release keeps.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            continue
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
