"""One door to every encoder: released files, our folders, wrong files."""

import argparse
import json
import logging
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.formats import folders as checkpoint
from semmae.formats.open import load_encoder, load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec

TINY = EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3)
STANDARD = EncoderSpec(image_size=32, patch_size=16, width=192, depth=1, num_heads=3)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(TINY).eval()


def some_images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@torch.no_grad()
def test_the_release_of_mae_agrees(shared: Path) -> None:
    folder = shared / "vectors/mae-p8"
    expected = load_file(folder / "expected.safetensors")

    features = load_encoder(folder / "checkpoint.pth")(expected["images"])

    tokens = torch.cat([features.cls[:, None], features.patches], dim=1)
    assert (tokens - expected["features"]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "given", [torch.nn.Linear(2, 2), VisionTransformer(32, 8, embed_dim=24, depth=1, num_heads=2), None, 3]
)
def test_what_is_no_encoder_of_ours_is_refused(given: object) -> None:
    for door in (load_encoder, load_mae):
        with refused(type(given).__name__, "give a checkpoint file", "timm:NAME"):
            door(given)  # type: ignore[operator]


def test_heads_that_contradict_a_folder_of_ours_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")

    assert load_encoder(tmp_path / "encoder", num_heads=3).spec == TINY
    with refused("has 3 heads, not 4"):
        load_encoder(tmp_path / "encoder", num_heads=4)


@torch.no_grad()
def test_a_fine_tuned_mae_keeps_its_norm_behind_the_pooling(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3}
    tuned = VisionTransformer(**options, num_classes=9, global_pool="avg", dynamic_img_size=True).eval()
    torch.save({"model": tuned.state_dict()}, tmp_path / "tuned.pth")
    images = some_images()

    encoder = load_encoder(tmp_path / "tuned.pth")

    assert torch.equal(encoder(images).patches, tuned.forward_features(images)[:, 1:])
    assert "final norm" in caplog.text


def test_options_of_the_release_are_read(shared: Path) -> None:
    mae = load_mae(shared / "vectors/mae-p8/checkpoint.pth")

    assert mae.norm_pix_loss
    assert mae.decoder == DecoderSpec(width=32, depth=2, num_heads=4)
    assert mae.encoder.spec == EncoderSpec(image_size=64, patch_size=8, width=48, depth=2, num_heads=3)
    assert not mae.training


def test_a_full_checkpoint_gives_its_teacher(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shared / "vectors/vit-full-64to96/checkpoint.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        teacher = torch.load(path, weights_only=True)["teacher"]

    with caplog.at_level(logging.INFO, "semmae"):
        encoder = load_encoder(path)

    assert not encoder.training
    for name, tensor in encoder.vit.state_dict().items():
        assert torch.equal(tensor, teacher[f"backbone.{name}"])
    assert "taken from teacher.backbone, not from student.module.backbone" in caplog.text
    assert "encoder: head." in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "backbone.module.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "teacher", "model", "state_dict", "student"])
def test_wrappers_and_prefixes_come_off(encoder: Encoder, tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    state = OrderedDict((prefix + name, tensor) for name, tensor in encoder.vit.state_dict().items())
    state[f"{prefix}head.weight"] = torch.zeros(1000, 48)
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "some.pth")

    read = load_encoder(tmp_path / "some.pth", num_heads=3)

    assert read.spec == TINY
    assert checkpoint.digest(read) == checkpoint.digest(encoder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@torch.no_grad()
def test_heads_of_standard_widths_are_known(tmp_path: Path, suffix: str) -> None:
    encoder, path = Encoder(STANDARD).eval(), tmp_path / f"vit{suffix}"
    state = encoder.vit.state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    images = some_images()

    read = load_encoder(str(path))

    assert read.spec == STANDARD
    assert torch.equal(read(images).patches, encoder(images).patches)


def test_heads_are_asked_for_where_nothing_says(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(encoder.vit.state_dict(), path)

    with refused("width 48", "num_heads"):
        load_encoder(path)
    with refused("num_heads 5", "width 48"):
        load_encoder(path, num_heads=5)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 3}))
    assert load_encoder(path).spec.num_heads == 3
    assert load_encoder(path, num_heads=2).spec.num_heads == 2


