"""Checkpoints of the SemMAE authors: names and shapes of their model, a tiny width; and what they compute.

Names and shapes are those of `MaskedAutoencoderViT` in their `models_mae_setting3.py`, beside what their `save_model`
writes; of ViT-B/16 the grid is that of images of 224 pixels, at which they measure it. By their source: no file that
they released was tried. Random positions, not sine-cosine: so a wrong order is seen.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from semmae.formats.open import load_encoder, load_mae
from semmae.models.mae import DecoderSpec
from semmae.models.vit import EncoderSpec

WIDTH, DEPTH, HEADS = 24, 2, 3
DECODER = DecoderSpec(width=16, depth=1, num_heads=2)


def block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
    }.items():  # fmt: skip
        shapes |= {f"{prefix}.{name}.weight": (rows, columns), f"{prefix}.{name}.bias": (rows,)}
    for name in ("norm1", "norm2"):
        shapes |= {f"{prefix}.{name}.weight": (width,), f"{prefix}.{name}.bias": (width,)}
    return shapes


def released_shapes(patch: int, grid: int) -> dict[str, tuple[int, ...]]:
    """Of ViT-B/8: patch 8, grid 28; of ViT-B/16: 16 and 14."""
    width, pixels = DECODER.width, 3 * patch**2
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, grid**2 + 1, WIDTH), "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, grid**2 + 1, width),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "decoder_embed.weight": (width, WIDTH), "decoder_embed.bias": (width,),
        "decoder_norm.weight": (width,), "decoder_norm.bias": (width,),
        "decoder_pred.weight": (pixels, width), "decoder_pred.bias": (pixels,),
    }  # fmt: skip
    for number in range(DEPTH):
        shapes |= block(f"blocks.{number}", WIDTH)
    for number in range(DECODER.depth):
        shapes |= block(f"decoder_blocks.{number}", width)
    return shapes


def released(path: Path, patch: int, grid: int, input_size: int) -> dict[str, Tensor]:
    """A checkpoint as they write it, of random tensors; returns these."""
    state = {name: torch.randn(shape) * 0.2 for name, shape in released_shapes(patch, grid).items()}
    options = argparse.Namespace(
        model=f"mae_vit_base_patch{patch}", input_size=input_size, mask_ratio=0.75, norm_pix_loss=True, setting=3,
        mask_lambda=0.1, blr=1.5e-4, data_path="tokens", dist_on_itp=False, distributed=True,
    )  # fmt: skip
    content: dict[str, Any] = {"model": state, "optimizer": {"state": {}}, "epoch": 799, "scaler": {"scale": 65536.0}}
    torch.save(content | {"args": options}, path)
    return state


def run_blocks(state: dict[str, Tensor], prefix: str, depth: int, heads: int, tokens: Tensor) -> Tensor:
    """(T, C) → (T, C), written out."""
    width = tokens.shape[1]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for number in range(depth):
        name = f"{prefix}.{number}"
        query, key, value = (
            part.reshape(len(tokens), heads, -1).transpose(0, 1)
            for part in linear(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens)).chunk(3, dim=1)
        )
        weights = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(-1)
        tokens = tokens + linear(f"{name}.attn.proj", (weights @ value).transpose(0, 1).reshape(-1, width))
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens)))
        tokens = tokens + linear(f"{name}.mlp.fc2", hidden)
    return tokens


def reference(state: dict[str, Tensor], patches: Tensor, cells: Tensor, hidden: Tensor) -> Tensor:
    """Predicted pixels (N, p·p·3) of one image's tokens, as their model is given them.

    patches: pixels (N, p·p·3) in the order of attention; cells: (N,) the place of each in the grid; hidden: bool (N,).
    """
    kernel = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(WIDTH, -1)
    tokens = patches @ kernel.T + state["patch_embed.proj.bias"] + state["pos_embed"][0, 1:][cells]
    token = state["cls_token"][0] + state["pos_embed"][0, :1]
    seen = run_blocks(state, "blocks", DEPTH, HEADS, torch.cat([token, tokens[~hidden]]))
    seen = F.layer_norm(seen, (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)
    seen = seen @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    full = state["mask_token"][0].repeat(len(patches), 1)
    full[~hidden] = seen[1:]
    places = state["decoder_pos_embed"][0]
    full = torch.cat([seen[:1] + places[:1], full + places[1:][cells]])
    full = run_blocks(state, "decoder_blocks", DECODER.depth, DECODER.num_heads, full)
    full = F.layer_norm(full, (DECODER.width,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
    return full[1:] @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]


@torch.no_grad()
def test_of_vit_b_8_the_kept_patches_are_predicted_as_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """196 of 784 patches, in the order of attention, which is any order."""
    state = released(tmp_path / "b8.pth", patch=8, grid=28, input_size=112)
    image, cells = torch.randn(1, 3, 224, 224), torch.randperm(784)[:196]
    hidden = torch.rand(196).argsort() < 147

    with caplog.at_level(logging.INFO, "semmae"):
        mae = load_mae(tmp_path / "b8.pth", num_heads=HEADS, decoder_num_heads=DECODER.num_heads)

    assert "196 of the 784 patches" in caplog.text and "--token-subset 196" in caplog.text
    assert mae.encoder.spec == EncoderSpec(224, 8, WIDTH, DEPTH, HEADS)
    assert mae.decoder == DECODER and mae.norm_pix_loss
    pixels = image.reshape(3, 28, 8, 28, 8).permute(1, 3, 2, 4, 0).reshape(784, -1)
    wanted = reference(state, pixels[cells], cells, hidden)
    found = mae(image, hidden[None], cells[None]).pred[0, cells]
    assert (found - wanted)[hidden].abs().max() < 1e-5


@torch.no_grad()
def test_of_vit_b_16_all_patches_are_predicted_as_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = released(tmp_path / "b16.pth", patch=16, grid=14, input_size=224)
    image, hidden = torch.randn(1, 3, 224, 224), torch.rand(196).argsort() < 147

    with caplog.at_level(logging.INFO, "semmae"):
        mae = load_mae(tmp_path / "b16.pth", num_heads=HEADS, decoder_num_heads=DECODER.num_heads)

    assert "--token-subset" not in caplog.text
    pixels = image.reshape(3, 14, 16, 14, 16).permute(1, 3, 2, 4, 0).reshape(196, -1)
    wanted = reference(state, pixels, torch.arange(196), hidden)
    assert (mae(image, hidden[None]).pred[0] - wanted)[hidden].abs().max() < 1e-5


@pytest.mark.parametrize("input_size", [112, 224])
def test_positions_that_fit_no_patches_are_named(
    input_size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """28 × 28 of them, as their source has it whatever the patch size."""
    state = released(tmp_path / "b16.pth", patch=16, grid=28, input_size=input_size)

    mae = load_mae(tmp_path / "b16.pth", num_heads=HEADS, decoder_num_heads=DECODER.num_heads)
    encoder = load_encoder(tmp_path / "b16.pth", num_heads=HEADS)

    found = [line for line in caplog.messages if "448 pixels" in line]
    assert len(found) == 2 and str(input_size) in found[0] and "\n" not in found[0]
    assert "--token-subset" not in caplog.text  # of a number that nobody knows
    assert mae.encoder.spec == encoder.spec == EncoderSpec(448, 16, WIDTH, DEPTH, HEADS)
    assert torch.equal(mae.encoder.vit.pos_embed, state["pos_embed"])


@torch.no_grad()
def test_fine_tuned_encoders_are_read_without_their_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of `model/models_vit.py`: the class token has no position, which is why that of the checkpoint is zero."""
    state = released(tmp_path / "b8.pth", patch=8, grid=28, input_size=112)
    tuned = {name: tensor for name, tensor in state.items() if "decoder" not in name and name != "mask_token"}
    tuned |= {f"fc_norm.{kind}": tuned.pop(f"norm.{kind}") for kind in ("weight", "bias")}
    tuned["pos_embed"][:, 0] = 0
    head = {"head.weight": torch.zeros(1000, WIDTH), "head.bias": torch.zeros(1000)}
    torch.save({"model": tuned | head, "args": argparse.Namespace(input_size=224)}, tmp_path / "tuned.pth")
    image = torch.randn(1, 3, 224, 224)

    with caplog.at_level(logging.INFO, "semmae"):
        features = load_encoder(tmp_path / "tuned.pth", num_heads=HEADS)(image)

    assert "encoder: head.weight, head.bias" in caplog.text
    kernel = tuned["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(WIDTH, -1)
    pixels = image.reshape(3, 28, 8, 28, 8).permute(1, 3, 2, 4, 0).reshape(784, -1)
    tokens = pixels @ kernel.T + tuned["patch_embed.proj.bias"] + tuned["pos_embed"][0, 1:]
    wanted = run_blocks(tuned, "blocks", DEPTH, HEADS, torch.cat([tuned["cls_token"][0], tokens]))
    assert (features.cls[0] - wanted[0]).abs().max() < 1e-5
    assert (features.patches[0] - wanted[1:]).abs().max() < 1e-5
