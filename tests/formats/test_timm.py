"""Models of timm by name. The hub is out of reach here: weights come from a folder."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from semmae.formats.open import load_encoder

SIZES = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}


@torch.no_grad()
def test_a_folder_of_timm_is_read_with_its_preprocessing(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **SIZES, patch_size=8, num_classes=5).eval()
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    timm.models.save_for_hf(model, str(tmp_path), model_args={**SIZES, "patch_size": 8}, safe_serialization=True)
    images = torch.randn(2, 3, 32, 32)

    by_name, by_folder = load_encoder(f"timm:local-dir:{tmp_path}"), load_encoder(tmp_path)

    tokens = model.forward_features(images)
    for encoder in (by_name, by_folder):
        assert (encoder.spec.mean, encoder.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert not encoder.training
        features = encoder(images)
        assert torch.allclose(features.cls, tokens[:, 0], atol=1e-6)
        assert torch.allclose(features.patches, tokens[:, 5:], atol=1e-6)
        assert encoder(torch.randn(1, 3, 48, 48)).patches.shape == (1, 36, 48)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_dinov2_reads_images_of_any_size_that_divides_as_timm_does(name: str, tmp_path: Path) -> None:
    """Positions of 5 × 5 patches of 14, and four registers that are no patches; attention by the softmax itself."""
    sizes = {**SIZES, "img_size": 70}
    model = timm.create_model(name, **sizes, num_classes=0, dynamic_img_size=True).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    timm.models.save_for_hf(model, str(tmp_path), model_args=sizes, safe_serialization=True)
    encoder = load_encoder(f"timm:local-dir:{tmp_path}")
    assert (encoder.spec.image_size, encoder.patch_size) == (70, 14)
    before, softmax = model.num_prefix_tokens, []
    last = model.blocks[-1].attn
    last.fused_attn = False
    last.attn_drop.register_forward_hook(lambda _, __, weights: softmax.append(weights))
    for size in (14, 28, 56, 70, 98, 224):
        images = torch.randn(2, 3, size, size)
        tokens, features = model.forward_features(images), encoder(images)
        assert features.patches.shape == (2, (size // 14) ** 2, 48)
        torch.testing.assert_close(features.cls, tokens[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.patches, tokens[:, before:], atol=1e-5, rtol=1e-5)
        expected = softmax.pop()[:, :, 0, before:]
        torch.testing.assert_close(encoder.attention(images), expected, atol=1e-5, rtol=1e-5)
    for size in (32, 60):
        with refused(f"{size} pixels", "patches of 14", f"{size // 14 * 14} or {size // 14 * 14 + 14}"):
            load_encoder(encoder, image_size=size)


@torch.no_grad()
def test_a_folder_of_dinov3_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {**SIZES, "patch_size": 8}
    model = timm.create_model("vit_small_patch16_dinov3", **options, num_classes=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    timm.models.save_for_hf(model, str(tmp_path), model_args=options, safe_serialization=True)

    with caplog.at_level(logging.INFO, "semmae"):
        encoder = load_encoder(tmp_path)

    assert (encoder.spec.image_size, encoder.spec.patch_size, encoder.width) == (32, 8, 48)
    assert (encoder.spec.depth, encoder.spec.num_heads, encoder.spec.mlp_ratio) == (2, 3, 4)
    for size in (32, 48):
        images = torch.randn(2, 3, size, size)
        tokens, features = model.forward_features(images), encoder(images)
        assert torch.allclose(features.cls, tokens[:, 0], atol=1e-6)
        assert torch.allclose(features.patches, tokens[:, 5:], atol=1e-6)
    assert "encoder: head.weight, head.bias" in caplog.text


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("test_convnext", ["Vision Transformer"]),
        ("test_efficientnet", ["Vision Transformer"]),
        ("vit_mediumd_patch16_rope_reg1_gap_256", ["class token"]),
        ("vit_small_patch16_18x2_224", ["ParallelThingsBlock"]),
        ("eva02_enormous_patch14_clip_224", ["EvaBlockPostNorm"]),
        ("vit_5b_patch16_sapiens2", ["share keys"]),
        ("swin_tiny_patch4_window7_224", ["SwinTransformer"]),
        ("vit_tiny_r_s16_p8_224", ["HybridEmbed"]),
        ("test_vit2", ["class token"]),
        ("vit_tiny_patch16_24", ['"vit_tiny_patch16_224"']),
        ("vit_small_patch16_224.dini", ['"vit_small_patch16_224.dino"']),
        ("vit_small_patch16_224.qqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", ["list_pretrained"]),
        ("qqqqqqqqqqqq", ["list_pretrained"]),
    ],
)
def test_what_cannot_be_an_encoder_is_refused_before_a_download(name: str, named: list[str]) -> None:
    if named == ["share keys"] and not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no such model")
    with refused(*named):
        load_encoder(f"timm:{name}")


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SIZES, num_classes=5)
    timm.models.save_for_hf(model, str(tmp_path), model_args=SIZES, safe_serialization=True)
    state = load_file(tmp_path / "model.safetensors")
    del state["norm.weight"]
    save_file(state, tmp_path / "model.safetensors")

    with refused("norm.weight"):
        load_encoder(tmp_path)


def test_a_folder_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **SIZES, patch_size=8, num_classes=5)
    timm.models.save_for_hf(model, str(tmp_path), model_args={**SIZES, "patch_size": 8}, safe_serialization=True)
    weights = tmp_path / "model.safetensors"
    save_file({name: tensor.char() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with refused("model.safetensors", "whole numbers", ".weight"):
        load_encoder(tmp_path)


def test_a_hub_out_of_reach_is_named_with_the_remedy() -> None:
    with refused("timm:test_vit", "download"):
        load_encoder("timm:test_vit")
