"""What a loaded encoder carries that no weight shows, and that its weights do not notice."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused

from semmae.data.transform import ImageTransform
from semmae.formats import folders as checkpoint
from semmae.formats.mae import to_mae
from semmae.formats.open import load_classifier, load_encoder, load_mae
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

SPEC = EncoderSpec(16, 8, 24, 2, 3, mean=(0.4, 0.5, 0.6))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save_encoder(Encoder(SPEC), tmp_path / "run" / "encoder", {"stage": "pretrain"})
    return tmp_path / "run"


def test_a_new_encoder_carries_nothing() -> None:
    encoder = Encoder(SPEC)

    assert (encoder.pooling, encoder.source) == ("cls", "")
    with pytest.raises(ValueError, match="ImageTransform"):
        _ = encoder.transform


def test_a_loaded_one_carries_where_it_came_from_and_what_fits_it(saved: Path) -> None:
    encoder = load_encoder(saved)

    assert (encoder.pooling, encoder.source) == ("mean", str(saved))
    assert encoder.transform == ImageTransform(16, SPEC.mean, SPEC.std)
    encoder.set_image_size(32)
    assert encoder.transform == ImageTransform(32, SPEC.mean, SPEC.std)


def test_its_weights_do_not_notice(saved: Path) -> None:
    encoder = load_encoder(saved)
    plain = checkpoint.read_encoder(saved / "encoder")

    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert checkpoint.digest(encoder) == checkpoint.digest(plain)
    copies: list[Any] = [copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))]
    for again in copies:
        assert (again.pooling, again.source) == (encoder.pooling, encoder.source)
        assert again.transform == encoder.transform and checkpoint.digest(again) == checkpoint.digest(encoder)


def test_below_a_decoder_and_a_head_too(tmp_path: Path) -> None:
    mae = MaskedAutoencoder(Encoder(SPEC), DecoderSpec(16, 1, 2))
    checkpoint.save_autoencoder(mae, tmp_path / "mae")
    torch.save({"model": to_mae(mae.state_dict())}, tmp_path / "some.pth")
    checkpoint.save_classifier(Classifier(Encoder(SPEC), 2, "mean"), tmp_path / "classifier", ["a", "b"])

    found = [
        load_mae(tmp_path / "mae").encoder,
        load_mae(tmp_path / "some.pth", num_heads=3, decoder_num_heads=2).encoder,
        load_encoder(tmp_path / "some.pth", num_heads=3),
        load_classifier(tmp_path / "classifier")[0].encoder,
    ]

    assert all(encoder.pooling == "mean" and encoder.transform.size == 16 for encoder in found)


def test_a_loaded_encoder_is_copied(saved: Path) -> None:
    given = load_encoder(saved).train()

    encoder = load_encoder(given, image_size=32)

    assert given.training and not encoder.training
    assert (encoder.source, encoder.pooling) == (given.source, "mean")
    before = checkpoint.digest(given)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    encoder.set_image_size(32)
    assert checkpoint.digest(given) == before and given.spec.image_size == 16
    assert load_encoder(Encoder(SPEC)).transform(torch.zeros(3, 20, 30)).shape == (3, 16, 16)
    for wrong in ({"num_heads": 4}, {"image_size": 17}):
        with refused(*wrong.values()):
            load_encoder(given, **wrong)


@pytest.mark.parametrize("source", ["", "runs/a", "a/" * 200, "new\nline"])
def test_it_is_short_where_it_is_shown(source: str) -> None:
    encoder = Encoder(SPEC)
    encoder.source = source

    assert len(repr(encoder)) <= 80 and "\n" not in repr(encoder)
    assert source[:30].isprintable() is False or source[:30] in repr(encoder)