def released_form(mae: MaskedAutoencoder) -> dict[str, Tensor]:
    return {name.removeprefix("encoder.vit."): tensor for name, tensor in mae.state_dict().items()}


@torch.no_grad()
def test_a_mae_without_options_is_asked_for_its_heads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mae = MaskedAutoencoder(Encoder(STANDARD), DecoderSpec(width=32, depth=1, num_heads=4)).eval()
    path = tmp_path / "mae.pth"
    torch.save({"model": released_form(mae)}, path)

    with refused("width 32", "decoder_num_heads"):
        load_mae(path)
    with refused("decoder_num_heads 5"):
        load_mae(path, decoder_num_heads=5)
    read = load_mae(path, decoder_num_heads=4)

    images, mask = some_images(), torch.tensor([[True, True, True, False]] * 2)
    assert torch.equal(read(images, mask).pred, mae(images, mask).pred)
    assert "norm_pix_loss" in caplog.text


@pytest.mark.parametrize("key", ["num_heads", "num_attention_heads"])
def test_heads_are_read_beside_the_file_under_both_names(encoder: Encoder, tmp_path: Path, key: str) -> None:
    torch.save(encoder.vit.state_dict(), tmp_path / "vit.pth")
    (tmp_path / "config.json").write_text(json.dumps({key: 2}))

    assert load_encoder(tmp_path / "vit.pth").spec.num_heads == 2


