"""Our folders: what is read is what was written, timm reads the same, and a failed write harms nothing."""

import json
import os
import stat
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.errors import DiskError
from semmae.formats import folders as checkpoint
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import encoder_from_weights, wrap_vit

TINY = EncoderSpec(32, 8, 48, 2, 3, mlp_ratio=2.5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

# Every option that vit_arguments reads off the weights, and two that only the name of the model gives.
FROM_TIMM = {
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8},  # registers, layer scale, no position for the class
    "vit_base_patch16_clip_quickgelu_224": {},  # pre-norm, no patch bias, another activation
    "vit_giant_patch14_dinov2": {"patch_size": 8},  # SwiGLU with a ratio that is no integer
    "deit3_small_patch16_224": {},
    "vit_small_patch16_224": {"qk_norm": True, "qkv_bias": False},
    "vit_tiny_patch16_224": {"global_pool": "avg"},
}


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(TINY).eval()


def small_timm_model(name: str, **options: object) -> Encoder:
    sizes = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = timm.create_model(name, **sizes, dynamic_img_size=True, **options)
    for parameter in model.parameters():  # nothing may agree only because it is zero
        nn.init.normal_(parameter, std=0.1)
    return wrap_vit(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()


def tokens(encoder: Encoder, images: Tensor) -> Tensor:
    features = encoder(images)
    return torch.cat([features.cls[:, None], features.patches], dim=1)


@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_timm_reads_the_folder_and_gives_the_same_features(encoder: Encoder, tmp_path: Path, size: int) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")
    images = torch.randn(2, 3, size, size)

    read = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()

    features = read.forward_features(images)
    assert (features - tokens(encoder, images)).abs().max() < 1e-6
    assert (read(images) - encoder(images).cls).abs().max() < 1e-6
    preprocessing = timm.data.resolve_model_data_config(read)
    assert tuple(preprocessing["mean"]) == TINY.mean
    assert tuple(preprocessing["std"]) == TINY.std
    assert tuple(preprocessing["input_size"]) == (3, 32, 32)
    assert preprocessing["interpolation"] == "bicubic"


def test_timm_puts_a_head_on_it(encoder: Encoder, tmp_path: Path) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")

    read = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=7)

    assert read(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert torch.equal(read.norm.weight, encoder.vit.norm.weight)


def test_an_encoder_comes_back_whole(encoder: Encoder, tmp_path: Path) -> None:
    extra = {"stage": "teacher", "images": 12}
    checkpoint.save_encoder(encoder, tmp_path / "a/encoder", extra)

    read = checkpoint.read_encoder(tmp_path / "a/encoder")

    assert read.spec == TINY
    assert not read.training
    assert checkpoint.digest(read) == checkpoint.digest(encoder)
    assert checkpoint.read_extra(tmp_path / "a/encoder") == extra
    assert checkpoint.kind(tmp_path / "a/encoder") == checkpoint.ENCODER
    assert checkpoint.kind(tmp_path / "a") is None


@pytest.mark.parametrize(("name", "options"), FROM_TIMM.items())
@torch.no_grad()
def test_models_of_timm_come_back_whole(name: str, options: dict[str, object], tmp_path: Path) -> None:
    encoder = small_timm_model(name, **options)
    folder = tmp_path / "encoder"
    checkpoint.save_encoder(encoder, folder)
    checkpoint.save_encoder(checkpoint.read_encoder(folder), folder)  # also the second time
    images = torch.randn(2, 3, 48, 48)

    read = checkpoint.read_encoder(folder)

    assert read.spec == encoder.spec
    assert json.loads((folder / "config.json").read_text())["architecture"] == name
    assert torch.equal(tokens(read, images), tokens(encoder, images))
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm.forward_features(images)[:, 0], encoder(images).cls)


