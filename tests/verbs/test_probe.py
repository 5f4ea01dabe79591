"""`semmae probe`: both protocols give what their parts give, a stopped one goes on exactly, heads are of use again."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import refused
from torch import Tensor

import semmae
from semmae.cli import run
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.splits import held_out
from semmae.evaluation.accuracy import class_report
from semmae.evaluation.linear import probe_features
from semmae.evaluation.protocols import UNTRAINED, mae_probe, probe as fast_probe
from semmae.formats.folders import save_encoder
from semmae.models.fresh import fresh_like
from semmae.models.head import HeadSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.presets import preset_options, presets_of
from semmae.options.probe import ProbeOptions
from semmae.options.values import check_given
from semmae.verbs.probe import protocol_of

QUICK: dict[str, Any] = {"workers": 0, "precision": "float32", "epochs": 3}
MAE: dict[str, Any] = {**QUICK, "protocol": "mae", "batch_size": 8}


@pytest.fixture(scope="module")
def data(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The creatures as a training split, and some of them as a validation split."""
    folder = tmp_path_factory.mktemp("data")
    for number, path in enumerate(sorted((creatures / "images").glob("*/*.png"))):
        for split in ("train", "val") if number % 3 == 0 else ("train",):
            target = folder / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return folder


def slow_features(encoder: Encoder, images: ImageSet) -> Tensor:
    """Class tokens, one image at a time, of the crop that the fast protocol measures on."""
    whole = WholeDataset(images, 32, fit="centre")
    pixels = (normalise(whole[row]["image"], encoder.spec.mean, encoder.spec.std) for row in range(len(images)))
    with torch.no_grad():
        return torch.cat([encoder(image[None]).cls for image in pixels])


def classes_of(images: ImageSet, names: list[str]) -> Tensor:
    assert images.labels is not None
    return torch.tensor([names.index(label) for label in images.labels])


