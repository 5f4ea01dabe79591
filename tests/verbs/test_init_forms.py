"""`semmae pretrain --init` of autoencoders of other projects: encoder and decoder go on, and can be saved."""

from pathlib import Path

import pytest
import torch
from torch import nn

from semmae.formats import folders as checkpoint
from semmae.formats.open import load_mae
from semmae.models.mae import MaskedAutoencoder
from semmae.models.weights import norm_epsilons
from semmae.options.pretrain import PretrainOptions
from semmae.verbs.pretrain import load_init

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def test_an_autoencoder_of_transformers_goes_on_with_its_decoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.ViTMAEConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=32,
        patch_size=8, decoder_hidden_size=192, decoder_num_hidden_layers=4, decoder_num_attention_heads=6,
        decoder_intermediate_size=768,
    )  # fmt: skip
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path / "theirs")
    caplog.set_level("INFO", logger="semmae")

    begun = load_init(
        PretrainOptions(
            data="photos", out=Path("out"), init=str(tmp_path / "theirs"), model="vit_tiny", image_size=48, patch_size=8
        )
    )

    assert isinstance(begun, MaskedAutoencoder) and begun.training
    theirs = load_mae(tmp_path / "theirs")
    for mine, other in zip(begun.decoder_blocks.parameters(), theirs.decoder_blocks.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert "encoder and decoder" in caplog.text
    # timm knows no epsilon but its own: with that of transformers the run could not be saved at its end.
    assert "from 1e-12 to 1e-06" in caplog.text
    assert norm_epsilons(begun) == {1e-6}
    checkpoint.save_encoder(begun.encoder, tmp_path / "encoder")
    checkpoint.save_autoencoder(begun, tmp_path / "autoencoder")
    images, mask = torch.randn(1, 3, 48, 48), torch.rand(1, 36).argsort(1) < 27
    read = checkpoint.read_autoencoder(tmp_path / "autoencoder")
    nn.Module.eval(begun)
    assert torch.equal(read(images, mask).pred, begun(images, mask).pred)
