"""`semmae segment`: what it writes, what it learns, resuming bit for bit, and what it refuses."""

import csv
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import semmae
from semmae.data.loaders import normalise
from semmae.evaluation.segmentation import most_likely, slide
from semmae.formats.folders import save_encoder
from semmae.formats.open import load_encoder, load_segmenter
from semmae.models.fresh import fresh_like
from semmae.models.vit import EncoderSpec
from semmae.options.presets import presets_of
from semmae.options.segment import SegmentOptions
from semmae.options.values import check_given
from semmae.verbs.segment import protocol_of

STEPS, EVERY = 4, 2
SMALL: dict[str, Any] = {
    "steps": STEPS, "val_steps": EVERY, "batch_size": 4, "workers": 0, "precision": "float32", "decoder_channels": 8,
    "lr": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed than the untrained one."""
    return tiny.new_encoder(tmp_path_factory.mktemp("encoder") / "encoder", EncoderSpec(32, 8, 48, 4, 3), seed=5)


@pytest.fixture(scope="module")
def finished(encoder: Path, creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segment") / "run"
    with tiny.every_step():
        semmae.segment(encoder=encoder, data=creatures, out=out, untrained=True, **SMALL)
    return out


def test_what_a_run_leaves_behind(finished: Path) -> None:
    found = tiny.results(finished)
    rows = list(csv.DictReader((finished / "per_class.csv").open()))
    assert [row["class"] for row in rows] == [facts["class"] for facts in found["per_class"]]
    assert b"\r" not in (finished / "per_class.csv").read_bytes()
    assert len(rows) == found["protocol"]["classes"]
    ious = [facts["iou"] for facts in found["per_class"] if facts["iou"] is not None]
    assert found["miou"] == pytest.approx(np.mean(ious))
    assert sum(facts["pixels"] for facts in found["per_class"]) == found["images"] * 48 * 48
    assert sum(float(row["pixels %"]) for row in rows) == pytest.approx(100, abs=0.01)
    assert len(found["untrained"]["per_class"]) == len(rows)
    assert tiny.losses(finished) != tiny.losses(finished / "untrained")
    table = (finished / "results.md").read_text()
    assert "| this encoder |" in table and "| untrained" in table and "untrained, IoU %" in table
    assert (finished / "report.html").is_file()
    assert not (finished / ".unfinished").exists()
    # Each validation is among the metrics; the last one is the result.
    given = [line for line in tiny.metrics(finished) if "miou" in line]
    assert [line["step"] for line in given] == [2, 4]
    assert given[-1]["miou"] == pytest.approx(found["miou"])


def test_new_weights_are_trained_as_an_encoder_that_has_them(
    finished: Path, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    save_encoder(fresh_like(load_encoder(encoder), seed=0), tmp_path / "new")
    with tiny.every_step():
        semmae.segment(encoder=tmp_path / "new", data=creatures, out=tmp_path / "run", **SMALL)
    tiny.assert_same_weights(tmp_path / "run" / "segmenter", finished / "untrained" / "segmenter")
    assert tiny.losses(tmp_path / "run") == tiny.losses(finished / "untrained")


def test_the_picture_has_a_column_each_method(finished: Path) -> None:
    with Image.open(finished / "predictions.png") as sheet:
        width, height = sheet.size
    assert width > 8 * 192 and height > 3 * 192  # two groups of image, truth, prediction, untrained; of 6 images


def test_the_network_is_loaded_and_gives_what_was_measured(finished: Path, creatures: Path) -> None:
    """The slow way: one image at a time, from the files."""
    from semmae.data.coding import Coding
    from semmae.data.segment_crops import WholeLabelled
    from semmae.data.segmentation import open_segmentation

    net = load_segmenter(finished)
    val = open_segmentation(creatures, Coding()).val
    whole, spec = WholeLabelled(val, 32), net.encoder.spec
    right = pixels = 0
    for row in range(len(val)):
        image = normalise(whole[row]["image"][None], spec.mean, spec.std)
        with torch.inference_mode():
            found = most_likely(slide(net, image, 32, 21), 48, 48)[0]
        right += int((found == val.labels(row)).sum())
        pixels += found.numel()
    assert tiny.results(finished)["pixel_accuracy"] == pytest.approx(100 * right / pixels)


@pytest.mark.parametrize("seed", [0, 5])
def test_eval_only_measures_the_same(seed: int, finished: Path, creatures: Path, tmp_path: Path) -> None:
    """Whatever the seed: not those that another one would hold out, for the network was trained on most of them."""
    again = measured_again(finished, creatures, tmp_path / "again", seed=seed)
    before, after = tiny.results(finished), tiny.results(again)
    assert after["per_class"] == before["per_class"]
    assert "steps" not in after["protocol"] and "lr" not in after["protocol"]
    assert after["protocol"]["split"].startswith("6 images, 26 more left out")
    assert not (again / "segmenter").exists()


def measured_again(run: Path, data: Path, out: Path, **more: Any) -> Path:
    shared = {name: SMALL[name] for name in ("workers", "precision")}
    return semmae.segment(encoder=run, data=data, out=out, eval_only=True, pictures=0, **shared, **more).path


def test_eval_only_measures_a_folder_val_but_not_what_was_trained_on(
    finished: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    """There is no `train`; the network knows some of the images from one folder without splits."""
    copied(creatures, tmp_path / "data", "val")
    measured_again(finished, tmp_path / "data", tmp_path / "again")
    found = tiny.results(tmp_path / "again")
    assert found["per_class"] == tiny.results(finished)["per_class"]
    assert found["protocol"]["split"].startswith("6 val, 26 more left out")

    for path in (tmp_path / "data" / "images" / "val").rglob("*.png"):
        with path.open("ab") as file:  # other files of the same names
            file.write(b"\0")
    measured_again(finished, tmp_path / "data", tmp_path / "others")
    assert tiny.results(tmp_path / "others")["protocol"]["split"] == "32 val"

    base = ["segment", "--encoder", str(tmp_path / "run"), "--data", str(creatures), "--out", str(tmp_path / "none")]
    shutil.copytree(finished / "segmenter", tmp_path / "run" / "segmenter")
    learned_from(tmp_path / "run", creatures)
    refuse([*base, "--eval-only", "--workers", "0"], tmp_path / "none", "32 images")


def copied(data: Path, to: Path, split: str) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(data / kind, to / kind / split)
    for path in data.glob("classes.*"):
        shutil.copy(path, to)


def learned_from(run: Path, data: Path | None) -> None:
    """Let the network say that it was trained on all images of a folder, or, as old ones do, nothing."""
    from semmae.data.classes import image_keys
    from semmae.data.manifest import open_images

    path = run / "segmenter" / "learned.txt"
    path.unlink()
    if data is not None:
        path.write_text("\n".join(image_keys(open_images(data / "images", workers=0))))


def test_a_network_that_does_not_give_its_images_is_measured_on_all(
    finished: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished / "segmenter", tmp_path / "run" / "segmenter")
    learned_from(tmp_path / "run", None)
    with caplog.at_level(logging.WARNING, "semmae"):
        measured_again(tmp_path / "run", creatures, tmp_path / "again")
    assert "training images" in caplog.text
    assert tiny.results(tmp_path / "again")["protocol"]["split"] == "32 images"


@pytest.mark.parametrize(("stage", "step"), [("first", 3), ("untrained", 3)])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    stage: str, step: int, finished: Path, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    """Stopped inside a round, of the first network or of the second; with drop path, dropout and norms' averages."""
    out = tmp_path / "run"
    given: dict[str, Any] = {"encoder": encoder, "data": creatures, "out": out, "untrained": True, **SMALL}
    with tiny.every_step():
        if stage == "first":
            with tiny.interrupted("segment", step):
                semmae.segment(**given)
        else:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="pulled the plug"):
                stop_second(patch, step)
                semmae.segment(**given)
        assert not (out / "results.json").exists()
        semmae.segment(out=out, resume=True)
    for below in ("", "untrained"):
        tiny.assert_same_weights(out / below / "segmenter", finished / below / "segmenter")
        assert tiny.losses(out / below) == tiny.losses(finished / below)
    assert tiny.results(out) | {"protocol": None} == tiny.results(finished) | {"protocol": None}


