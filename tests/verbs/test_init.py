"""`semmae pretrain --init`: which weights a run begins with, and what is said of those it leaves."""

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import refused
from timm.models.vision_transformer import VisionTransformer

import semmae
from semmae.formats.mae import to_mae
from semmae.formats.open import load_encoder, load_mae
from semmae.models.mae import MaskedAutoencoder
from semmae.options.pretrain import PretrainOptions
from semmae.verbs.pretrain import load_init

OPTIONS = {"epochs": 1, "masking": "random", **tiny.SIZE, **tiny.TRAIN}


def begun(init: Path, **changes: Any) -> MaskedAutoencoder:
    found = load_init(PretrainOptions(data="photos", out=Path("out"), **{**OPTIONS, "init": str(init), **changes}))
    assert found is not None and found.training
    assert found.encoder.vit.pos_embed is not None
    assert not found.encoder.vit.pos_embed.requires_grad and not found.decoder_pos_embed.requires_grad
    return found


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    found, wanted = ours.state_dict(), theirs.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def released(whole_run: Path, tmp_path: Path) -> Path:
    """The run's autoencoder as one file in the form of the MAE release."""
    torch.save({"model": to_mae(load_mae(whole_run).state_dict())}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def test_a_run_goes_on_from_encoder_and_decoder(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    semmae.pretrain(data=creatures / "images", out=tmp_path / "run", init=whole_run, **OPTIONS, blr=0.0)
    for folder in ("encoder", "autoencoder"):  # at a rate of 0 nothing moves
        tiny.assert_same_weights(tmp_path / "run" / folder, whole_run / folder)


def test_the_decoder_is_taken_where_it_fits(whole_run: Path, released: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="semmae")
    wanted = load_mae(whole_run)
    for init in (whole_run, whole_run / "autoencoder", released):
        found = begun(init, norm_pix_loss=False)
        assert same(found, wanted)
        assert not found.norm_pix_loss  # the run's, not the file's
        assert f"{init}: encoder and decoder" in caplog.text


def test_else_a_new_one_begins_and_what_is_dropped_is_said(
    whole_run: Path, released: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="semmae")
    wanted = load_encoder(whole_run)
    for init in (released, whole_run, whole_run / "encoder"):
        caplog.clear()
        sizes = {} if init.name == "encoder" else {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
        found, again = begun(init, **sizes), begun(init, **sizes)
        assert same(found.encoder, wanted)
        assert same(found, again)  # by the seed
        assert not same(found, begun(init, **sizes, seed=1))
        reason = "no decoder" if init.name == "encoder" else "(width 96, depth 1)"
        assert reason in caplog.text
        assert ("dropped" in caplog.text and "decoder_embed.weight and 17 more" in caplog.text) == (init == released)


@torch.no_grad()
def test_another_image_size_resamples_positions_once(whole_run: Path) -> None:
    """To what would have been interpolated at every step."""
    found, wanted = begun(whole_run, image_size=48), load_mae(whole_run)
    images, mask = torch.randn(2, 3, 48, 48), torch.rand(1, 36).argsort(1).expand(2, -1) < 27
    assert found.encoder.spec.image_size == 48 and found.decoder_pos_embed.shape[1] == 1 + 36
    assert torch.allclose(found(images, mask).hidden_pred, wanted(images, mask).hidden_pred, atol=1e-5)


def test_learned_positions_of_a_dino_file_are_kept_and_fixed(tmp_path: Path) -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=0)
    torch.save(
        {"teacher": {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}}, tmp_path / "dino.pth"
    )
    found = begun(tmp_path / "dino.pth").encoder.vit.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("verb", ["pretrain", "teacher"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "vit_small"}, ["96, depth 4, patch 8", "384, 12, 8", "--model vit_mini"]),
        ({"patch_size": 16}, ["patch 8", "96, 4, 16", "--patch-size 8"]),
        ({"init": "nowhere"}, ["--init nowhere"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, Any], named: list[str], verb: str, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    given = {**OPTIONS, "init": whole_run, **changes}
    with refused(*named):
        getattr(semmae, verb)(data=creatures / "images", out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_registers_that_an_autoencoder_has_not_are_refused(creatures: Path, tmp_path: Path) -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=0, reg_tokens=2)
    torch.save(vit.state_dict(), tmp_path / "registers.pth")
    with refused("--init", "registers"):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", init=tmp_path / "registers.pth", **OPTIONS)
    assert not (tmp_path / "run").exists()
