"""Images that are no squares, and of more than three channels: the whole way through the verbs, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from refusals import refused
from tiny import Refuse

import semmae
from semmae.models.vit import EncoderSpec
from semmae.options.knn import KnnOptions
from semmae.options.values import given_options
from semmae.run.config import read_config, to_yaml


def test_the_whole_way_on_images_that_are_no_squares(creatures: Path, tmp_path: Path) -> None:
    """Teacher's size, parts, masks and export: one size from a word of the command to the encoder of the export."""
    data, out = str(creatures / "images"), tmp_path / "run"
    teacher = tiny.new_encoder(tmp_path / "teacher", EncoderSpec((24, 40), 8, 24, 2, 2))
    parts = semmae.parts(data=data, teacher=str(teacher), num_parts=2, steps=2, out=tmp_path / "parts", **tiny.TRAIN)
    assert semmae.PartStore.open(parts.path).labels.shape[1:] == (32, 32)  # of the image stretched to a square
    semmae.pretrain(
        data=data, parts=str(parts.path), out=out, model="vit_mini", image_size=(32, 48), patch_size=8, epochs=1,
        **tiny.TRAIN,
    )  # fmt: skip
    measured = semmae.knn(encoder=str(out), data=data, out=tmp_path / "knn", k=3, workers=0)
    assert json.loads((measured.path / "results.json").read_text())["protocol"]["image_size"] == [32, 48]
    exported = semmae.export(encoder=str(out), to="timm", out=tmp_path / "timm")

    ours, again = (semmae.load_encoder(str(place)) for place in (out, exported.path))
    images = ours.transform(np.zeros((60, 90, 3), np.uint8))[None]
    assert images.shape[-2:] == (32, 48) and again.spec.image_size == (32, 48)
    assert torch.equal(ours(images).patches, again(images).patches) and ours(images).patches.shape[1] == 24
    semmae.reconstruct(autoencoder=str(out), data=data, images=2, out=tmp_path / "seen.png", workers=0)


def test_the_command_takes_two_numbers(creatures: Path, encoder: Path, tmp_path: Path, refuse: Refuse) -> None:
    base = ["knn", "--encoder", str(encoder), "--data", str(creatures / "images"), "--out", str(tmp_path / "k")]
    asked = tiny.options_from(KnnOptions, [*base[1:], "--image-size", "64", "32", "--k", "3"])
    assert asked.image_size == (64, 32)
    assert tiny.options_from(KnnOptions, [*base[1:], "--image-size", "48", "48"]).image_size == 48
    (tmp_path / "config.yaml").write_text(to_yaml(asked))
    assert read_config(tmp_path / "config.yaml", KnnOptions)["image_size"] == (64, 32)
    refuse([*base, "--image-size", "64", "30"], tmp_path / "k", "64 30", "24 or 32")
    refuse([*base, "--image-size", "64", "4"], tmp_path / "k", "--image-size 64 4", "8")
    refuse([*base, "--image-size", "64", "32", "16"], tmp_path / "k", "16")
    for wrong in ((64,), (64, 32, 3), [64, 0.5], "64x32"):
        with refused("--image-size", "two, height and width"):
            given_options(KnnOptions, {"image_size": wrong})


@pytest.mark.parametrize("name", ["mae", "hf"])
def test_other_forms_carry_the_size(name: str, tmp_path: Path) -> None:
    folder = tiny.new_encoder(tmp_path / "encoder", EncoderSpec((16, 32), 8, 192, 1, 3))
    exported = semmae.export(encoder=str(folder), to=name, out=tmp_path / name)
    assert semmae.load_encoder(str(exported.path)).spec.image_size == (16, 32)


def test_the_whole_way_on_five_channels_of_16_bits(tmp_path: Path, refuse: Refuse) -> None:
    """Mean and deviation are the images', kept with the encoder and taken from there by whoever reads it."""
    rng, data = np.random.default_rng(0), tmp_path / "bands"
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(data / f"{name}.npy", rng.integers(0, 900 if name < "b" else 4000, (40, 56, 5), np.uint16))
    out = tmp_path / "run"
    semmae.pretrain(
        data=str(data), masking="block", out=out, model="vit_mini", image_size=32, patch_size=8, channels=5, epochs=1,
        **{**tiny.TRAIN, "batch_size": 4},
    )  # fmt: skip
    encoder = semmae.load_encoder(str(out))
    pixels = np.concatenate([np.load(path).reshape(-1, 5) for path in sorted(data.rglob("*.npy"))]) / 65535
    assert np.allclose(encoder.spec.mean, pixels.mean(0), atol=1e-5)
    assert np.allclose(encoder.spec.std, pixels.std(0), atol=1e-3)
    found = semmae.knn(encoder=str(out), data=str(data), out=tmp_path / "knn", k=1, workers=0)
    assert json.loads((found.path / "results.json").read_text())["top1"] == 100  # the one is brighter
    exported = semmae.export(encoder=str(out), to="timm", out=tmp_path / "timm")
    assert semmae.load_encoder(str(exported.path)).spec == encoder.spec

    base = ["--data", str(data), "--out", str(tmp_path / "new")]
    tuned = ["finetune", "--encoder", str(out), *base, "--workers", "0"]
    refuse(tuned, tmp_path / "new", "--augment", "5", "--augment none")
    refuse(["export", "--encoder", str(out), "--to", "hf", *base[2:]], tmp_path / "new", "5 channels", "--to timm")
    rgb = tiny.new_encoder(tmp_path / "rgb", EncoderSpec(32, 8, 24, 2, 2))
    begin = ["pretrain", *base, *tiny.SMALL, "--channels", "5"]
    refuse([*begin, "--teacher", str(rgb)], tmp_path / "new", "--channels 5", "3 channels", "--teacher own")
    refuse(["pretrain", *base, *tiny.SMALL, "--masking", "random"], tmp_path / "new", "--channels 5")


@pytest.mark.parametrize("verb", ["teacher", "pretrain", "compare"])
@pytest.mark.parametrize("channels", [1, 12])
def test_imagenets_colours_are_of_three_channels(
    verb: str, channels: int, creatures: Path, tmp_path: Path, refuse: Refuse
) -> None:
    given = ["--channels", str(channels), "--statistics", "imagenet"]
    base = ["--data", str(creatures / "images"), "--out", str(tmp_path / "new"), *tiny.SMALL]
    refuse([verb, *base, *given], tmp_path / "new", "--statistics imagenet", f"--channels 3, not {channels}", "data")


@pytest.mark.parametrize("verb", ["knn", "probe", "finetune", "segment", "evaluate", "embed", "parts"])
def test_an_encoder_of_other_channels_says_so_itself(
    verb: str, creatures: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """These verbs have no --channels: images are to fit the encoder."""
    colours = (0.5,) * 5
    encoder = tiny.new_encoder(tmp_path / "five", EncoderSpec(32, 8, 24, 4, 2, mean=colours, std=colours))
    data, out = creatures if verb == "segment" else creatures / "images", tmp_path / "out.parquet"
    given = ["--teacher" if verb == "parts" else "--encoder", str(encoder), "--data", str(data), "--out", str(out)]
    given += ["--augment", "none"] if verb == "finetune" else []
    line = refuse([verb, *given, "--workers", "0"], out, "3 channels, not 5", f"{encoder} sees 5 channels")
    assert "--channels" not in line and "repair" not in line
