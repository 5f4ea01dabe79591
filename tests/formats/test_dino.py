"""The key map of DINO, iBOT and DINOv2."""

import pytest
import timm
import torch

from semmae.formats import dino
from semmae.formats.choose import without_heads
from semmae.models.weights import encoder_from_weights


def test_heads_and_hidden_patch_tokens_are_dropped_under_the_names_of_the_file() -> None:
    state = {
        "norm.weight": torch.ones(4),
        "masked_embed": torch.zeros(1, 4),
        "head.mlp.0.weight": torch.zeros(2, 4),
        "head.last_layer.weight_g": torch.zeros(2, 1),
    }

    kept, dropped = without_heads(state)

    assert list(kept) == ["norm.weight"]
    assert dropped == [name for name in state if name != "norm.weight"]


@torch.no_grad()
def test_registers_of_dinov2_are_read_as_timm_reads_them() -> None:
    """The same checkpoint, in the form of the DINOv2 release, through timm's converter and through ours."""
    options = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    by_timm = timm.create_model("vit_small_patch14_reg4_dinov2", **options, dynamic_img_size=True)
    released = {name: torch.randn_like(tensor) for name, tensor in by_timm.state_dict().items()}
    released["register_tokens"] = released.pop("reg_token")
    released["pos_embed"] = torch.randn(1, 17, 32)  # with one for the class token
    released["mask_token"] = torch.zeros(1, 32)
    by_timm.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(released), by_timm))
    images = torch.randn(2, 3, 28, 28)

    bare, dropped = without_heads(released)
    kept, _ = dino.to_encoder(bare)
    features = encoder_from_weights(kept, num_heads=2)(images)

    tokens = by_timm.eval().forward_features(images)
    assert dropped == ["mask_token"]
    assert torch.allclose(features.cls, tokens[:, 0], atol=1e-5)
    assert torch.allclose(features.patches, tokens[:, 5:], atol=1e-5)


@pytest.mark.parametrize("chunked", [False, True])
@torch.no_grad()
def test_the_gated_mlps_of_dinov2_are_read_as_timm_reads_them(chunked: bool) -> None:
    """ViT-g of the release; in training scripts blocks stand in chunks, numbered through."""
    options = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 0}
    by_timm = timm.create_model("vit_giant_patch14_dinov2", **options)
    released = {name: torch.randn_like(tensor) * 0.3 for name, tensor in by_timm.state_dict().items()}
    released = {name.replace("fc1", "w12").replace("fc2", "w3"): tensor for name, tensor in released.items()}
    released["mask_token"] = torch.zeros(1, 48)
    by_timm.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(released), by_timm))
    if chunked:
        chunk = {"blocks.0.": "blocks.0.0.", "blocks.1.": "blocks.0.1.", "blocks.2.": "blocks.1.2."}
        released = {chunk.get(name[:9], name[:9]) + name[9:]: tensor for name, tensor in released.items()}
        assert "blocks.1.2.mlp.w12.weight" in released
    images = torch.randn(2, 3, 28, 28)

    kept, _ = dino.to_encoder(without_heads(released)[0])
    features = encoder_from_weights(kept, num_heads=2)(images)

    tokens = by_timm.eval().forward_features(images)
    assert torch.allclose(features.cls, tokens[:, 0], atol=1e-5)
    assert torch.allclose(features.patches, tokens[:, 1:], atol=1e-5)
