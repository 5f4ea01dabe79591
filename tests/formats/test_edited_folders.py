"""Folders whose config.json was edited or damaged: one line, at once, and nothing is built by what it claims."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from semmae.errors import UserError
from semmae.formats import folders as checkpoint, huggingface
from semmae.formats.open import load_classifier, load_encoder, load_head, load_mae, load_segmenter
from semmae.models.classifier import Classifier
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec

TINY = EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3)
OWN = "semmae"


def save_all(folder: Path) -> None:
    checkpoint.save_encoder(Encoder(TINY), folder / "encoder")
    checkpoint.save_autoencoder(MaskedAutoencoder(Encoder(TINY), DecoderSpec(32, 1, 4)), folder / "autoencoder")
    checkpoint.save_learner(PartLearner(PartsSpec(48, 48, patch_size=8, num_parts=3)), folder / "learner")
    checkpoint.save_learner(PublishedPartLearner(PublishedPartsSpec(48, 8, num_parts=3)), folder / "published learner")
    checkpoint.save_classifier(Classifier(Encoder(TINY), 2), folder / "classifier", ["a", "b"])
    checkpoint.save_head(LinearHead(HeadSpec(48, ("a", "b"))), folder / "head")
    segmenter = Segmenter(Encoder(TINY), SegmenterSpec(("sky", "tree"), "linear", (), 8))
    checkpoint.save_segmenter(segmenter, folder / "segmenter")


READERS: dict[str, Callable[[Path], Any]] = {
    "encoder": load_encoder,
    "autoencoder": load_mae,
    "learner": checkpoint.read_learner,
    "published learner": checkpoint.read_learner,
    "classifier": load_classifier,
    "head": load_head,
    "segmenter": load_segmenter,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_all(folder)
    return folder


def edited(source: Path, target: Path, places: tuple[str, ...], value: Any) -> Path:
    """A copy of the folder with one value of its configuration changed."""
    target.mkdir()
    os.link(source / "model.safetensors", target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    inner = config
    for place in places[:-1]:
        inner = inner[place]
    inner[places[-1]] = value
    (target / "config.json").write_text(json.dumps(config))
    return target


def numbers(content: Any, places: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where values stand that are ours: all but what is free, and what timm alone reads."""
    if not isinstance(content, dict):
        return [places]
    free = ("extra", "pretrained_cfg", "num_features", "kind") + (() if places else ("num_classes", "global_pool"))
    inner = {key: value for key, value in content.items() if key not in free}
    return [found for key, value in inner.items() for found in numbers(value, (*places, key))]


WRONG = [10**9, -1, "12", None, [[1]], True]


@pytest.mark.parametrize("kind", READERS)
def test_every_value_of_a_configuration_is_checked(kind: str, saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / kind / "config.json").read_text())
    places = numbers(config)
    assert len(places) >= 3
    accepted = []
    for number, place in enumerate(places):
        there = functools.reduce(lambda inner, name: inner[name], place, config)
        for other, value in enumerate(value for value in WRONG if value != there):
            folder = edited(saved / kind, tmp_path / f"{number}-{other}", place, value)
            try:
                READERS[kind](folder)
                accepted.append((place, value))
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 500
    # Of one type with what stood there, and all that such a value can be.
    assert {place[-1] for place, _ in accepted} <= {
        "mlp_ratio",
        "norm_pix_loss",
        "background",
        "auxiliary",
        "mean",
        "refine",
    }


@pytest.mark.parametrize("kind", ["learner", "published learner"])
def test_a_learner_that_is_said_to_be_of_the_other_kind_is_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    other = {"learner": "pixels", "published learner": "tokens"}[kind]
    for number, value in enumerate((other, "features", "")):
        with refused(tmp_path, *(["rebuilds", "tokens, pixels"] if value != other else [])):
            checkpoint.read_learner(edited(saved / kind, tmp_path / str(number), (OWN, "rebuilds"), value))
    folder = edited(saved / kind, tmp_path / "none", (OWN, "spec"), None)
    config = json.loads((saved / kind / "config.json").read_text())
    del config[OWN]["rebuilds"]  # as versions before wrote it
    (folder / "config.json").write_text(json.dumps(config))
    with refused(folder, "rebuilds"):
        checkpoint.read_learner(folder)


