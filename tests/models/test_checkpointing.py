"""Activations computed again instead of kept: the same loss and gradients in less memory."""

import pytest
import torch
from torch import Tensor

from semmae.masking import random_mask
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

SPEC = EncoderSpec(image_size=32, patch_size=4, width=48, depth=4, num_heads=3)


def step(mae: MaskedAutoencoder, checkpointing: bool, bf16: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass keeps for the backward pass."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    mask = random_mask(torch.rand(4, 64, generator=generator), 0.75)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mae.checkpointing = checkpointing
    mae.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = mae(images, mask).loss
        total = sum(kept.values())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in mae.named_parameters() if p.grad is not None}, total


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_loss_and_gradients_in_less_memory(bf16: bool) -> None:
    mae = MaskedAutoencoder(Encoder(SPEC), DecoderSpec(32, 3, 4))

    loss, gradients, kept = step(mae, False, bf16)
    again, recomputed, kept_less = step(mae, True, bf16)

    assert torch.equal(loss, again)
    assert gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradient, recomputed[name]) for name, gradient in gradients.items())
    assert kept_less < 0.5 * kept


def test_nothing_is_computed_again_where_no_gradient_is_asked_for() -> None:
    mae = MaskedAutoencoder(Encoder(SPEC), DecoderSpec(32, 3, 4))
    mae.checkpointing = True
    with torch.inference_mode():
        assert mae(torch.randn(2, 3, 32, 32), random_mask(torch.rand(2, 64), 0.75)).loss.isfinite()
