"""Verbs that begin with an encoder take a loaded one from Python, do with it what they do by its path, and keep it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from refusals import refused

import semmae
from semmae.formats.folders import digest
from semmae.models.vit import Encoder


@pytest.fixture
def encoder(whole_run: Path) -> Encoder:
    return semmae.load_encoder(whole_run / "teacher")


def test_parts_of_an_object_are_those_of_its_path(
    encoder: Encoder, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    before, data = digest(encoder), creatures / "images"
    given = {"data": data, **tiny.TRAIN}
    semmae.parts(out=tmp_path / "run", teacher=encoder, **given)
    tiny.assert_same_weights(tmp_path / "run/learner", whole_run / "parts/learner")
    assert (tmp_path / "run/parts.npy").read_bytes() == (whole_run / "parts/parts.npy").read_bytes()
    assert digest(encoder) == before and all(each.requires_grad for each in encoder.vit.blocks.parameters())
    with refused("--teacher: ", "teacher="):
        semmae.parts(out=tmp_path / "run", resume=True)
    with refused("--learner", "--teacher"):  # the learner cannot say where it lies
        semmae.parts(out=tmp_path / "other", learner=tmp_path / "run", data=data, workers=0)
    assert not (tmp_path / "other").exists()


def test_features_of_an_object_are_those_of_its_path(
    encoder: Encoder, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    given = {"data": creatures / "images", "limit": 8, "workers": 0, "tokens": "cls,mean"}
    for name, each in (("object", encoder), ("path", whole_run / "teacher")):
        semmae.embed(encoder=each, out=tmp_path / f"{name}.npz", **given)
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("object", "path"))
    assert np.array_equal(ours["cls"], theirs["cls"]) and np.array_equal(ours["mean"], theirs["mean"])
    assert json.loads(str(ours["semmae"]))["encoder"] == "Encoder"


def test_trainings_begin_with_objects(encoder: Encoder, creatures: Path, tmp_path: Path) -> None:
    """At a rate of 0 nothing moves, but by the rounding of the average; and parts are learned from the object."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    given = {"data": creatures / "images", "epochs": 1, "limit": 8, "blr": 0.0, **tiny.SIZE, **tiny.TRAIN}
    semmae.teacher(out=tmp_path / "teacher", init=encoder, knn_every=0, **given)
    semmae.pretrain(out=tmp_path / "mae", init=encoder, teacher=encoder, **given)
    assert not (tmp_path / "mae/teacher").exists()
    for run in ("teacher", "mae"):
        found = semmae.load_encoder(tmp_path / run).state_dict()
        assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in before.items())
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())
