"""ViTModel and ViTMAEForPreTraining in both directions, against transformers itself on random weights."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from torch import Tensor, nn

from semmae.formats import folders as checkpoint, huggingface
from semmae.formats.open import find_decoder, load_encoder, load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

transformers = pytest.importorskip("transformers")

SIZE: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
    "intermediate_size": 96, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32,
    "decoder_intermediate_size": 128, "decoder_num_attention_heads": 4, "mask_ratio": 0.5,
}  # fmt: skip


def random_mae(**more: Any) -> Any:
    """Theirs, every tensor drawn at random, so that none is left out unnoticed."""
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**SIZE, **more})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def write(model: Any, form: str, folder: Path) -> Path:
    if form == "folder":  # names of version 4
        model.save_pretrained(folder)
        return folder
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}  # names of version 5
    path = folder / form
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.mark.parametrize("form", ["folder", "some.pth", "some.safetensors"])
@pytest.mark.parametrize("changes", [{"norm_pix_loss": True}, {"layer_norm_eps": 1e-3}], ids=["normalised", "epsilon"])
@torch.no_grad()
def test_an_autoencoder_of_transformers_predicts_the_same_here(
    form: str, changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, images, noise = random_mae(**changes), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    path = write(theirs, form, tmp_path / "model")

    ours = load_mae(path)

    wanted = theirs(images, noise=noise)
    mask = wanted.mask.bool()
    found = ours(images, mask)
    assert not ours.training
    assert (found.pred - wanted.logits)[mask].abs().max() < 1e-5
    assert abs(float(found.loss) - float(wanted.loss)) < 1e-5 * float(wanted.loss)
    assert ours.norm_pix_loss is theirs.config.norm_pix_loss
    assert find_decoder(path, num_heads=1) == ours.decoder == DecoderSpec(32, 1, 4)
    assert checkpoint.digest(load_encoder(path)) == checkpoint.digest(ours.encoder)
    assert "norm_pix_loss" not in caplog.text  # it is given


def test_what_is_no_such_autoencoder_is_refused_in_one_line(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**{name: SIZE[name] for name in list(SIZE)[:6]})
    transformers.ViTModel(config).save_pretrained(tmp_path / "encoder")
    random_mae(hidden_act="relu").save_pretrained(tmp_path / "relu")

    for name, named in {"encoder": ["decoder_embed.weight"], "relu": ["relu", "gelu"]}.items():
        with refused(*named):
            load_mae(tmp_path / name)
    assert find_decoder(tmp_path / "encoder", num_heads=1) is None


def ours(qkv_bias: bool = True) -> MaskedAutoencoder:
    mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 2, 3, mlp_ratio=2)), DecoderSpec(32, 1, 4)).eval()
    for parameter in mae.parameters():
        nn.init.normal_(parameter, std=0.2)
    if not qkv_bias:
        for block in mae.encoder.vit.blocks:
            block.attn.qkv.bias = None
    return mae


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_maps_there_and_back_change_nothing(qkv_bias: bool) -> None:
    from semmae.formats.mae import to_mae

    mae = ours(qkv_bias)
    encoder, released = mae.encoder.vit.state_dict(), to_mae(mae.state_dict())

    assert same(huggingface.to_encoder(huggingface.from_encoder(encoder))[0], encoder)
    back, dropped = huggingface.to_mae(huggingface.from_mae(released))
    assert same(back, released) and dropped == []
    without, dropped = huggingface.to_encoder(huggingface.from_mae(released))
    assert same(without, encoder)
    assert {name.split(".")[0] for name in dropped} == {"decoder"}


def test_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    """Version 5 writes those of version 4, but for the decoder's blocks, where it renames a part of the name."""
    from safetensors.torch import load_file

    from semmae.formats.mae import to_mae

    random_mae().save_pretrained(tmp_path)

    theirs = load_file(tmp_path / "model.safetensors")
    names = {name.replace(".decoder_encoder.layer.", ".decoder_layers.") for name in theirs}
    assert huggingface.from_mae(to_mae(ours().state_dict())).keys() == names


def test_a_tensor_without_a_place_is_refused_by_name() -> None:
    state = Encoder(EncoderSpec(32, 8, 48, 1, 3)).vit.state_dict()

    for name in ("reg_token", "blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "fc_norm.weight"):
        with pytest.raises(ValueError, match="no place"):
            huggingface.from_encoder(state | {name: torch.zeros(3)})


def test_an_encoder_s_heads_stay_behind_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_mae()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(state | {"pooler.dense.bias": torch.zeros(48)}, tmp_path / "mae.pth")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))

    with caplog.at_level(logging.INFO, "semmae"):
        load_mae(tmp_path / "mae.pth")

    assert "pooler.dense.bias" in caplog.text
