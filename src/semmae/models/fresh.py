"""The same encoder with new weights: what a measured encoder is compared with, to see what training brought."""

import copy

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed, init_random_2d_freqs
from torch import nn

from semmae.models.blocks import ViT
from semmae.models.vit import Encoder, init_transformer
from semmae.models.weights import peculiarities

_STD = 0.02  # of tokens and learned positions (BERT, timm, MAE)
_LAYER_SCALE = 1e-5  # at the start of DINOv2 and DINOv3


def fresh_like(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same architecture and norms, in eval mode on the same device, that has learned nothing.

    A plain ViT begins as MAE's does, positions fixed. One with peculiarities (registers, layer scale, rotary
    positions …) keeps them, and begins by `reset`. The global random numbers are not moved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if peculiarities(encoder):
            fresh = copy.deepcopy(encoder).cpu()  # random numbers of the CPU, wherever it computes
            reset(fresh.vit)
        else:
            fresh = Encoder(encoder.spec)
            for new, old in zip(_norms(fresh), _norms(encoder), strict=True):
                new.eps = old.eps
    return fresh.to(next(encoder.parameters()).device).eval()


def reset(vit: ViT) -> None:
    """Give a ViT of any kind its first weights, in place, and let all of them learn.

    Layers as `init_transformer`, the patch projection's bias as torch draws it, tokens and learned positions
    N(0, 0.02), layer scale 1e-5, other biases 0, other norms 1. Rotary positions are no weights and stay; frequencies
    that are learned are drawn as timm draws them.
    """
    init_transformer(vit)
    for path, parameter in vit.named_parameters():
        parameter.requires_grad_(True)
        name = path.rpartition(".")[2]
        if name in ("cls_token", "reg_token", "pos_embed"):
            nn.init.normal_(parameter, std=_STD)
        elif name in ("gamma", "gamma_1", "gamma_2"):
            nn.init.constant_(parameter, _LAYER_SCALE)
        elif name in ("q_bias", "v_bias"):
            nn.init.zeros_(parameter)
        elif name == "weight" and parameter.ndim == 1:
            nn.init.ones_(parameter)  # also of norms that have no bias
    for layer in vit.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.bias, -bound, bound)
        elif isinstance(layer, RotaryEmbeddingMixed):
            drawn = init_random_2d_freqs(
                layer.dim // layer.num_heads, layer.depth, layer.num_heads, temperature=layer.temperature, rotate=True
            )
            layer.freqs.data.copy_(drawn)


def _norms(encoder: Encoder) -> list[nn.LayerNorm]:
    return [layer for layer in encoder.modules() if isinstance(layer, nn.LayerNorm)]
