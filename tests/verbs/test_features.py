"""`semmae knn` and `report`: what they write about an encoder, and how it can be read."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import semmae
from semmae.cli import run
from semmae.data.classes import image_keys, unlearned_rows, voters
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import open_images
from semmae.evaluation.accuracy import class_ranks, rank_report
from semmae.evaluation.features import View, image_features
from semmae.evaluation.knn import knn_accuracy, knn_scores
from semmae.evaluation.protocols import knn as protocol
from semmae.models.vit import Encoder, EncoderSpec


def features(whole_run: Path, data: Path, pooling: str = "cls") -> torch.Tensor:
    """The slow way: one image at a time."""
    encoder, images = semmae.load_encoder(whole_run), open_images(data)
    whole = WholeDataset(images, 32, fit="centre")
    pixels = (normalise(whole[row]["image"], encoder.spec.mean, encoder.spec.std) for row in range(len(images)))
    with torch.inference_mode():
        outputs = [encoder(image[None]) for image in pixels]
    return torch.cat([output.cls if pooling == "cls" else output.patches.mean(1) for output in outputs])


def test_knn_of_every_image_against_all_others(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    data, out = creatures / "images", tmp_path / "knn"
    arguments = ["--encoder", str(whole_run), "--data", str(data), "--out", str(out), "--k", "5", "--workers", "0"]
    arguments += ["--precision", "float32"]
    assert run(["knn", *arguments]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    labels = open_images(data).labels
    assert labels is not None
    targets = torch.tensor([sorted(set(labels)).index(label) for label in labels])
    vectors = features(whole_run, data, "mean")  # a masked autoencoder's
    expected = knn_accuracy(vectors, targets, vectors, targets, num_classes=8, k=5, leave_one_out=True)
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    scores = knn_scores(vectors, targets, vectors, num_classes=8, k=5, leave_one_out=True)
    ranks = class_ranks(scores, targets)
    ranks[scores[torch.arange(len(targets)), targets] == 0] = 8  # no neighbour votes for it
    report = rank_report(ranks, targets, 8)
    del report["per_class"]
    assert {name: results[name] for name in report} == pytest.approx(report)
    assert (results["images"], results["classes"]) == (tiny.COUNT, 8)
    assert results["protocol"]["split"] == "leave one out"
    assert results["protocol"]["k"] == 5
    assert (out / "config.yaml").is_file()
    assert results["protocol"]["precision"] == "float32"
    assert (out / "skipped.csv").read_text().splitlines() == ["name,reason"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_features_are_computed_in_the_arithmetic_asked_for(precision: Any, creatures: Path) -> None:
    """Those of torch.autocast, bit for bit, and float32 in the end; mirrored ones are those of mirrored pixels."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(32, 8, 24, 2, 2)).eval()
    images = open_images(creatures / "images").select(range(6))
    view = View(32, "cls", batch_size=6, workers=0, precision=precision)
    whole = WholeDataset(images, 32, fit="centre")
    pixels = torch.stack([whole[row]["image"] for row in range(6)])
    for flip in (False, True):
        shown = normalise(pixels.flip(-1) if flip else pixels, encoder.spec.mean, encoder.spec.std)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = encoder(shown).cls.float()
        found = image_features(encoder, images, view, flip)
        assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_knn_of_a_split(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    """The same images in both splits: with one neighbour, each finds itself."""
    for split in ("train", "val"):
        shutil.copytree(creatures / "images", tmp_path / "data" / split)
    semmae.knn(encoder=whole_run, data=tmp_path / "data", out=tmp_path / "knn", k=1, workers=0)
    results = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert results["top1"] == 100.0
    assert results["protocol"]["split"] == "32 train, 32 val"


def test_why_there_are_no_classes_is_said_once(
    whole_run: Path,
    creatures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A flat `val`; a verb that needs no classes says it, and goes on."""
    data = tiny.divide(creatures, tmp_path / "data")
    for path in [*(data / "val").glob("*/*.png")]:
        path.rename(data / "val" / f"{path.parent.name}-{path.name}")
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    with caplog.at_level(logging.INFO, "semmae"):
        assert run(["knn", "--encoder", str(whole_run), "--data", str(data), "--out", str(tmp_path / "knn")]) == 2
        output = capsys.readouterr().err + caplog.text
        assert output.count("no classes") == output.count("val/CLASS") == 1
        assert open_images(data, workers=0).labels is None
    assert caplog.text.count("no classes") == 1


def test_the_search_runs_where_the_encoder_does(creatures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features come back to the CPU; those that vote go to the device again."""
    images = open_images(creatures / "images")
    seen: list[torch.device] = []

    def spy(train: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(train.device)
        return torch.zeros(len(images), dtype=torch.int64)

    monkeypatch.setattr(protocol, "knn_ranks", spy)
    encoder = Encoder(EncoderSpec(32, 8, 24, 1, 2)).to("meta")
    knn = protocol.Knn(View(32, "cls"), embed=lambda *_, **named: torch.randn(len(images), 24))
    knn.run(encoder, voters("photos", [images], limit=None), Path("out"))
    assert [device.type for device in seen] == ["meta"]


def test_what_was_learned_from_is_known_again(creatures: Path, tmp_path: Path) -> None:
    """One image of more, one of fewer, in a folder that was moved, below train; another of its name is another."""
    shutil.copytree(creatures / "images", tmp_path / "data" / "train")
    images = open_images(tmp_path / "data")
    learned = image_keys(images.select(range(4, 32)))
    assert {len(key) for key in learned} == {12} and unlearned_rows(images, learned) == [0, 1, 2, 3]
    moved = open_images(creatures / "images")
    assert unlearned_rows(moved, learned) == [0, 1, 2, 3]
    assert unlearned_rows(moved.select([31, 2, 20, 0]), learned) == [1, 3]
    with open(tmp_path / "data" / moved.names[20].join(("train/", "")), "ab") as file:
        file.write(b"\0")
    assert unlearned_rows(open_images(tmp_path / "data"), learned) == [0, 1, 2, 3, 20]
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "val")
    assert len(unlearned_rows(open_images(tmp_path / "data"), learned)) == 32


def test_report_is_made_again(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    assert run(["report", str(tmp_path / "run")]) == 0
    pages = [tmp_path / "run" / "report.html", tmp_path / "run" / "parts" / "parts.html"]
    output = capsys.readouterr().out.split()
    assert all(str(page) in output for page in pages)
    assert all("<svg" in page.read_text() for page in pages)


@pytest.mark.parametrize("verb", ["knn", "probe", "evaluate"])
def test_two_processes_see_the_features_of_one(verb: str, whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    """By two processes of this machine; blocks of 4 images, so that each has several."""
    given = {"encoder": whole_run, "data": creatures / "images", "workers": 0, "batch_size": 4}
    found = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        getattr(semmae, verb)(**given, devices=devices, out=out)
        results = tiny.results(out)
        figures = results.get("this encoder", results)
        found.append({name: value for name, value in figures.items() if name.endswith(("top1", "top5"))})
    assert found[0] == found[1] and found[0]
