"""`semmae reconstruct`: the hidden patches of the picture are those that the autoencoder predicts."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch import Tensor

import semmae
from semmae.formats import folders as checkpoint
from semmae.formats.mae import to_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.patches import patchify
from semmae.reporting.mask_pictures import reconstruct_pixels


def tiny_mae(norm_pix_loss: bool) -> MaskedAutoencoder:
    encoder = Encoder(EncoderSpec(32, 8, 48, 1, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
    return MaskedAutoencoder(encoder, DecoderSpec(32, 1, 4), norm_pix_loss).eval()


def predicts(mae: MaskedAutoencoder, value: float) -> None:
    torch.nn.init.zeros_(mae.decoder_pred.weight)
    torch.nn.init.constant_(mae.decoder_pred.bias, value)


@pytest.mark.parametrize(("norm_pix_loss", "value"), [(True, 0.0), (False, 0.5)])
def test_predictions_come_back_as_pixels(norm_pix_loss: bool, value: float) -> None:
    """Of 0 where patches are normalised: each one's own mean; of 0.5 otherwise: the colour half a deviation up."""
    mae = tiny_mae(norm_pix_loss)
    predicts(mae, value)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mask = torch.rand(2, 16).argsort(1) < 12

    found = patchify(reconstruct_pixels(mae, pixels, mask).float(), 8).reshape(2, 16, 64, 3)

    spec = mae.encoder.spec
    if norm_pix_loss:
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        true = (patchify(pixels.float() / 255, 8).reshape(2, 16, 64, 3) - mean) / std
        wanted: Tensor = true.mean((2, 3), keepdim=True) * std + mean
    else:
        wanted = torch.tensor(spec.mean) + 0.5 * torch.tensor(spec.std)
    assert (found[mask] - (wanted * 255).expand_as(found)[mask]).abs().max() <= 1


def test_the_file_of_another_project_is_drawn(creatures: Path, tmp_path: Path) -> None:
    mae = tiny_mae(norm_pix_loss=False)
    predicts(mae, 0.0)  # the mean colour, a grey that no creature is of
    torch.save({"model": to_mae(mae.state_dict())}, tmp_path / "mae.pth")
    (tmp_path / "config.json").write_text('{"num_heads": 3, "decoder_num_heads": 4, "norm_pix_loss": false}')
    options: dict[str, Any] = {"autoencoder": tmp_path / "mae.pth", "data": creatures / "images", "images": 3}

    out = semmae.reconstruct(**options, out=tmp_path / "a.png").path
    again = semmae.reconstruct(**options, out=tmp_path / "b.png").path
    other = semmae.reconstruct(**options, out=tmp_path / "c.png", seed=1).path

    assert out.read_bytes() == again.read_bytes() != other.read_bytes()
    colours = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    grey = np.round(255 * np.array([0.485, 0.456, 0.406]))  # ImageNet's mean: the file has no other
    assert (np.abs(colours - grey).max(1) <= 1).mean() > 0.05


def test_the_file_of_the_next_step_is_none_that_is_there(
    creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save_autoencoder(tiny_mae(norm_pix_loss=True), tmp_path / "run/autoencoder")
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a-2.parquet").symlink_to(tmp_path / "gone")
    options: dict[str, Any] = {"autoencoder": tmp_path / "run", "data": creatures / "images", "images": 1}
    for name, features in (("a", "a-3"), ("b", "b")):
        semmae.reconstruct(**options, out=tmp_path / f"{name}.png")
        assert shlex.split(capsys.readouterr().out)[-1] == str(tmp_path / f"{features}.parquet")


def test_of_a_subset_only_so_many_patches_are_shown_and_hidden(creatures: Path, tmp_path: Path) -> None:
    checkpoint.save_autoencoder(tiny_mae(norm_pix_loss=True), tmp_path / "run/autoencoder")
    seen: list[Any] = []

    def look(pixels: Tensor, mask: Tensor, rebuilt: Tensor, out: Path, description: str) -> None:
        seen.append((pixels, mask))

    options: dict[str, Any] = {"autoencoder": tmp_path / "run", "data": creatures / "images", "out": tmp_path / "a.png"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("semmae.verbs.reconstruct.reconstructions_picture", look)
        for subset in (None, 8):
            semmae.reconstruct(**options, images=3, token_subset=subset)

    (whole, all_hidden), (faded, hidden) = seen
    assert all_hidden.sum(1).tolist() == [12] * 3 and hidden.sum(1).tolist() == [6] * 3  # of 16, and of 8
    pale = (patchify(faded.float(), 8) != patchify(whole.float(), 8)).any(2)
    assert pale.sum(1).tolist() == [8] * 3  # what takes no part
    assert not (pale & hidden).any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"token_subset": 17}, ["--token-subset 17: ", "32 pixels", "16 patches of 8"]),
        ({"out": Path("a.jpg")}, ["--out", "jpg", ".png"]),
        ({"mask_ratio": 1.0}, ["--mask-ratio 1.0", "between 0 and 1"]),
        ({"image_size": 33}, ["--image-size 33", "patch size 8", "32 or 40"]),
        ({"autoencoder": "encoder"}, ["autoencoder"]),
    ],
)
def test_wrong_input_is_refused_and_nothing_drawn(
    changes: dict[str, Any], named: list[str], creatures: Path, tmp_path: Path
) -> None:
    mae = tiny_mae(norm_pix_loss=True)
    checkpoint.save_autoencoder(mae, tmp_path / "run/autoencoder")
    checkpoint.save_encoder(mae.encoder, tmp_path / "encoder")
    given = {"autoencoder": tmp_path / "run", "out": tmp_path / "a.png", **changes}
    if changes.get("autoencoder"):
        given["autoencoder"] = tmp_path / "encoder"

    with refused(*named):
        semmae.reconstruct(data=creatures / "images", **given)

    assert not list(tmp_path.glob("*.png"))


def test_a_picture_is_replaced_only_when_asked(
    creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_autoencoder(tiny_mae(norm_pix_loss=True), tmp_path / "run/autoencoder")
    given: dict[str, Any] = {"autoencoder": tmp_path / "run", "data": creatures / "images", "out": tmp_path / "a.png"}
    semmae.reconstruct(**given, images=2)
    old = (tmp_path / "a.png").read_bytes()

    with monkeypatch.context() as patch:  # the same again: nothing is computed
        patch.delattr("semmae.verbs.reconstruct.reconstruct_pixels")
        assert semmae.reconstruct(**given, images=2).path == tmp_path / "a.png"
    assert "already finished" in capsys.readouterr().out
    for other in ({"images": 1}, {"images": 2, "seed": 1}):
        with refused("--overwrite"):
            semmae.reconstruct(**given, **other)
    checkpoint.save_autoencoder(tiny_mae(norm_pix_loss=False), tmp_path / "run/autoencoder")
    with refused("--overwrite"):  # of other weights
        semmae.reconstruct(**given, images=2)
    assert (tmp_path / "a.png").read_bytes() == old

    semmae.reconstruct(**given, overwrite=True, images=1)
    assert Image.open(tmp_path / "a.png").size[0] > 32 and (tmp_path / "a.png").read_bytes() != old
    (tmp_path / "a.png").write_text("mine")
    with refused("a.png"):
        semmae.reconstruct(**given, overwrite=True)
    assert (tmp_path / "a.png").read_text() == "mine"