def stop_second(patch: pytest.MonkeyPatch, step: int) -> None:
    real = semmae.train.meter.Meter.on_train_batch_end

    def stop(meter: Any, trainer: Any, *rest: Any) -> None:
        real(meter, trainer, *rest)
        if meter.options.out.name == "untrained" and trainer.global_step == step:
            raise RuntimeError("pulled the plug")

    patch.setattr(semmae.train.meter.Meter, "on_train_batch_end", stop)


def test_batches_of_a_step_make_the_same_rounds(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """Accumulated: as many steps."""
    semmae.segment(encoder=encoder, data=creatures, out=tmp_path / "run", accumulate=2, limit=20, pictures=0, **SMALL)
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [2, 4]
    assert not (tmp_path / "run" / "predictions.png").exists()
    assert tiny.results(tmp_path / "run")["protocol"]["split"] == "16 train, 4 held out by seed 0"


@pytest.mark.slow
def test_two_processes_share_the_steps(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """Only the first one measures, and the others wait for it, not it for them."""
    given = {**SMALL, "encoder": encoder, "data": creatures, "out": tmp_path / "run", "devices": 2}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = Path(sys.executable).with_name("semmae")
    subprocess.run([command, "segment", *arguments], check=True, timeout=300)
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [2, 4]
    assert tiny.results(tmp_path / "run")["images"] == 6


def test_a_linear_head_learns_and_leaves_the_encoder_alone(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    learn = {name: value for name, value in SMALL.items() if name != "decoder_channels"}
    learn |= {"steps": 60, "val_steps": 30, "lr": 1e-2, "min_scale": 1.0, "max_scale": 1.0, "colour": False}
    semmae.segment(encoder=encoder, data=creatures, out=out, head="linear", **learn)
    net, before = load_segmenter(out), semmae.load_encoder(encoder)
    after = net.encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.state_dict().items())
    found = tiny.results(out)
    pixels = [facts["pixels"] for facts in found["per_class"] if facts["pixels"]]
    everywhere = 100 * max(pixels) / sum(pixels) / len(pixels)  # mIoU of the background predicted everywhere
    assert found["miou"] > 1.25 * everywhere


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--val-steps", "4"], ("--val-steps 4", "3")),
        (["--batch-size", "1"], ("--batch-size 1", "at least 2")),
        (["--batch-size", "4", "--accumulate", "3"], ("--batch-size 4", "--accumulate 3")),
        (["--min-scale", "3"], ("--min-scale 3.0", "--max-scale 2.0")),
        (["--blocks", "0,1,2"], ("--blocks", "'0,1,2'", "0,1,2,3")),
        (["--blocks", "0,1,2,4"], ("--blocks", "0 to 3")),
        (["--blocks", "a,b,c,d"], ("--blocks", "0 to 3")),
        (["--image-size", "24"], ("--image-size 24", "at least 32")),
        (["--image-size", "36"], ("36 pixels", "32 or 40")),
        (["--head", "uper"], ("--head", "upernet")),
        (["--eval-only"], ("--steps 6", "--eval-only")),
        (["--eval-only", "--steps", "2000"], ("segmenter", "semmae segment")),
        (["--eval-only", "--steps", "2000", "--lr", "0.1"], ("--lr 0.1", "--eval-only")),
        (["--eval-only", "--steps", "2000", "--val-share", "0.5"], ("--val-share 0.5", "--eval-only")),
        (["--eval-only", "--steps", "2000", "--image-size", "64"], ("--image-size 64", "--eval-only")),
        (["--eval-only", "--steps", "2000", "--untrained"], ("--untrained", "--eval-only")),
        (["--head", "linear", "--layer-decay", "0.5"], ("--layer-decay 0.5", "--head")),
        (["--head", "linear", "--checkpointing"], ("--checkpointing", "--head")),
        (["--head", "linear", "--blocks", "0,1,2,3"], ("--blocks 0,1,2,3", "--head")),
        (["--layer-decay", "1.5"], ("--layer-decay 1.5", "0.01")),
        (["--ignore-index", "300"], ("--ignore-index 300", "255")),
        (["--preset", "ade20k"], ("--preset", "ade20k-vit-b16")),
    ],
)
def test_wrong_options_write_nothing(
    arguments: list[str], named: tuple[str, ...], encoder: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    out = tmp_path / "run"
    base = ["--encoder", str(encoder), "--data", str(creatures), "--out", str(out), "--steps", "6", "--workers", "0"]
    refuse(["segment", *tiny.instead(arguments, base)], out, *named)


@pytest.mark.parametrize("preset", presets_of("segment").values())
def test_what_a_preset_holds_is_not_refused(preset: Any, tmp_path: Path) -> None:
    given = {"out": tmp_path, "encoder": "e", "data": "d", "preset": "p"}
    for changed in ({"head": "linear"}, {"eval_only": True}):
        options = SegmentOptions(**given | preset() | changed)
        check_given(options, changed)
        protocol_of(options, 0).check_settings()


def test_wrong_data_writes_nothing(encoder: Path, finished: Path, tmp_path: Path, refuse: tiny.Refuse) -> None:
    out = tmp_path / "run"
    base = ["segment", "--out", str(out), "--workers", "0"]
    (tmp_path / "empty").mkdir()
    refuse([*base, "--encoder", str(encoder), "--data", str(tmp_path / "empty")], out, "folder images")
    for split in ("train", "val"):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (tmp_path / "other" / kind / split).mkdir(parents=True)
            Image.fromarray(np.arange(40, dtype=np.uint8).reshape(5, 8)).save(
                tmp_path / "other" / kind / split / f"a.{suffix}"
            )
    other = ["--encoder", str(finished), "--data", str(tmp_path / "other"), "--eval-only"]
    refuse([*base, *other], out, "classes")
