"""The key map of the MAE release, both directions."""

import argparse
from pathlib import Path

import torch

from semmae.formats import mae
from semmae.formats.open import load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec


def test_the_map_there_and_back_changes_nothing() -> None:
    model = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 1, 3)), DecoderSpec(32, 2, 4))
    state = model.state_dict()

    released = mae.to_mae(state)

    assert mae.is_mae(released)
    assert mae.from_mae(released).keys() == state.keys()
    assert mae.decoder_spec(released, 4) == model.decoder


def test_names_are_those_of_the_release(shared: Path) -> None:
    path = shared / "vectors/mae-p8/checkpoint.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        released = torch.load(path, weights_only=True)["model"]

    written = mae.to_mae(load_mae(path).state_dict())

    assert written.keys() == released.keys()
    assert all(torch.equal(tensor, released[name]) for name, tensor in written.items())


def test_the_decoder_is_dropped_by_name() -> None:
    model = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 1, 3)), DecoderSpec(32, 1, 4))

    kept, dropped = mae.to_encoder(mae.to_mae(model.state_dict()))

    assert kept.keys() == model.encoder.vit.state_dict().keys()
    assert {name.split(".")[0] for name in dropped} == {
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }
