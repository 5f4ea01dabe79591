"""The encoder, against the outputs of the DINO code and against plain formulas."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.formats.open import load_encoder
from semmae.models.blocks import ViT
from semmae.models.vit import MODELS, Encoder, EncoderSpec, init_as_dino
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
def test_features_and_attention_of_one_pass(shared: Path) -> None:
    encoder = load_encoder(shared / "vectors/vit-flat/checkpoint.pth")
    images = load_file(shared / "vectors/vit-flat/expected.safetensors")["images"]
    features, attention = encoder.last_block(images)
    for found, expected in zip(features, encoder.last_block_features(images), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(attention, encoder.attention(images))


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


def attention_of_timm(vit: ViT, images: Tensor) -> Tensor:
    """Class-to-patch attention of every block, (blocks, B, heads, L): the softmax that timm's plain path computes."""
    seen: list[Tensor] = []
    hooks = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, softmax: seen.append(softmax)))
    vit.forward_features(images)
    for hook, block in zip(hooks, vit.blocks, strict=True):
        hook.remove()
        block.attn.fused_attn = True
    return torch.stack(seen)[:, :, :, 0, vit.num_prefix_tokens :]


# Both families: registers, norms of queries and keys, no biases; rotary positions in halves, interleaved beside added
# ones with queries, keys and values apart, and learned for every block; added ones with biases of Eva's own.
FAMILIES = {
    "vit_small_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_tiny_patch16_224": {"qk_norm": True, "qkv_bias": False},
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3_qkvb": {},
    "eva02_tiny_patch14_224": {},
    "vit_small_patch16_rope_mixed_ape_224": {},
    "eva_giant_patch14_224": {},
}
ROTARY = ("dinov3", "eva02", "rope")