@torch.no_grad()
def test_another_image_size_is_named_where_positions_are_interpolated(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "vit.pth"
    torch.save(encoder.vit.state_dict(), path)

    with caplog.at_level(logging.INFO, "semmae"):
        load_encoder(path, num_heads=3, image_size=32)
        assert "resized" not in caplog.text
        read = load_encoder(path, num_heads=3, image_size=56)

    assert "56 pixels: pos_embed 4×4 to 7×7" in caplog.text
    assert read(torch.randn(1, 3, 56, 56)).patches.shape == (1, 49, 48)


@pytest.mark.parametrize(("size", "remedy"), [(60, "use 56 or 64"), (7, "use 8"), (0, "use 8"), (-8, "use 8")])
def test_an_image_size_that_does_not_divide_into_patches_is_refused(
    encoder: Encoder, tmp_path: Path, size: int, remedy: str
) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")

    with refused(f"{size} pixels", "patches of 8", remedy):
        load_encoder(tmp_path / "encoder", image_size=size)


@pytest.mark.parametrize("normalized", [True, False])
def test_norm_pix_loss_is_that_of_the_options(tmp_path: Path, normalized: bool) -> None:
    mae = MaskedAutoencoder(Encoder(STANDARD), DecoderSpec(width=512, depth=1, num_heads=16))
    options = argparse.Namespace(norm_pix_loss=normalized, model="mae_vit_tiny")
    torch.save({"model": released_form(mae), "args": options}, tmp_path / "mae.pth")
    (tmp_path / "config.json").write_text(json.dumps({"norm_pix_loss": not normalized}))

    assert load_mae(tmp_path / "mae.pth").norm_pix_loss is normalized


def test_an_encoder_is_no_masked_autoencoder(encoder: Encoder, tmp_path: Path) -> None:
    torch.save(encoder.vit.state_dict(), tmp_path / "vit.pth")
    checkpoint.save_encoder(encoder, tmp_path / "run/encoder")

    with refused("no decoder_embed.weight"):
        load_mae(tmp_path / "vit.pth", num_heads=3)
    with refused(tmp_path / "run", "autoencoder"):
        load_mae(tmp_path / "run")


def test_a_run_of_ours_is_read_from_wherever_one_points(encoder: Encoder, tmp_path: Path) -> None:
    mae = MaskedAutoencoder(encoder, DecoderSpec(width=32, depth=1, num_heads=4))
    checkpoint.save_encoder(encoder, tmp_path / "run/encoder")
    checkpoint.save_autoencoder(mae, tmp_path / "run/autoencoder")
    checkpoint.save_autoencoder(mae, tmp_path / "unfinished/autoencoder")

    for where in ("run", "run/encoder", "run/encoder/model.safetensors", "run/autoencoder", "unfinished"):
        read = load_encoder(tmp_path / where)
        assert checkpoint.digest(read) == checkpoint.digest(encoder)
        assert read.spec == TINY
        assert not read.training
    for where in ("run", "run/autoencoder", "run/autoencoder/model.safetensors"):
        assert checkpoint.digest(load_mae(tmp_path / where)) == checkpoint.digest(mae)


def test_a_segmenter_s_encoder_is_read_without_its_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segmenter = Segmenter(Encoder(TINY), SegmenterSpec(("sky", "tree"), "linear", (), 8))
    checkpoint.save_segmenter(segmenter, tmp_path / "run/segmenter")

    for where in ("run", "run/segmenter", "run/segmenter/model.safetensors"):
        with caplog.at_level("INFO", "semmae"):
            read = load_encoder(tmp_path / where)
        assert checkpoint.digest(read) == checkpoint.digest(segmenter.encoder)
        assert read.spec == TINY and not read.training
    assert caplog.text.count("segmentation head") == 3


def resnet(path: Path) -> None:
    torch.save(
        {"conv1.weight": torch.zeros(8, 3, 7, 7), "bn1.weight": torch.zeros(8), "fc.bias": torch.zeros(2)},
        path,
    )


def other_vit(path: Path) -> None:
    state = Encoder(TINY).vit.state_dict()
    state["blocks.1.attn.rel_pos"] = torch.zeros(3)
    del state["norm.bias"]
    state["blocks.0.norm1.weight"] = torch.zeros(47)
    torch.save(state, path)


def no_class_token(path: Path) -> None:
    torch.save({name: tensor for name, tensor in Encoder(TINY).vit.state_dict().items() if name != "cls_token"}, path)


def no_positions(path: Path) -> None:
    torch.save({name: tensor for name, tensor in Encoder(TINY).vit.state_dict().items() if name != "pos_embed"}, path)


def odd_grid(path: Path) -> None:
    torch.save(Encoder(TINY).vit.state_dict() | {"pos_embed": torch.zeros(1, 13, 48)}, path)


WRONG_FILES = {
    "a JPEG": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 9), ["not readable"]),
    "an empty file": (lambda path: path.write_bytes(b""), ["not readable"]),
    "text": (lambda path: path.write_text("weights go here\n"), ["not readable"]),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), ["list"]),
    "an empty dict": (lambda path: torch.save({}, path), ["tensors"]),
    "an optimiser": (lambda path: torch.save({"optimizer": {"lr": 1}}, path), ["optimizer"]),
    "a ResNet": (resnet, ["patch_embed.proj.weight", "conv1.weight"]),
    "no class token": (no_class_token, ["cls_token"]),
    "DINOv3": (no_positions, ["pos_embed", "timm:NAME"]),
    "another kind of ViT": (
        other_vit,
        ["missing: norm.bias", "unexpected: blocks.1.attn.rel_pos", "(47,) for (48,)"],
    ),
    "an odd grid": (odd_grid, ["13 positions"]),
}


@pytest.mark.parametrize("name", WRONG_FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrong_files_are_named_in_one_line(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"wrong{suffix}"
    write, named = WRONG_FILES[name]
    write(path)

    with refused(path, *(named if suffix == ".pth" else ["not readable"])):
        load_encoder(path, num_heads=3)


def test_wrong_places_are_named_in_one_line(tmp_path: Path) -> None:
    for load in (load_encoder, load_mae):
        for place in (tmp_path, tmp_path / "nowhere.pth", "resnet18.pth"):
            with refused(place):
                load(place)
    with refused('"timm:vit_small_patch16_224.dino"'):
        load_encoder("vit_small_patch16_224.dino")
