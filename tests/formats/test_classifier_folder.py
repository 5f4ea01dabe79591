"""A classifier's folder: timm reads the same logits, ours comes back whole, and it serves as an encoder too."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused
from torch import nn

from semmae.formats import folders as checkpoint
from semmae.formats.open import load_classifier, load_encoder
from semmae.models.classifier import Classifier, set_drop_path
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import wrap_vit

SPEC = EncoderSpec(32, 8, 48, 2, 3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
CLASSES = ["ant", "bee", "cat"]


def saved(folder: Path, pooling: str = "mean", encoder: Encoder | None = None) -> Classifier:
    classifier = Classifier(encoder or Encoder(SPEC), len(CLASSES), pooling).eval()
    set_drop_path(classifier.vit, 0.1)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    checkpoint.save_classifier(classifier, folder / "classifier", CLASSES, 0.9, {"stage": "finetune"})
    return classifier


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_timm_reads_the_same_logits_names_and_crop(tmp_path: Path, pooling: str) -> None:
    classifier, images = saved(tmp_path, pooling), torch.randn(2, 3, 32, 32)

    read = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True).eval()

    assert torch.allclose(read(images), classifier(images), atol=1e-6)
    assert read.num_classes == 3 and list(read.pretrained_cfg["label_names"]) == CLASSES
    preprocessing = timm.data.resolve_model_data_config(read)
    assert preprocessing["crop_pct"] == 0.9 and tuple(preprocessing["mean"]) == SPEC.mean


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_it_comes_back_whole(tmp_path: Path, pooling: str) -> None:
    classifier, images = saved(tmp_path, pooling), torch.randn(2, 3, 32, 32)
    for place in (tmp_path, tmp_path / "classifier", tmp_path / "classifier" / "model.safetensors"):
        read, classes = load_classifier(place)
        assert classes == CLASSES and read.encoder.spec == SPEC and read.pooling == pooling and not read.training
        assert torch.equal(read(images), classifier(images))
    assert checkpoint.read_extra(tmp_path / "classifier") == {"stage": "finetune"}
    assert checkpoint.read_learned(tmp_path / "classifier") is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_encoders_of_timm_are_fine_tuned_and_come_back(
    tmp_path: Path, name: str, options: dict[str, object], pooling: str
) -> None:
    model = timm.create_model(name, embed_dim=48, depth=2, num_heads=3, img_size=32, dynamic_img_size=True, **options)
    model.reset_classifier(0)
    encoder = wrap_vit(model, SPEC.mean, SPEC.std)
    encoder.set_image_size(64)
    classifier, images = saved(tmp_path, pooling, encoder), torch.randn(2, 3, 64, 64)

    read = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True).eval()

    assert torch.allclose(read(images), classifier(images), atol=1e-6)
    assert torch.equal(load_classifier(tmp_path)[0](images), classifier(images))


@torch.no_grad()
def test_it_is_an_encoder_without_its_head_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classifier, images = saved(tmp_path, "cls"), torch.randn(2, 3, 32, 32)
    with caplog.at_level(logging.INFO, "semmae"):
        encoder = load_encoder(tmp_path)
    assert "its head" in caplog.text
    assert torch.equal(encoder(images).cls, classifier.encoder(images).cls)
    checkpoint.save_encoder(encoder, tmp_path / "encoder")  # an encoder like any other


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    checkpoint.save_encoder(Encoder(SPEC), tmp_path / "encoder")
    for place in (tmp_path, tmp_path / "encoder", "timm:vit_tiny_patch16_224"):
        with refused("classifier", "semmae finetune"):
            load_classifier(place)


def test_what_it_learned_from_lies_beside_the_configuration(tmp_path: Path) -> None:
    """Written with the folder, replaced with it, and no reason to refuse the folder as one of other files."""
    classifier, folder = saved(tmp_path), tmp_path / "classifier"
    keys = [f"{number:012x}" for number in range(1000)]
    before = (folder / "config.json").read_text()
    checkpoint.save_classifier(classifier, folder, CLASSES, 0.9, {"stage": "finetune"}, keys)
    assert checkpoint.read_learned(folder) == keys and (folder / "config.json").read_text() == before
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3
    checkpoint.save_classifier(classifier, folder, CLASSES, 0.9, {"stage": "finetune"}, keys[:0])
    assert checkpoint.read_learned(folder) == []
