"""Transformer blocks in bf16 on a CPU: the mathematics of timm's, the gradients that torch is slow at by hand.

On CPUs whose matrix units compute in bf16 (AMX, AVX-512) the products themselves cost little, and three things
around them a lot; docs/performance.md has the figures. All three are mended here, in the backward pass alone:
- the backward pass of torch's fused attention, several times its forward pass: `attention` makes the
  probabilities anew, sample by sample, and multiplies batches of matrices, which stay in the cache;
- a weight's gradient, dYᵀ·X, whose first factor lies by columns: `linear` turns the narrower side first;
- autocast's casts of what is bf16 or float32 already.
And less is kept between the two passes: normed tokens, active GELUs and weights in bf16 are soon made again.

Outside bf16 autocast on a CPU, `blocks.run_block` leaves the block to timm.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Numbers of attention that each core works on together: 2 MiB in bf16, about its second-level cache.
_TOGETHER = 2**20


def applies(block: nn.Module, tokens: Tensor) -> bool:
    """Whether `run_block` here is the faster way for this block: gradients, on a CPU, under bf16 autocast."""
    return (
        tokens.device.type == "cpu"
        and tokens.dtype is torch.float32
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and _is_plain(block)
    )


def _is_plain(block: Any) -> bool:
    """Whether a block is MAE's, and all that it consists of what is computed here."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    if block._forward_pre_hooks or block._forward_hooks or "forward" in vars(block):
        return False  # which would be passed by: of a profiler, of shards that are to be gathered; a compiled one
    norms = (block.norm1, block.norm2)
    linears = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    nothing = (block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm)
    inside = (getattr(block.attn, "norm", None), getattr(block.mlp, "norm", None))
    dropouts = (block.attn.attn_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)
    activation = block.mlp.act
    return (
        # Exact types: a subclass may compute something else, as timm's norm over channels of pictures does, an adapter
        # around a layer, or a quantised one.
        all(type(layer) in (nn.LayerNorm, LayerNorm) and layer.weight is not None for layer in norms)
        and all(type(layer) is nn.Linear for layer in linears)
        and all(layer.bias is not None for layer in (*norms, *linears))
        and all(isinstance(layer, nn.Identity) for layer in nothing)
        and all(isinstance(layer, nn.Identity | DropPath) for layer in (block.drop_path1, block.drop_path2))
        and all(layer is None or isinstance(layer, nn.Identity) for layer in inside)
        and not any(getattr(layer, "p", 0.0) for layer in dropouts)
        and isinstance(activation, nn.GELU)
        and activation.approximate == "none"
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in block.modules())
    )


