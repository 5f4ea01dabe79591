"""The key map of transformers, against the models of that library on random weights."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semmae.formats.open import load_encoder

transformers = pytest.importorskip("transformers")

SIZE: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
}  # fmt: skip
DECODER = {
    "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32, "decoder_intermediate_size": 64,
    "decoder_num_attention_heads": 4,
}  # fmt: skip
# class: (configuration, options, where the encoder stands in the model)
MODELS = {
    "ViTModel": ("ViTConfig", {"intermediate_size": 96}, None),
    "ViTForImageClassification": ("ViTConfig", {"intermediate_size": 96, "qkv_bias": False}, "vit"),
    "ViTMAEModel": ("ViTMAEConfig", {"intermediate_size": 96, "mask_ratio": 0.0}, None),
    "ViTMAEForPreTraining": ("ViTMAEConfig", {"intermediate_size": 96, "mask_ratio": 0.0} | DECODER, "vit"),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 2}, None),
    "Dinov2ForImageClassification": ("Dinov2Config", {"use_swiglu_ffn": True}, "dinov2"),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"num_register_tokens": 4}, None),
}


def random_model(name: str, **more: Any) -> Any:
    """A tiny model with every tensor drawn at random, so that none is left out unnoticed."""
    config, options, _ = MODELS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**SIZE | options | more)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def tokens_of(name: str, model: Any, images: Tensor) -> Tensor:
    """What the library computes: (B, prefix + L, C)."""
    inner = MODELS[name][2]
    encoder = getattr(model, inner) if inner else model
    # MAE shuffles its patches by this noise, also where it hides none.
    order = {"noise": torch.arange(16.0).expand(len(images), -1)} if "MAE" in name else {}
    tokens: Tensor = encoder(images, **order).last_hidden_state
    return tokens


def write(name: str, model: Any, form: str, folder: Path) -> Path:
    """The model on disk, as the library or a training script leaves it."""
    folder.mkdir()
    if form == "folder":
        model.save_pretrained(folder)
        return folder
    model.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if form == "pytorch_model.bin":
        torch.save(state, folder / form)
        return folder
    path = folder / form
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.mark.parametrize("form", ["folder", "pytorch_model.bin", "some.pth", "some.safetensors"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_those_of_the_library(name: str, form: str, tmp_path: Path) -> None:
    """Both sets of names: `save_pretrained` writes those of version 4, `state_dict` gives those of the version here."""
    model, images = random_model(name), torch.randn(2, 3, 32, 32)
    path = write(name, model, form, tmp_path / "model")

    encoder = load_encoder(path)

    tokens, features = tokens_of(name, model, images), encoder(images)
    assert encoder.spec.num_heads == 3
    assert not encoder.training
    assert (features.cls - tokens[:, 0]).abs().max() < 1e-5
    assert (features.patches - tokens[:, -16:]).abs().max() < 1e-5


@torch.no_grad()
def test_the_epsilon_of_the_norms_is_the_library_s(tmp_path: Path) -> None:
    """In a pale image tokens hardly differ, and the epsilon of transformers' ViT, not timm's, decides."""
    model, images = random_model("ViTModel"), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.embeddings.patch_embeddings.projection.weight, std=1e-4)
    for tensor in (model.embeddings.position_embeddings, model.embeddings.patch_embeddings.projection.bias):
        nn.init.zeros_(tensor)
    torch.save(model.state_dict(), tmp_path / "vit.pth")  # no config.json beside it

    features = load_encoder(tmp_path / "vit.pth", num_heads=3)(images)

    assert (features.patches - model(images).last_hidden_state[:, 1:]).abs().max() < 1e-5


def test_heads_and_decoder_are_named_as_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ViTModel", "ViTForImageClassification", "ViTMAEForPreTraining", "Dinov2Model"):
        random_model(name).save_pretrained(tmp_path / name)

    with caplog.at_level(logging.INFO, "semmae"):
        for name in MODELS.keys() & {path.name for path in tmp_path.iterdir()}:
            load_encoder(tmp_path / name)

    lines = [record.message for record in caplog.records if "dropped" in record.message]
    assert len(lines) == 4
    # Of the 24 tensors of the decoder three are named, and the others counted.
    for tensor in ("pooler.dense.weight", "classifier.bias", "decoder.decoder_embed.bias", "embeddings.mask_token"):
        assert sum(tensor in line for line in lines) == 1


def test_mean_and_deviation_are_those_of_the_preprocessor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random_model("Dinov2Model").save_pretrained(tmp_path)

    assert load_encoder(tmp_path).spec.mean == (0.485, 0.456, 0.406)
    assert "image_mean and image_std" in caplog.text
    preprocessor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    spec = load_encoder(tmp_path / "model.safetensors").spec
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"do_normalize": False}))
    spec = load_encoder(tmp_path).spec
    assert (spec.mean, spec.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_models_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    random_model("ViTModel", hidden_act="relu").save_pretrained(tmp_path / "relu")
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZE, intermediate_size=96)).save_pretrained(
        tmp_path / "dinov3"
    )
    transformers.BeitModel(transformers.BeitConfig(**SIZE, intermediate_size=96)).save_pretrained(tmp_path / "beit")
    random_model("ViTModel").save_pretrained(tmp_path / "sharded", max_shard_size="20kB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text(json.dumps({"model_type": "vit"}))

    for name, named in {
        "relu": ["relu", "gelu"],
        "dinov3": ["DINOv3", "timm:NAME"],
        "beit": ["BEiT"],
        "sharded": ["index.json"],
        "empty": ["config.json", "model.safetensors"],
    }.items():
        with refused(*named):
            load_encoder(tmp_path / name, num_heads=3)


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    random_model("ViTModel").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.attention.attention.key.weight"]
    save_file(state, tmp_path / "model.safetensors")

    with refused("missing: blocks.1.attn.qkv.weight", "unexpected: ", "blocks.1.attn.q.weight"):
        load_encoder(tmp_path)
