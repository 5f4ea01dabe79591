"""Encoders of images that are no squares: trained, and measured as a plain loop over whole images measures them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

import semmae
from semmae.data.coding import Coding
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import open_images
from semmae.data.segment_crops import WholeLabelled
from semmae.data.segmentation import open_segmentation
from semmae.evaluation.segmentation import most_likely, slide
from semmae.models.vit import EncoderSpec

TALL = (32, 24)
NEW: dict[str, Any] = {"model": "vit_mini", "image_size": TALL, "patch_size": 8, "epochs": 1, **tiny.TRAIN}
QUICK: dict[str, Any] = {"workers": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.new_encoder(tmp_path_factory.mktemp("tall") / "encoder", EncoderSpec(TALL, 8, 24, 2, 2))


@pytest.fixture(scope="module")
def data(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.divide(creatures, tmp_path_factory.mktemp("data"))


def right(logits: Callable[[Tensor], Tensor], classes: list[str], data: Path, crop_pct: float, spec: Any) -> float:
    """Per cent of the validation images that are given their class, one image at a time."""
    val = open_images(data, split="val", workers=0)
    whole = WholeDataset(val, TALL, fit="centre", crop_pct=crop_pct)
    count = 0
    for row, label in enumerate(val.labels or ()):
        image = whole[row]["image"]
        assert image.shape == (3, *TALL)
        with torch.inference_mode():
            found = logits(normalise(image[None], spec.mean, spec.std))
        count += classes[int(found.argmax())] == label
    return 100 * count / len(val)


def test_tokens_are_those_of_each_image_row_by_row(tall: Path, data: Path, tmp_path: Path) -> None:
    semmae.embed(encoder=tall, data=data, out=tmp_path / "tokens.safetensors", tokens="cls,patch", workers=0)
    found, encoder = load_file(tmp_path / "tokens.safetensors"), semmae.load_encoder(tall)
    whole = WholeDataset(open_images(data, workers=0), TALL, fit="centre")
    for row in range(0, len(whole), 7):
        with torch.inference_mode():
            tokens = encoder(normalise(whole[row]["image"][None], encoder.spec.mean, encoder.spec.std))
        assert tokens.patches.shape[1] == 4 * 3
        assert torch.allclose(found["patch"][row].float(), tokens.patches[0], atol=2e-3)
        assert torch.allclose(found["cls"][row].float(), tokens.cls[0], atol=2e-3)


@pytest.mark.parametrize("protocol", ["features", "mae"])
def test_probe(protocol: str, tall: Path, data: Path, tmp_path: Path) -> None:
    how = {"protocol": "mae", "batch_size": 8} if protocol == "mae" else {}
    semmae.probe(encoder=tall, data=data, out=tmp_path / "run", epochs=2, **QUICK, **how)
    head, encoder, found = semmae.load_head(tmp_path / "run"), semmae.load_encoder(tall), tiny.results(tmp_path / "run")
    crop_pct = found["protocol"]["crop_pct"]
    alone = right(lambda image: head(encoder(image)), list(head.spec.classes), data, crop_pct, encoder.spec)
    assert found["top1"] == pytest.approx(alone) and found["protocol"]["image_size"] == list(TALL)


def test_finetune(tall: Path, data: Path, tmp_path: Path) -> None:
    semmae.finetune(encoder=tall, data=data, out=tmp_path / "run", epochs=2, erasing=0.5, **tiny.TRAIN)
    (classifier, classes), found = semmae.load_classifier(tmp_path / "run"), tiny.results(tmp_path / "run")
    spec = semmae.load_encoder(tmp_path / "run").spec
    assert spec.image_size == TALL
    alone = right(classifier.eval(), classes, data, found["protocol"]["crop_pct"], spec)
    assert found["top1"] == pytest.approx(alone)


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_segment(head: str, creatures: Path, tmp_path: Path) -> None:
    size, stride = ((32, 24), (21, 16)) if head == "linear" else ((32, 40), (21, 26))  # UPerNet wants four patches
    encoder = tiny.new_encoder(tmp_path / "encoder", EncoderSpec(size, 8, 24, 4, 2))
    how: dict[str, Any] = {"head": head, **({"decoder_channels": 8} if head == "upernet" else {})}
    semmae.segment(
        encoder=encoder, data=creatures, out=tmp_path / "run", steps=2, val_steps=2, batch_size=4, **QUICK, **how
    )
    net, val = semmae.load_segmenter(tmp_path / "run"), open_segmentation(creatures, Coding()).val
    whole, spec, hits, pixels = WholeLabelled(val, size), net.encoder.spec, 0, 0
    for row in range(len(val)):
        image = normalise(whole[row]["image"][None], spec.mean, spec.std)
        with torch.inference_mode():
            found = most_likely(slide(net, image, size, stride), 48, 48)[0]
        hits, pixels = hits + int((found == val.labels(row)).sum()), pixels + found.numel()
    assert tiny.results(tmp_path / "run")["pixel_accuracy"] == pytest.approx(100 * hits / pixels)


def test_evaluate_gives_the_figures_of_the_single_verbs(tall: Path, creatures: Path, tmp_path: Path) -> None:
    semmae.evaluate(encoder=tall, data=creatures, out=tmp_path / "all", steps=2, workers=0)
    own = tiny.results(tmp_path / "all")["this encoder"]
    semmae.probe(encoder=tall, data=creatures / "images", out=tmp_path / "probe", crop_pct=1.0, workers=0)
    semmae.segment(
        encoder=tall, data=creatures, out=tmp_path / "segment", head="linear", steps=2, val_steps=2, workers=0
    )
    assert own["probe_top1"] == tiny.results(tmp_path / "probe")["top1"]
    assert own["segment_miou"] == tiny.results(tmp_path / "segment")["miou"]
    assert own.keys() >= {"knn_top1", "heads_nmi", "kmeans_nmi"}


def test_teacher_and_compare(creatures: Path, data: Path, tmp_path: Path) -> None:
    """With local crops of another shape; what is measured on the way is measured again by the encoder alone."""
    teacher = semmae.teacher(
        data=creatures / "images", out=tmp_path / "teacher", local_crops=2, local_size=(8, 16), knn_every=1, **NEW
    ).path
    assert semmae.load_encoder(teacher).spec.image_size == TALL
    out = tmp_path / "out"
    (tmp_path / "rows.yaml").write_text("- {masking: random}\n- {masking: semantic, parts: kmeans}\n")
    semmae.compare(data=data, out=out, grid=tmp_path / "rows.yaml", seeds=1, teacher=str(teacher), logger="none", **NEW)
    found = {run["name"]: run["knn_top1"] for run in tiny.results(out)["runs"]}
    assert len(found) == 2
    measured = {name: (out / "runs" / name / "seed-0", data, top1) for name, top1 in found.items()}
    measured["teacher"] = (teacher, creatures / "images", tiny.metrics(teacher)[-1]["knn_top1"])
    for name, (run, images, top1) in measured.items():
        semmae.knn(encoder=run, data=images, out=tmp_path / "knn" / name, **QUICK)
        assert tiny.results(tmp_path / "knn" / name)["top1"] == pytest.approx(top1), name
