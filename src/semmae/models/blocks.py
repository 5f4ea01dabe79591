"""timm's Vision Transformers block by block: what differs between its two families, answered once.

`VisionTransformer` (ViT, DINO, DINOv2, MAE, supervised …) adds positions to the tokens; `Eva` (DINOv3, EVA-02 …)
may rotate queries and keys by position instead, which its blocks must know, and stores biases otherwise.
Elsewhere the family matters only where sizes are read off a model, and where one of the two is refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from semmae.models import bf16

ViT = VisionTransformer | Eva
# What one class of blocks has and another lacks is no attribute to the type checker.
AnyBlock = Any


class HeadWeights(NamedTuple):
    """Queries and keys of one block's heads: weights (heads, d, C), biases (heads, d)."""

    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor


def check_readable(vit: nn.Module) -> ViT:
    """The model itself, if its tokens and the attention of every block can be read; else ValueError."""
    if not isinstance(vit, VisionTransformer | Eva):
        raise ValueError(f"its class in timm is {type(vit).__name__}, neither VisionTransformer nor Eva")
    if vit.cls_token is None:
        raise ValueError("the model has no class token")
    for block in vit.blocks:
        # Exact types: subclasses and other blocks order norm and attention differently.
        attention: Any = getattr(block, "attn", None)
        if type(block) not in (Block, EvaBlock) or type(attention) not in (Attention, EvaAttention, AttentionRope):
            raise ValueError(f"its blocks, {type(block).__name__}, have no plain attention")
        if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
            raise ValueError("its heads share keys (grouped-query attention)")
    return vit


def is_rotary(vit: ViT) -> bool:
    """Whether keys and queries of patches are rotated by their position."""
    return isinstance(vit, Eva) and vit.rope is not None


def embed(vit: ViT, images: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Tokens (B, prefix + L, C) that enter the first block, and every block's rotary positions."""
    patches = vit.patch_embed(images)
    if isinstance(vit, VisionTransformer):
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(patches))), [None] * len(vit.blocks)
    embedded, rotary = vit._pos_embed(patches)
    # "Mixed" rotary positions are learned for every block: their first axis is the depth.
    per_block = list(rotary) if vit.rope_mixed and rotary is not None else [rotary] * len(vit.blocks)
    return vit.norm_pre(embedded), per_block


def run_block(block: AnyBlock, tokens: Tensor, rotary: Tensor | None = None) -> Tensor:
    """Tokens (B, T, C) → (B, T, C)."""
    if rotary is None and bf16.applies(block, tokens):
        return bf16.run_block(block, tokens)
    out: Tensor = block(tokens) if rotary is None else block(tokens, rope=rotary)
    return out


def run_blocks(
    blocks: Iterable[AnyBlock], tokens: Tensor, checkpointing: bool = False, bf16_residual: bool = False
) -> Tensor:
    """Tokens (B, T, C) through blocks without rotary positions; `checkpointing` computes activations again backward.

    With `bf16_residual`, inside of bf16 autocast, what blocks add to is bf16 too, and so are the tokens returned.
    """
    if bf16_residual and torch.is_autocast_enabled(tokens.device.type):
        tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(run_block, block, tokens, use_reentrant=False)
            tokens = again
        else:
            tokens = run_block(block, tokens)
    return tokens


def head_weights(block: AnyBlock) -> HeadWeights:
    """The block's queries and keys as linear functions of its layer-normed input; a bias it lacks is 0."""
    heads = block.attn.num_heads
    parts: list[Tensor] = []
    for weight, bias in _projections(block.attn)[:2]:
        rows = weight.reshape(heads, -1, weight.shape[1])
        parts += [rows, rows.new_zeros(rows.shape[:2]) if bias is None else bias.reshape(heads, -1)]
    return HeadWeights(*parts)


def keys_and_values(block: AnyBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, T, D) of all heads side by side, not rotated, of the tokens (B, T, C) that enter a block."""
    normed = block.norm1(tokens)
    _, key, value = _projections(block.attn)
    return functional.linear(normed, *key), functional.linear(normed, *value)


def _projections(attention: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values; where one linear makes all three, Eva keeps biases beside it."""
    if attention.qkv is None:
        return [(layer.weight, layer.bias) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    if isinstance(attention, EvaAttention):
        biases = [attention.q_bias, attention.k_bias, attention.v_bias]
    else:
        bias = attention.qkv.bias
        biases = [None, None, None] if bias is None else list(bias.chunk(3))
    return list(zip(attention.qkv.weight.chunk(3), biases, strict=True))


def class_attention(block: AnyBlock, tokens: Tensor, rotary: Tensor | None, prefix: int) -> Tensor:
    """Class-to-patch attention of a block, (B, heads, L), of the tokens (B, prefix + L, C) that enter it."""
    attention = block.attn
    normed = block.norm1(tokens)
    heads = head_weights(block)
    query = attention.q_norm(_project(normed[:, :1], heads.query_weight, heads.query_bias))
    keys = attention.k_norm(_project(normed, heads.key_weight, heads.key_bias))
    if rotary is not None:
        # The class token and registers have no place, so they are not rotated.
        rotated = apply_rot_embed_cat(keys[:, :, prefix:], rotary, half=attention.rotate_half)
        keys = torch.cat([keys[:, :, :prefix], rotated.type_as(keys)], dim=2)
    logits: Tensor = (query * attention.scale) @ keys.transpose(-2, -1)
    return logits.softmax(-1)[:, :, 0, prefix:]


def _project(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Tokens (B, T, C), weight (heads, d, C), bias (heads, d) → (B, heads, T, d)."""
    projected: Tensor = functional.linear(tokens, weight.flatten(0, 1), bias.flatten())
    return projected.reshape(*tokens.shape[:2], *bias.shape).transpose(1, 2)
