"""Which vector fits an encoder: every form that one comes in, by what it was trained for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from semmae.formats.choose import choose
from semmae.formats.files import read_file
from semmae.formats.folders import save_autoencoder, save_classifier, save_encoder, save_segmenter
from semmae.formats.form import Subject
from semmae.formats.open import load_encoder
from semmae.formats.pooling import pooling_by_name, pooling_of_file, pooling_of_folder
from semmae.formats.write import write_form
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec

SPEC = EncoderSpec(16, 8, 24, 2, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:vit_base_patch16_224.mae", "mean"),
        ("timm:vit_base_patch16_224.dino", "cls"),
        ("timm:vit_small_patch14_reg4_dinov2.lvd142m", "cls"),
        ("timm:vit_base_patch16_224.augreg_in21k", "cls"),
        ("timm:hf-hub:facebook/vit-mae-base", "mean"),
        ("timm:hf-hub:facebook/dinov2-small", "cls"),
        ("timm:hf-hub:maelstrom/vit", "cls"),
    ],
)
def test_by_name(name: str, expected: str) -> None:
    assert pooling_by_name(name) == expected


def test_our_own_folders(tmp_path: Path) -> None:
    encoder = Encoder(SPEC)
    for stage, expected in (("pretrain", "mean"), ("teacher", "cls"), (None, "cls")):
        run = tmp_path / str(stage)
        save_encoder(encoder, run / "encoder", {"stage": stage} if stage else None)
        for place in (run, run / "encoder", run / "encoder" / "model.safetensors"):
            assert load_encoder(place).pooling == expected
    save_autoencoder(MaskedAutoencoder(encoder, DecoderSpec(16, 1, 2), True), tmp_path / "mae" / "autoencoder")
    assert load_encoder(tmp_path / "mae").pooling == "mean"
    for pooling in ("cls", "mean"):
        save_classifier(Classifier(Encoder(SPEC), 2, pooling), tmp_path / pooling / "classifier", ["a", "b"])
        assert load_encoder(tmp_path / pooling).pooling == pooling
    save_segmenter(
        Segmenter(Encoder(SPEC), SegmenterSpec(("a", "b"), "linear", (), 8, False)), tmp_path / "s/segmenter"
    )
    assert load_encoder(tmp_path / "s").pooling == "mean"


def test_a_run_under_way_is_known_by_its_verb(tmp_path: Path) -> None:
    for verb, expected in (("pretrain", "mean"), ("teacher", "cls")):
        run = tmp_path / verb
        run.mkdir()
        (run / ".unfinished").touch()
        (run / "config.yaml").write_text(f"verb: {verb}\n")
        assert pooling_of_folder(run) == expected


def test_files_of_others(tmp_path: Path) -> None:
    encoder = {"cls_token": torch.zeros(1, 1, 8), "blocks.0.norm1.weight": torch.zeros(8)}
    decoder = {"decoder_embed.weight": torch.zeros(4, 8)}
    files: dict[str, tuple[dict[str, Any], str]] = {
        "checkpoint-799.pth": ({"model": encoder | decoder, "epoch": 799}, "mean"),
        "vitmae.bin": ({f"vit.{name}": value for name, value in encoder.items()}, "mean"),
        "pytorch_model.bin": ({"decoder.decoder_embed.weight": torch.zeros(4, 8)}, "mean"),
        "mae_pretrain_vit_base.pth": ({"model": encoder}, "mean"),
        "semmae.pth": (encoder, "mean"),
        "dino_vitbase16_pretrain.pth": (encoder, "cls"),
        "full.pth": ({"student": encoder, "teacher": {"module.masked_embed": torch.zeros(1, 8)}}, "cls"),
    }
    for name, (content, expected) in files.items():
        torch.save(content, tmp_path / name)
        has_decoder = choose(read_file(tmp_path / name)).has_decoder
        assert pooling_of_file(tmp_path / name, has_decoder) == expected, name


def test_folders_of_transformers_and_timm(tmp_path: Path) -> None:
    configs: dict[str, tuple[dict[str, Any], str]] = {
        "vitmae": ({"model_type": "vit_mae"}, "mean"),
        "dinov2": ({"model_type": "dinov2"}, "cls"),
        "timm-mae": ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "mae"}}, "mean"),
        "timm-dino": ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "dino"}}, "cls"),
    }
    for name, (config, expected) in configs.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
        assert (pooling_of_folder(folder) or "cls") == expected, name


def test_a_saved_encoder_keeps_its_own_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    encoder = Encoder(SPEC)
    encoder.pooling = "mean"
    save_encoder(encoder, tmp_path / "encoder")
    assert load_encoder(tmp_path).pooling == "mean"
    for form in ("mae", "hf"):
        (tmp_path / form).mkdir()
        write_form(form, Subject("given", encoder, 0.75), tmp_path / form)

    for place in ("encoder", "mae", "hf"):
        config = tmp_path / place / "config.json"
        config.write_text(config.read_text().replace('"pooling": "mean"', '"pooling": "max"'))
        with refused(config, "'max'", "cls or mean"):
            load_encoder(tmp_path / place)