def run_block(block: Any, tokens: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """One plain block of timm's: tokens float32 (B, T, C) → float32 (B, T, C), products in `dtype`."""
    attended = attention(norm_linear(tokens, block.norm1, block.attn.qkv, dtype), block.attn.num_heads)
    tokens = tokens + block.drop_path1(linear(attended, block.attn.proj))
    hidden = norm_linear(tokens, block.norm2, block.mlp.fc1, dtype)
    out: Tensor = tokens + block.drop_path2(gelu_linear(hidden, block.mlp.fc2))
    return out


def linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """A layer in the type of its inputs: (…, K) → (…, N). Gradients of its weights are float32."""
    out: Tensor = _Linear.apply(inputs, layer.weight, layer.bias)
    return out


def gelu_linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """`linear` of the exact GELU of the inputs, which is not kept but made again."""
    out: Tensor = _GeluLinear.apply(inputs, layer.weight, layer.bias)
    return out


def norm_linear(tokens: Tensor, norm: nn.LayerNorm, layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """`linear` in `dtype` of the normed tokens, float32 (…, K) → (…, N); they are not kept but made again."""
    out: Tensor = _NormLinear.apply(tokens, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias, dtype)
    return out


class _Linear(torch.autograd.Function):
    """Keeps no copy of its weight in bf16: together these are a quarter of what a step keeps, and soon made again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        return _linear_grads(grad, inputs, weight, ctx.needs_input_grad)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _linear(functional.gelu(inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        active = functional.gelu(inputs)
        for_active, for_weight, for_bias = _linear_grads(grad, active, weight, ctx.needs_input_grad)
        for_inputs = None if for_active is None else torch.ops.aten.gelu_backward(for_active, inputs)
        return for_inputs, for_weight, for_bias


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, scale: Tensor, shift: Tensor, eps: float,
        weight: Tensor, bias: Tensor, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        normed, mean, deviation = torch.native_layer_norm(tokens, scale.shape, scale, shift, eps)
        ctx.save_for_backward(tokens, mean, deviation, scale, shift, weight)
        ctx.eps, ctx.dtype = eps, dtype
        return _linear(normed.to(dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, mean, deviation, scale, shift, weight = ctx.saved_tensors
        normed = torch.native_layer_norm(tokens, scale.shape, scale, shift, ctx.eps)[0].to(ctx.dtype)
        of_norm, of_layer = ctx.needs_input_grad[:3], ctx.needs_input_grad[4:6]
        for_normed, for_weight, for_bias = _linear_grads(grad, normed, weight, (any(of_norm), *of_layer))
        for_norm = (None, None, None)
        if for_normed is not None:
            for_norm = torch.ops.aten.native_layer_norm_backward(
                for_normed.to(tokens.dtype), tokens, scale.shape, mean, deviation, scale, shift, of_norm
            )
        return *for_norm, None, for_weight, for_bias, None


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))


def _linear_grads(
    grad: Tensor, inputs: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a layer's inputs, weight and bias, the needed ones, given that of its outputs."""
    rows = grad.flatten(0, -2)
    for_inputs = (rows @ weight.to(rows.dtype)).view_as(inputs) if needed[0] else None
    if not any(needed[1:]):
        return for_inputs, None, None
    for_weight, for_bias = _layer_grads(rows, inputs.flatten(0, -2))
    return for_inputs, for_weight.float(), for_bias.float()


def _layer_grads(grad: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight (N, K) and bias (N,), given those of the outputs (T, N) and the inputs (T, K).

    The product gradᵀ · inputs is twice as fast where its first factor lies by rows. So the narrower side is turned
    first, if the copy costs less than it saves: the gradient as it is wanted, or the inputs, and then the result,
    which is (K, N), is turned back. A row of ones among the inputs adds the bias's up, which is slow over columns.
    """
    count, out, into = *grad.shape, inputs.shape[1]
    if 2 * out <= into:
        turned = grad.t().contiguous()
        return turned @ inputs, turned.sum(1)
    if 2 * into <= min(out, count):
        turned = inputs.new_empty(into + 1, count)
        turned[:-1] = inputs.t()
        turned[-1] = 1.0
        both = turned @ grad
        return both[:-1].t().contiguous(), both[-1]
    return grad.t() @ inputs, grad.sum(0)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention of queries, keys and values side by side, (B, T, 3·C) → (B, T, C); scale 1/√(C/heads)."""
    out: Tensor = _Attention.apply(qkv, heads)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.heads = heads
        query, key, value = _split(qkv, heads)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (qkv,) = ctx.saved_tensors
        samples = max(1, _TOGETHER * torch.get_num_threads() // (ctx.heads * qkv.shape[1] ** 2))
        out = torch.empty_like(qkv)
        for inputs, outputs, grads in zip(*(t.split(samples) for t in (qkv, out, grad.contiguous())), strict=True):
            _attention_grad(inputs, grads, ctx.heads, outputs)
        return out, None


def _split(qkv: Tensor, heads: int) -> Tensor:
    """(B, T, 3·C) → a view (3, B, heads, T, d)."""
    batch, count, width = qkv.shape
    return qkv.view(batch, count, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)


def _attention_grad(qkv: Tensor, grad: Tensor, heads: int, out: Tensor) -> None:
    """Write the gradient of some samples' queries, keys and values (b, T, 3·C), given that of their output."""
    count = qkv.shape[1]
    query, key, value = _split(qkv, heads).flatten(1, 2)  # copies (b·heads, T, d)
    upstream = grad.view(len(qkv), count, heads, -1).transpose(1, 2).flatten(0, 1)
    scale = query.shape[2] ** -0.5
    to_query, to_key, to_value = _split(out, heads)
    logits = _scaled(query, key.transpose(1, 2), scale)
    probabilities = logits.softmax(-1)
    to_value.copy_((probabilities.transpose(1, 2) @ upstream).view_as(to_value))
    towards = upstream @ value.transpose(1, 2)
    towards = torch.ops.aten._softmax_backward_data(towards, probabilities, -1, qkv.dtype)
    to_query.copy_(_scaled(towards, key, scale).view_as(to_query))
    to_key.copy_(_scaled(towards.transpose(1, 2), query, scale).view_as(to_key))


def _scaled(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """scale · first · second of batches of matrices, scaled before it is rounded."""
    ignored = first.new_empty(()).expand(len(first), first.shape[1], second.shape[2])
    return torch.baddbmm(ignored, first, second, beta=0, alpha=scale)