def test_a_model_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    vit = VisionTransformer(32, 8, num_classes=0, embed_dim=48, depth=1, num_heads=3, act_layer=nn.ReLU)

    with refused("vit_tiny_patch16_224", "timm:NAME"):
        checkpoint.save_encoder(wrap_vit(vit, TINY.mean, TINY.std), tmp_path / "encoder")

    assert not (tmp_path / "encoder").exists()


def test_rotary_positions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    encoder = small_timm_model("vit_small_patch16_dinov3", patch_size=8)

    with refused("Eva", "timm:NAME"):
        checkpoint.save_encoder(encoder, tmp_path / "encoder")

    assert not (tmp_path / "encoder").exists()


@torch.no_grad()
def test_gated_mlps_read_from_weights_come_back_whole(tmp_path: Path) -> None:
    described = small_timm_model("vit_giant_patch14_dinov2", patch_size=8)
    encoder = encoder_from_weights(described.vit.state_dict(), num_heads=3)
    checkpoint.save_encoder(encoder, tmp_path / "encoder")
    images = torch.randn(2, 3, 32, 32)

    read = checkpoint.read_encoder(tmp_path / "encoder")

    assert torch.equal(tokens(read, images), tokens(described, images))
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    assert torch.equal(by_timm.forward_features(images), tokens(described, images))


def test_norms_of_another_epsilon_are_not_saved_as_timm_s(encoder: Encoder, tmp_path: Path) -> None:
    of_huggingface = encoder_from_weights(encoder.vit.state_dict(), num_heads=3, norm_eps=1e-12)

    with refused("vit_tiny_patch16_224", "timm:NAME"):
        checkpoint.save_encoder(of_huggingface, tmp_path / "encoder")


def test_dropout_does_not_hinder_saving(tmp_path: Path) -> None:
    options = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "dynamic_img_size": True}
    vit = VisionTransformer(32, 8, num_classes=0, embed_dim=48, depth=2, num_heads=3, **options)

    checkpoint.save_encoder(wrap_vit(vit, TINY.mean, TINY.std), tmp_path / "encoder")

    assert checkpoint.digest(checkpoint.read_encoder(tmp_path / "encoder").vit) == checkpoint.digest(vit)


@torch.no_grad()
def test_a_masked_autoencoder_comes_back_whole(encoder: Encoder, tmp_path: Path) -> None:
    saved = MaskedAutoencoder(encoder, DecoderSpec(width=32, depth=2, num_heads=4), norm_pix_loss=False).eval()
    checkpoint.save_autoencoder(saved, tmp_path / "autoencoder", {"step": 5})
    images, mask = torch.randn(2, 3, 32, 32), torch.arange(16).expand(2, -1) < 12

    read = checkpoint.read_autoencoder(tmp_path / "autoencoder")

    assert torch.equal(read(images, mask).loss, saved(images, mask).loss)
    assert torch.equal(read(images, mask).pred, saved(images, mask).pred)
    assert read.decoder == saved.decoder
    assert not read.norm_pix_loss
    assert not read.training
    assert not read.encoder.vit.pos_embed.requires_grad
    assert checkpoint.read_extra(tmp_path / "autoencoder") == {"step": 5}


@pytest.mark.parametrize(
    "saved",
    [
        PartLearner(PartsSpec(width=48, key_width=64, patch_size=8, num_parts=3, components=40, refine=False)),
        PublishedPartLearner(
            PublishedPartsSpec(48, 8, num_parts=3, background=False, head_dim=16, decoder_width=32, blur=1)
        ),
    ],
    ids=["tokens", "pixels"],
)
def test_a_part_learner_of_either_kind_comes_back_whole(saved: checkpoint.AnyPartLearner, tmp_path: Path) -> None:
    with torch.no_grad():
        for tensor in saved.state_dict().values():
            tensor.normal_()  # what was fitted too
    checkpoint.save_learner(saved, tmp_path / "learner", {"image_size": 32})

    read = checkpoint.read_learner(tmp_path / "learner")

    assert type(read) is type(saved) and read.spec == saved.spec and not read.training
    assert checkpoint.read_extra(tmp_path / "learner") == {"image_size": 32}
    assert checkpoint.digest(read) == checkpoint.digest(saved)


