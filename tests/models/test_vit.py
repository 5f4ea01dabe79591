"""The encoder, against the outputs of the DINO code and against plain formulas."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.loading import load_encoder
from semmae.models.vit import MODELS, Encoder, EncoderSpec
from semmae.models.weights import wrap_vit
from semmae.patches import sincos_positions

TINY = EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3)
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(TINY).eval()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_tokens_and_attention_are_those_of_the_released_code(shared: Path) -> None:
    folder = shared / "vectors/vit-flat"
    expected = load_file(folder / "expected.safetensors")
    encoder = load_encoder(folder / "checkpoint.pth")

    features = encoder(expected["images"])

    tokens = torch.cat([features.cls[:, None], features.patches], dim=1)
    assert (tokens - expected["tokens"]).abs().max() < 1e-5
    assert (encoder.attention(expected["images"]) - expected["attention"][:, :, 0, 1:]).abs().max() < 1e-5


@torch.no_grad()
def test_another_image_size_is_close_to_the_released_code(shared: Path) -> None:
    folder = shared / "vectors/vit-full-64to96"
    expected = load_file(folder / "expected.safetensors")
    encoder = load_encoder(folder / "checkpoint.pth")

    features = encoder(expected["images"])

    # Implementations interpolate positions slightly differently.
    tokens = torch.cat([features.cls[:, None], features.patches], dim=1)
    assert relative_error(tokens, expected["tokens"]) < 4e-2
    assert relative_error(encoder.attention(expected["images"]), expected["attention"][:, :, 0, 1:]) < 4e-2


def attention_by_hand(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Class-to-patch attention from what passes the last block's layers in a plain forward."""
    seen: dict[str, Tensor] = {}
    attention = vit.blocks[-1].attn
    layers = {"qkv": attention.qkv, "q": attention.q_norm, "k": attention.k_norm}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name, layer in layers.items()
    ]
    vit.forward_features(images)
    for hook in hooks:
        hook.remove()
    rows = []
    for head in range(attention.num_heads):
        query, keys = seen["q"][:, head, 0], seen["k"][:, head]
        logits = torch.einsum("bd,btd->bt", query, keys) / query.shape[-1] ** 0.5
        rows.append(logits.exp() / logits.exp().sum(dim=1, keepdim=True))
    return torch.stack(rows, dim=1)[:, :, vit.num_prefix_tokens :]


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}, {"qk_norm": True}])
@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_attention_is_the_softmax_of_the_last_block(options: dict[str, object], size: int) -> None:
    vit = VisionTransformer(32, 8, num_classes=0, embed_dim=24, depth=2, num_heads=2, dynamic_img_size=True, **options)
    encoder = wrap_vit(vit, HALF, HALF).eval()
    images = torch.randn(2, 3, size, size)

    attention = encoder.attention(images)

    assert attention.shape == (2, 2, (size // 8) ** 2)
    assert torch.allclose(attention, attention_by_hand(vit, images), atol=1e-6)
    assert (attention > 0).all()
    assert (attention.sum(-1) < 1).all()  # the class token attends to itself, and to registers


@torch.no_grad()
def test_registers_are_no_patches() -> None:
    vit = VisionTransformer(
        32, 8, num_classes=0, embed_dim=24, depth=1, num_heads=2, reg_tokens=4, dynamic_img_size=True
    )
    images = torch.randn(2, 3, 32, 32)

    features = wrap_vit(vit, HALF, HALF).eval()(images)

    tokens = vit.forward_features(images)
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.equal(features.patches, tokens[:, 5:])


@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_encoding_all_patches_is_the_plain_forward(encoder: Encoder, size: int) -> None:
    images = torch.randn(2, 3, size, size)
    every = torch.arange((size // 8) ** 2).expand(2, -1)

    tokens = encoder.encode_visible(images, every)

    features = encoder(images)
    assert torch.allclose(tokens[:, 0], features.cls, atol=1e-5)
    assert torch.allclose(tokens[:, 1:], features.patches, atol=1e-5)


@torch.no_grad()
def test_visible_patches_may_come_in_any_order(encoder: Encoder) -> None:
    images = torch.randn(2, 3, 32, 32)
    visible = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    order = torch.tensor([3, 0, 4, 1, 2])

    tokens, shuffled = (
        encoder.encode_visible(images, visible),
        encoder.encode_visible(images, visible[:, order]),
    )

    assert torch.allclose(shuffled[:, 1:], tokens[:, 1 + order], atol=1e-5)
    assert torch.allclose(shuffled[:, 0], tokens[:, 0], atol=1e-5)


def test_hidden_patches_are_not_seen(encoder: Encoder) -> None:
    images = torch.randn(1, 3, 32, 32, requires_grad=True)

    encoder.encode_visible(images, torch.tensor([[0, 5]])).square().sum().backward()

    assert images.grad is not None
    seen = images.grad.abs().sum(1).reshape(4, 8, 4, 8).sum((1, 3)).flatten().nonzero().flatten()
    assert seen.tolist() == [0, 5]


def test_a_new_encoder_starts_as_the_mae_release() -> None:
    vit = Encoder(TINY).vit

    assert torch.equal(vit.pos_embed, sincos_positions(4, 48))
    assert not vit.pos_embed.requires_grad
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
    for layer in vit.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
    bound = (6 / (48 + 3 * 8 * 8)) ** 0.5  # as a linear of the flat patch
    assert 0.9 * bound < vit.patch_embed.proj.weight.abs().max() <= bound


@torch.no_grad()
def test_bfloat16_autocast_stays_close(encoder: Encoder) -> None:
    images = torch.randn(2, 3, 32, 32)

    with torch.autocast("cpu", torch.bfloat16):
        features, attention = encoder(images), encoder.attention(images)

    assert relative_error(features.patches.float(), encoder(images).patches) < 3e-2
    assert relative_error(attention.float(), encoder.attention(images)) < 3e-2


def test_every_size_of_the_table_is_one_that_timm_knows() -> None:
    for name, (width, depth, heads) in MODELS.items():
        patch_size = 14 if name == "vit_huge" else 16
        with torch.device("meta"):
            known = timm.create_model(f"{name}_patch{patch_size}_224", num_classes=0)
        spec = EncoderSpec.named(name, 224, patch_size)
        assert (spec.width, spec.depth, spec.num_heads) == (width, depth, heads)
        assert (known.embed_dim, len(known.blocks), known.blocks[0].attn.num_heads) == (width, depth, heads)