DAMAGED: dict[str, bytes] = {
    "half": b'{"semmae": {"kind":',
    "not UTF-8": b'{"semmae": "\xff\xfe"}',
    "nested": b'{"a":' + b"[" * 100_000,
    "a list": b"[1]",
    "no section": b'{"semmae": 5}',
    "a kind of another type": b'{"semmae": {"kind": ["encoder"]}}',
    "a kind alone": b'{"semmae": {"kind": "KIND"}}',
    "empty": b"",
    "NaN": b'{"semmae": {"kind": NaN}}',
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", READERS)
def test_damaged_configurations_are_refused_in_one_line(kind: str, damage: str, saved: Path, tmp_path: Path) -> None:
    folder = edited(saved / kind, tmp_path / "folder", (OWN, "kind"), kind.split()[-1])
    (folder / "config.json").write_bytes(DAMAGED[damage].replace(b"KIND", kind.split()[-1].encode()))

    with refused(folder):
        READERS[kind](folder)


@pytest.mark.parametrize("kind", READERS)
def test_weights_that_are_no_numbers_are_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    folder = edited(saved / kind, tmp_path / "folder", (OWN, "kind"), kind.split()[-1])
    state = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim)
    state[name] = state[name].clone().fill_(torch.nan)
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors")

    with refused(name):
        READERS[kind](folder)


def of_timm(folder: Path, change: dict[str, Any], **options: Any) -> Path:
    """A folder as timm saves it for its hub."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3} | options
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32], "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config | {"model_args": arguments | change}))
    return folder


def test_a_folder_of_timm_is_read(tmp_path: Path) -> None:
    assert load_encoder(of_timm(tmp_path / "folder", {})).spec.depth == 2


@pytest.mark.parametrize(
    "change",
    [{"depth": 10**9}, {"embed_dim": 3 * 10**5}, {"img_size": 10**6}, {"depth": "2"}, {"img_size": [10**7, 8]},
     {"depth": -1}, {"no_such": 1}],
)  # fmt: skip
def test_a_folder_of_timm_whose_configuration_was_edited_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = of_timm(tmp_path / "folder", change)

    with refused():
        load_encoder(folder)


def test_a_folder_of_timm_for_images_that_are_no_squares(tmp_path: Path) -> None:
    """64 × 16 pixels in patches of 8 are 16 positions, as many as 4 × 4."""
    assert load_encoder(of_timm(tmp_path / "folder", {}, img_size=(64, 16))).spec.image_size == (64, 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_timm_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder = of_timm(tmp_path / "folder", {})
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["norm.bias"][3] = value
    save_file(state, folder / "model.safetensors")

    with refused("norm.bias"):
        load_encoder(folder)


def test_weights_of_timm_that_are_a_fifo_are_refused(tmp_path: Path) -> None:
    folder = of_timm(tmp_path / "folder", {})
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")

    with pytest.raises(UserError, match="model.safetensors"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "change",
    [{"image_size": [64, 24]}, {"layer_norm_eps": "small"}, {"layer_norm_eps": -1}, {"num_attention_heads": 0},
     {"num_attention_heads": "3"}, {"hidden_act": ["gelu"] * 99}],
)  # fmt: skip
def test_a_folder_of_transformers_whose_configuration_was_edited_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    encoder = Encoder(TINY)
    state = encoder.vit.state_dict()
    config = huggingface.encoder_config(TINY, state, 1e-6)
    save_file(huggingface.from_encoder(state), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | change))

    (name,) = change
    with refused("activation" if name == "hidden_act" else name):
        load_encoder(tmp_path)