def small_timm_model(name: str, **options: object) -> Encoder:
    """A model of timm with every tensor drawn at random, so that no bias or scale is left out unnoticed."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    vit = timm.create_model(name, **sizes | FAMILIES[name] | options, dynamic_img_size=True)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return wrap_vit(vit, HALF, HALF).eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_attention_is_the_softmax_of_timm_for_every_block_and_head(name: str, size: int) -> None:
    encoder = small_timm_model(name)
    images = torch.randn(2, 3, size, size)

    every = torch.stack([encoder.attention(images, block) for block in range(3)])

    expected = attention_of_timm(encoder.vit, images)
    assert every.shape == (3, 2, 3, (size // 8) ** 2)
    assert torch.allclose(every, expected, atol=1e-6)
    assert every.std(dim=-1).min() > 1e-4  # attention that looks somewhere: an even one would agree by chance
    assert (every.sum(-1) < 1).all()  # the class token attends to itself, and to registers
    assert torch.equal(encoder.attention(images), every[-1])
    for block in range(-3, 0):
        assert torch.equal(encoder.attention(images, block), every[block])


@pytest.mark.parametrize("block", [3, -4])
def test_a_block_that_is_not_there_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match=f"block {block} .*-3 to 2"):
        small_timm_model("vit_small_patch16_224").attention(torch.randn(1, 3, 32, 32), block)


@torch.no_grad()
def test_no_block_is_run_twice_nor_one_too_many() -> None:
    encoder = small_timm_model("vit_small_patch16_dinov3")
    ran: list[int] = []
    for index, block in enumerate(encoder.vit.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    images = torch.randn(1, 3, 32, 32)

    encoder.attention(images, 1)
    assert ran == [0]
    encoder.last_block_features(images)
    assert ran == [0, 0, 1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_features_are_those_of_timm(name: str, size: int) -> None:
    encoder = small_timm_model(name)
    vit, images = encoder.vit, torch.randn(2, 3, size, size)
    entered: list[Tensor] = []
    vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))

    features, inputs = encoder(images), encoder.last_block_features(images)

    tokens = vit.forward_features(images)
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.equal(features.patches, tokens[:, vit.num_prefix_tokens :])
    assert torch.allclose(inputs.cls, entered[0][:, 0], atol=1e-6)
    assert torch.allclose(inputs.patches, entered[0][:, vit.num_prefix_tokens :], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not any(kind in name for kind in ROTARY)])
@torch.no_grad()
def test_heads_are_linear_in_the_input_of_the_last_block(name: str) -> None:
    encoder = small_timm_model(name, **({"qk_norm": False} if FAMILIES[name] else {}))
    vit, images = encoder.vit, torch.randn(2, 3, 32, 32)
    tokens: list[Tensor] = []
    vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    encoder(images)

    heads = encoder.last_heads()

    query = torch.einsum("bc,hdc->bhd", tokens[0][:, 0], heads.query_weight) + heads.query_bias
    keys = torch.einsum("btc,hdc->bhtd", tokens[0], heads.key_weight) + heads.key_bias[:, None]
    logits = torch.einsum("bhd,bhtd->bht", query, keys) / 16**0.5
    assert torch.allclose(
        logits.softmax(-1)[:, :, vit.num_prefix_tokens :], attention_of_timm(vit, images)[-1], atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [(name, "keys") for name in FAMILIES if any(kind in name for kind in ROTARY)]
    + [("vit_tiny_patch16_224", "queries")],
)
def test_heads_that_are_not_linear_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*at random"):
        small_timm_model(name).last_heads()


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("call", ["forward", "attention", "last_block_features"])
def test_images_that_do_not_divide_into_patches_are_refused(name: str, call: str) -> None:
    encoder = small_timm_model(name)

    with pytest.raises(ValueError, match="32×36 pixels .*patches of 8"):
        getattr(encoder, call)(torch.randn(1, 3, 32, 36))


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
        if name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (parameter == 0).all(), name
    for layer in vit.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
    bound = (6 / (48 + 3 * 8 * 8)) ** 0.5  # as a linear of the flat patch
    assert 0.9 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    bound = (3 * 8 * 8) ** -0.5  # torch's own, which the release does not touch
    assert 0.8 * bound < vit.patch_embed.proj.bias.abs().max() <= bound


def test_a_new_encoder_of_dinos_starts_as_its_release() -> None:
    """Truncated normal of deviation 0.02, but for the patch projection, which is torch's."""
    fixed, learned = Encoder(EncoderSpec(32, 8, 192, 2, 3)).vit, Encoder(EncoderSpec(32, 8, 192, 2, 3)).vit
    init_as_dino(fixed)
    init_as_dino(learned, learned_positions=True)

    assert torch.equal(fixed.pos_embed, sincos_positions(4, 192)) and not fixed.pos_embed.requires_grad
    assert learned.pos_embed.requires_grad
    drawn = [
        learned.pos_embed,
        learned.cls_token,
        *(own.weight for own in learned.modules() if isinstance(own, nn.Linear)),
    ]
    for weight in drawn:
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    for name, parameter in learned.named_parameters():
        if name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (parameter == 0).all(), name
    bound = (3 * 8 * 8) ** -0.5
    for parameter in learned.patch_embed.proj.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound


@torch.no_grad()
def test_bfloat16_autocast_stays_close(encoder: Encoder) -> None:
    images = torch.randn(2, 3, 32, 32)

    with torch.autocast("cpu", torch.bfloat16):
        features, attention = encoder(images), encoder.attention(images)

    assert relative_error(features.patches.float(), encoder(images).patches) < 3e-2
    assert relative_error(attention.float(), encoder.attention(images)) < 3e-2


def test_every_size_of_the_table_is_one_that_timm_knows() -> None:
    for name, (width, depth, heads) in MODELS.items():
        if name == "vit_mini":  # of our own, for minutes
            continue
        patch_size = 14 if name == "vit_huge" else 16
        with torch.device("meta"):
            known = timm.create_model(f"{name}_patch{patch_size}_224", num_classes=0)
        spec = EncoderSpec.named(name, 224, patch_size)
        assert (spec.width, spec.depth, spec.num_heads) == (width, depth, heads)
        assert (known.embed_dim, len(known.blocks), known.blocks[0].attn.num_heads) == (width, depth, heads)
