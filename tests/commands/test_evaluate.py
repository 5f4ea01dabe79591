"""`semmae evaluate`: the figures of the single verbs, in one table; what cannot be measured is told or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

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


@pytest.fixture
def streets(creatures: Path, tmp_path: Path) -> Path:
    """Photos as ADE20K lays them out: no classes, the same names in both splits, 255 where nobody is asked."""
    folder = tmp_path / "streets"
    images = sorted((creatures / "images").rglob("*.png"))
    for number, image in enumerate(images[:16]):
        split = "train" if number < 8 else "val"
        for kind, source in (
            ("images", image),
            ("masks", creatures / "masks" / image.relative_to(creatures / "images")),
        ):
            target = folder / kind / split / f"{number % 8:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


def test_masks_without_classes_are_measured_beside_the_baseline(encoder: Path, streets: Path, tmp_path: Path) -> None:
    out = semmae.evaluate(encoder=str(encoder), data=str(streets), out=tmp_path / "out", steps=2, **COMMON)
    found = results(out)
    assert found["this encoder"] == found["untrained"]
    assert {name.partition("_")[0] for name in found["this encoder"]} >= {"segment", "heads", "grid"}
    assert (out / "segment" / "per_class.csv").is_file() and (out / "untrained" / "segment" / "per_class.csv").is_file()


def test_what_is_ignored_is_no_part(encoder: Path, streets: Path, tmp_path: Path) -> None:
    def grid_nmi(name: str) -> float:
        out = semmae.evaluate(
            encoder=str(encoder), data=str(streets), out=tmp_path / name, steps=1, untrained=False, **COMMON
        )
        return float(results(out)["this encoder"]["grid_nmi"])

    before = grid_nmi("before")
    for path in (streets / "masks").rglob("*.png"):
        mask = np.array(Image.open(path))
        mask[mask == 0] = 255  # the background is not to be told, and was none of the parts before
        Image.fromarray(mask).save(path)
    assert grid_nmi("after") == before


def test_what_cannot_be_read_is_listed(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(creatures / "images", folder)
    broken = sorted(folder.rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    out = semmae.evaluate(encoder=str(encoder), data=str(folder), out=tmp_path / "out", untrained=False, **COMMON)
    assert (out / "skipped.csv").read_text().splitlines()[1].startswith(broken.relative_to(folder).as_posix())


def test_without_classes_and_masks_nothing_is_written(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    images = next((creatures / "images").iterdir())
    before = tiny.listing(tmp_path)
    with pytest.raises(UserError, match="no such folder of masks"):
        semmae.evaluate(
            encoder=str(encoder),
            data=str(creatures / "images"),
            masks=tmp_path / "none",
            out=tmp_path / "out",
            **COMMON,
        )
    with pytest.raises(UserError, match="neither classes nor masks"):
        semmae.evaluate(encoder=str(encoder), data=str(images), out=tmp_path / "out", **COMMON)
    assert tiny.listing(tmp_path) == before