def test_the_fast_protocol_is_features_then_heads(encoder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--encoder", str(encoder), "--data", str(data), "--out", str(out), "--untrained", "--seed", "3"]
    assert run(["probe", *given, "--workers", "0", "--precision", "float32", "--epochs", "3"]) == 0

    train, val = open_images(data, split="train"), open_images(data, split="val")
    names = sorted(set(train.labels or ()))
    encoder = semmae.load_encoder(encoder)
    for row, measured in ((tiny.results(out), encoder), (tiny.results(out)["untrained"], fresh_like(encoder, 3))):
        spec = HeadSpec(24, tuple(names))
        chosen_on = held_out(train.labels or (), 0.1, seed=3)[1]
        probed = probe_features(
            slow_features(measured, train), classes_of(train, names), spec, chosen_on, epochs=3, seed=3
        )
        with torch.no_grad():
            expected = class_report(probed.head.logits(slow_features(measured, val)), classes_of(val, names))
        del expected["per_class"]
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
        assert row["rate"] == probed.rate
        assert row["sweep"] == [list(pair) for pair in probed.sweep]
    protocol = tiny.results(out)["protocol"]
    assert protocol["method"].startswith("linear probe")
    assert (protocol["split"], protocol["seed"]) == (f"{len(train)} train, {len(val)} val", 3)
    assert sum(int(line["images"]) for line in csv.DictReader((out / "per_class.csv").open())) == len(val)
    assert (out / "confusion.png").is_file() and (out / "untrained" / "confusion.png").is_file()
    assert not (out / ".unfinished").exists()


@pytest.mark.parametrize("options", [QUICK, MAE], ids=["features", "mae"])
def test_a_saved_head_measures_the_same_again(
    options: dict[str, Any], encoder: Path, data: Path, tmp_path: Path
) -> None:
    semmae.probe(encoder=encoder, data=data, out=tmp_path / "out", pooling="mean", **options)
    head, encoder = semmae.load_head(tmp_path / "out"), semmae.load_encoder(encoder)
    assert head.spec.pooling == "mean"
    val = open_images(data, split="val")
    crop_pct = 224 / 256 if options is MAE else 1.0
    assert tiny.results(tmp_path / "out")["protocol"]["crop_pct"] == crop_pct
    whole = WholeDataset(val, 32, fit="centre", crop_pct=crop_pct)
    images = torch.stack([whole[row]["image"] for row in range(len(val))])
    with torch.no_grad():
        logits = head(encoder(normalise(images, encoder.spec.mean, encoder.spec.std)))
    names = [head.spec.classes[number] for number in logits.argmax(1).tolist()]
    right = [name == label for name, label in zip(names, val.labels or (), strict=True)]
    assert tiny.results(tmp_path / "out")["top1"] == pytest.approx(100 * sum(right) / len(right))


def test_mirrored_images_are_learned_from(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their features are those of mirrored pixels, and no image lends its mirror to the choice of its rate."""
    seen = []
    real = fast_probe.probe_features

    def spy(features: Tensor, targets: Tensor, spec: HeadSpec, rows: list[int], **rest: Any) -> Any:
        seen.append((features, targets, rows))
        return real(features, targets, spec, rows, **rest)

    monkeypatch.setattr(fast_probe, "probe_features", spy)
    semmae.probe(encoder=encoder, data=data, out=tmp_path / "out", flip=True, **QUICK)
    (features, targets, rows), train = seen[0], open_images(data, split="train")
    encoder, count = semmae.load_encoder(encoder), len(train)
    assert len(features) == len(targets) == 2 * count
    assert torch.equal(targets[:count], targets[count:])
    assert [row + count for row in rows if row < count] == [row for row in rows if row >= count]
    image = WholeDataset(train, 32, fit="centre")[5]["image"].flip(-1)
    with torch.no_grad():
        expected = encoder(normalise(image[None], encoder.spec.mean, encoder.spec.std)).cls[0]
    torch.testing.assert_close(features[count + 5], expected, rtol=1e-4, atol=1e-5)


def test_maes_protocol_goes_on_exactly(encoder: Path, data: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    given = {"encoder": encoder, "data": data, **MAE}
    with tiny.every_step():
        semmae.probe(out=whole, **given)
        with tiny.interrupted("probe", step=6):
            semmae.probe(out=stopped, **given)
        assert not (stopped / "results.json").exists()
        assert run(["probe", "--out", str(stopped), "--resume"]) == 0
    tiny.assert_same_weights(whole / "head", stopped / "head")
    assert tiny.losses(stopped) == tiny.losses(whole)
    assert len(tiny.losses(whole)) == 3 * (tiny.COUNT // 8)
    assert tiny.results(whole) == tiny.results(stopped)
    assert "MAE" in tiny.results(whole)["protocol"]["method"]
    # Four tensors of the head and a counter; of the encoder nothing.
    state = tiny.saved_state(whole)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"head"}
    assert (whole / "checkpoints" / "last.ckpt").stat().st_size < 50_000


def test_stopped_between_encoder_and_baseline(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    given = {"encoder": encoder, "data": data, "untrained": True, **MAE}
    semmae.probe(out=whole, **given)
    real = mae_probe.MaeProbe.run

    def stopping(protocol: Any, encoder: Encoder, data: Any, out: Path, name: str) -> Any:
        if name == UNTRAINED:
            raise KeyboardInterrupt
        return real(protocol, encoder, data, out, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mae_probe.MaeProbe, "run", stopping)
        semmae.probe(out=stopped, **given)
    semmae.probe(out=stopped, **given)  # the same call again goes on
    assert tiny.results(whole) == tiny.results(stopped)
    tiny.assert_same_weights(whole / "head", stopped / "head")


def test_a_changed_encoder_is_not_gone_on_with(encoder: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(encoder, copy)
    given = {"encoder": copy, "data": data, "out": tmp_path / "out", **MAE}
    with tiny.interrupted("probe", step=6):
        semmae.probe(**given)
    save_encoder(Encoder(EncoderSpec(32, 8, 24, 2, 2)), copy)
    with refused("encoder"):
        semmae.probe(**given)


def test_without_splits_a_share_of_each_class_is_held_out(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    semmae.probe(encoder=encoder, data=creatures / "images", out=tmp_path / "out", val_share=0.25, **QUICK)
    found = tiny.results(tmp_path / "out")
    assert found["images"] == 8
    assert found["protocol"]["split"] == "24 train, 8 held out of each class by seed 0"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--protocol", "mae", "--lr", "0.1"], ("--lr 0.1", "--protocol features")),
        (["--protocol", "mae", "--flip"], ("--flip", "--protocol features")),
        (["--nodes", "2"], ("--nodes 2", "--protocol mae")),
        (["--blr", "0.2"], ("--blr 0.2", "--protocol mae")),
        (["--warmup-share", "0.2"], ("--warmup-share 0.2", "--protocol mae")),
        (["--crop-scale", "0.2"], ("--crop-scale 0.2", "--protocol mae")),
        (["--protocol", "mae", "--choice-share", "0.2"], ("--choice-share 0.2", "--protocol features")),
        (["--lr", "0.1", "--choice-share", "0.2"], ("--choice-share 0.2", "--lr")),
        (["--preset", "mae-small-data", "--flip"], ("--flip", "--protocol features")),
        (["--protocol", "maes"], ("--protocol", "mae")),
        (["--choice-share", "0.9"], ("--choice-share 0.9", "0.5")),
        (["--crop-pct", "0"], ("--crop-pct 0.0", "0.1")),
        (["--batch-size", "7", "--protocol", "mae", "--accumulate", "2"], ("--batch-size 7", "--accumulate 2")),
        (["--protocol", "mae", "--batch-size", "1"], ("--batch-size 1", "32 images")),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_nothing_written(
    arguments: list[str], named: tuple[str, str], encoder: Path, data: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    out = tmp_path / "out"
    base = ["--encoder", str(encoder), "--data", str(data), "--out", str(out), "--workers", "0"]
    refuse(["probe", *base, *arguments], out, *named)


def test_a_rate_cannot_be_chosen_on_single_images(encoder: Path, data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for folder in sorted((data / split).iterdir())[:3]:
            (tmp_path / "data" / split / folder.name).mkdir(parents=True)
            shutil.copy(min(folder.iterdir()), tmp_path / "data" / split / folder.name)
    given = {"encoder": encoder, "data": tmp_path / "data", "out": tmp_path / "out", **QUICK}
    with refused("training images", "--lr"):
        semmae.probe(**given)
    assert not (tmp_path / "out").exists()
    semmae.probe(lr=0.1, **given)
    assert tiny.results(tmp_path / "out")["protocol"]["rates"] == [0.1]


def test_what_is_no_head_is_refused(encoder: Path) -> None:
    with refused(encoder, "semmae probe"):
        semmae.load_head(encoder)


@pytest.mark.parametrize("preset", presets_of("probe"))
def test_a_preset_has_no_option_that_does_nothing(preset: str) -> None:
    given = preset_options("probe", preset)
    options = ProbeOptions(encoder="run", data="photos", out=Path("out"), **given)
    check_given(options, given)
    assert protocol_of(options, Encoder(EncoderSpec(32, 8, 24, 1, 2))).view.crop_pct == 224 / 256


def test_a_rate_at_the_edge_is_named(
    encoder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "semmae")
    given = {"encoder": encoder, "data": data, **QUICK}
    monkeypatch.setattr(fast_probe, "RATES", (1e-9, 2e-9))  # equally useless, so the lower is taken
    semmae.probe(out=tmp_path / "edge", **given)
    assert "1e-09, is the lowest" in caplog.text
    assert "the lowest" in (tmp_path / "edge" / "train.log").read_text()
    caplog.clear()
    semmae.probe(out=tmp_path / "given", **given, lr=1e-9)
    assert "the lowest" not in caplog.text
