"""`semmae export` of a classifier: its head goes along, and predicts the same classes in every library."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

import semmae
from semmae.formats import folders as checkpoint, onnx
from semmae.formats.open import load_classifier, load_encoder
from semmae.models.classifier import Classifier
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.shared import Pooling

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SPEC = EncoderSpec(32, 8, 48, 2, 3, mean=MEAN, std=STD)
CLASSES = ["cat", "dog", "cow & calf"]


def tuned(folder: Path, pooling: Pooling, classes: list[str] = CLASSES) -> Path:
    """What `semmae finetune` leaves behind, with random weights."""
    classifier = Classifier(Encoder(SPEC), len(classes), pooling)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    about = {"crop_pct": 0.8}
    checkpoint.save_classifier(classifier, folder / "classifier", classes, 0.8, about, learned=["0123456789ab"])
    (folder / "config.yaml").write_text("verb: finetune\ndata: /home/me/photos\nepochs: 9\n")
    return folder


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_timm_names_the_classes(pooling: Pooling, tmp_path: Path) -> None:
    run, shown = tuned(tmp_path / "run", pooling), images()

    out = semmae.export(encoder=run, to="timm", out=tmp_path / "out").path

    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.equal(model(shown), load_classifier(run)[0](shown))
    assert model.pretrained_cfg["label_names"] == CLASSES
    assert resolve_data_config({}, model=model)["crop_pct"] == 0.8
    assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(load_encoder(run))
    assert checkpoint.read_learned(out) is None  # which images it learned from is nobody else's business


def test_an_export_is_measured_as_the_run_is(creatures: Path, tmp_path: Path) -> None:
    data = creatures / "images"
    run = tuned(tmp_path / "run", "mean", sorted(path.name for path in data.iterdir()))
    out = semmae.export(encoder=run, to="timm", out=tmp_path / "out").path

    found = []
    for encoder in (run, out):
        folder = tmp_path / f"measured-{encoder.name}"
        semmae.finetune(eval_only=True, encoder=encoder, data=data, out=folder, workers=0)
        found.append(json.loads((folder / "results.json").read_text()))

    assert found[0].pop("protocol")["crop_pct"] == found[1].pop("protocol")["crop_pct"] == 0.8
    assert found[0] == found[1]


@torch.no_grad()
def test_transformers_names_the_classes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run, shown = tuned(tmp_path / "run", "cls"), images()

    out = semmae.export(encoder=run, to="hf", out=tmp_path / "out").path

    model, found = transformers.ViTForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.eval()(shown).logits - load_classifier(run)[0](shown)).abs().max() < 1e-5
    assert [model.config.id2label[number] for number in range(3)] == CLASSES
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (40, 32)
    assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(load_encoder(run))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_onnx_names_the_classes(pooling: Pooling, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, shown = tuned(tmp_path / "run", pooling), images()

    out = semmae.export(encoder=run, to="onnx", out=tmp_path / "out").path

    session = onnxruntime.InferenceSession(out / onnx.FILE)
    cls, patches, logits = session.run(["cls", "patches", "logits"], {"images": shown.numpy()})
    classifier, features = load_classifier(run)[0], load_encoder(run)(shown)
    assert np.abs(logits - classifier(shown).numpy()).max() < 1e-4
    assert np.abs(cls - features.cls.numpy()).max() < 1e-4 and np.abs(patches - features.patches.numpy()).max() < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES


def test_without_its_head_it_is_the_encoder(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run", "cls")

    for form, head in (("timm", False), ("hf", False), ("mae", True)):
        out = semmae.export(encoder=run, to=form, out=tmp_path / form, head=head).path
        assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(load_encoder(run))
        assert json.loads((out / "export.json").read_text())["head"] is False
        assert "classes" not in (out / "README.md").read_text()
    assert checkpoint.kind(tmp_path / "timm") == checkpoint.ENCODER


def test_another_size_and_the_card(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run", "mean")

    out = semmae.export(encoder=run, to="timm", out=tmp_path / "out", image_size=48).path

    assert load_classifier(out)[0].encoder.spec.image_size == 48
    card = (out / "README.md").read_text()
    assert "3 classes" in card and "pipeline_tag: image-classification" in card
    assert "60 pixels" in " ".join(card.split())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--to", "hf"], ["norm", "--to timm"]),
        (["--to", "timm", "--num-heads", "4"], ["--num-heads 4: "]),
    ],
)
def test_wrong_input_is_one_line(options: list[str], named: list[str], tmp_path: Path, refuse: tiny.Refuse) -> None:
    run = tuned(tmp_path / "run", "mean")

    refuse(["export", "--encoder", str(run), "--out", str(tmp_path / "out"), *options], tmp_path, *named)
