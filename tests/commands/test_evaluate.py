"""`semmae evaluate`: the figures of the single verbs, in one table; what cannot be measured is told or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import semmae
from semmae.checkpoint import save_encoder
from semmae.errors import UserError
from semmae.models.vit import Encoder, EncoderSpec

COMMON: dict[str, Any] = {"workers": 0, "batch_size": 16}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has learned nothing: the very encoder that seed 0 stands for as a baseline."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders") / "untrained"
    save_encoder(Encoder(EncoderSpec.named("vit_tiny", 32, 8)), folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(encoder: Path, creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return semmae.evaluate(encoder=str(encoder), data=str(creatures), out=out, steps=2, **COMMON)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_an_encoder_that_has_learned_nothing_equals_its_baseline(evaluated: Path) -> None:
    found = results(evaluated)
    own, untrained = found["this encoder"], found["untrained"]
    assert own.keys() == untrained.keys()
    assert {name: value for name, value in own.items() if untrained[name] != value} == {}
    measured = {name.partition("_")[0] for name in own}
    assert {"knn", "probe", "segment", "heads", "kmeans", "grid"} <= measured


def test_figures_are_those_of_the_single_verbs(evaluated: Path, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    own = results(evaluated)["this encoder"]
    images = str(creatures / "images")
    semmae.probe(encoder=str(encoder), data=images, out=tmp_path / "probe", crop_pct=1.0, **COMMON)
    semmae.segment(
        encoder=str(encoder), data=str(creatures), out=tmp_path / "segment", head="linear", steps=2, val_steps=2,
        workers=0,
    )  # fmt: skip
    for verb, names in (("probe", ("top1", "top5", "mean_class", "rate")), ("segment", ("miou", "pixel_accuracy"))):
        alone = results(tmp_path / verb)
        assert [own[f"{verb}_{name}"] for name in names] == [alone[name] for name in names]


def test_the_table_tells_every_encoder_and_protocol(evaluated: Path) -> None:
    text = (evaluated / "results.md").read_text()
    assert "| this encoder | untrained |" in " ".join(text.split())
    for words in (
        "k-NN, top-1 %",
        "linear probe, top-1 %",
        "segmentation, linear head, mIoU %",
        "parts by attention heads, NMI",
    ):
        assert f"| {words} " in text
    protocol = results(evaluated)["protocol"]
    assert protocol["knn"]["split"] == protocol["probe"]["split"] == "24 train, 8 held out of each class by seed 0"
    assert protocol["segment"]["steps"] == 2


def test_without_masks_classes_alone_are_measured(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    out = semmae.evaluate(
        encoder=str(encoder), data=str(creatures / "images"), out=tmp_path / "out", untrained=False, **COMMON
    )
    found = results(out)
    assert "untrained" not in found
    assert {name.partition("_")[0] for name in found["this encoder"]} == {"knn", "probe"}


def test_without_classes_and_masks_nothing_is_written(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    images = next((creatures / "images").iterdir())
    before = tiny.listing(tmp_path)
    with pytest.raises(UserError, match="neither classes nor masks"):
        semmae.evaluate(encoder=str(encoder), data=str(images), out=tmp_path / "out", **COMMON)
    assert tiny.listing(tmp_path) == before