def test_saving_again_replaces_and_leaves_nothing_behind(encoder: Encoder, tmp_path: Path) -> None:
    checkpoint.save_encoder(Encoder(TINY), tmp_path / "encoder")
    checkpoint.save_encoder(encoder, tmp_path / "encoder")

    assert checkpoint.digest(checkpoint.read_encoder(tmp_path / "encoder")) == checkpoint.digest(encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_write_that_fails_leaves_the_older_folder(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(DiskError):
        patched.setattr(checkpoint, "save_file", full)
        checkpoint.save_encoder(Encoder(TINY), tmp_path / "encoder")
    with pytest.raises(TypeError):  # not JSON
        checkpoint.save_encoder(Encoder(TINY), tmp_path / "encoder", {"what": object()})

    assert checkpoint.digest(checkpoint.read_encoder(tmp_path / "encoder")) == checkpoint.digest(encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_move_that_fails_puts_the_older_folder_back(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_encoder(encoder, tmp_path / "encoder")
    rename = os.rename

    def refuse_fresh(source: Path, target: Path) -> None:
        if target == tmp_path / "encoder" and ".old." not in source.name:
            raise OSError("the disk went away")
        rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="went away"):
        patched.setattr(os, "rename", refuse_fresh)
        checkpoint.save_encoder(Encoder(TINY), tmp_path / "encoder")

    assert checkpoint.digest(checkpoint.read_encoder(tmp_path / "encoder")) == checkpoint.digest(encoder)


def test_a_folder_with_other_things_is_never_replaced(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with refused("thesis.tex"):
        checkpoint.save_encoder(encoder, tmp_path)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_never_replaced_by_a_folder(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "encoder").write_text("a file")

    with refused(tmp_path / "encoder"):
        checkpoint.save_encoder(encoder, tmp_path / "encoder")


def test_damaged_folders_are_named_in_one_line(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    with refused(folder, "no encoder"):
        checkpoint.read_encoder(folder)
    checkpoint.save_encoder(encoder, folder)
    with refused(folder, "no autoencoder"):
        checkpoint.read_autoencoder(folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    with refused("model.safetensors"):
        checkpoint.read_encoder(folder)
    (folder / "config.json").write_text("{")
    with refused("config.json"):
        checkpoint.read_encoder(folder)


def test_tensors_that_do_not_fit_the_configuration_are_named(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    checkpoint.save_encoder(encoder, folder)
    state = checkpoint.load_file(folder / "model.safetensors")
    state["norm.biased"] = state.pop("norm.bias")
    checkpoint.save_file(state, folder / "model.safetensors")

    with refused("missing: norm.bias", "unexpected: norm.biased"):
        checkpoint.read_encoder(folder)


def test_the_digest_tells_values_names_and_types_apart() -> None:
    layer = nn.Linear(3, 2)
    before = checkpoint.digest(layer)
    assert checkpoint.digest(nn.Sequential(layer)) != before
    assert checkpoint.digest(nn.Linear(3, 2).bfloat16()) != before
    with torch.no_grad():
        layer.weight[1, 2] += 1e-6
    assert checkpoint.digest(layer) != before
    with torch.inference_mode():
        assert checkpoint.digest(nn.BatchNorm2d(2))  # scalars and integers too


def test_the_digest_is_the_same_in_every_process() -> None:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.constant_(layer.bias, -1.0)

    # Stores of part labels on users' disks carry digests: this number never changes.
    assert checkpoint.digest(layer) == "a4d062c807eea3475c515c66d552595eaa07866e06638a16011c2988cb1b3608"


def test_weights_have_the_mode_that_the_umask_asks_for(encoder: Encoder, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save_encoder(encoder, tmp_path / "run/encoder")
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run/encoder").iterdir()}
    assert modes == {"model.safetensors": 0o640, "config.json": 0o640}
