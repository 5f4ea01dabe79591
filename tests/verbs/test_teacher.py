"""`semmae teacher`: repeatable, resumable, readable."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import semmae
from semmae.options.fields import shared
from semmae.options.teacher import TeacherOptions, TeacherRecipe
from semmae.patches import sincos_positions
from semmae.train.teacher import TeacherTask
from semmae.verbs.teacher import load_init, local_size, new_encoder

OPTIONS = {"epochs": tiny.EPOCHS, **tiny.SIZE, **tiny.TRAIN}


def test_interrupted_and_resumed_is_as_never_interrupted(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "run", creatures / "images"
    with tiny.every_step():
        with tiny.interrupted("teacher", step=10):  # in the middle of the third epoch
            semmae.teacher(data=data, out=out, **OPTIONS)
        assert not (out / "encoder").exists()
        assert len(tiny.losses(out)) == 10
        semmae.teacher(out=out, resume=True)
    assert tiny.losses(out) == tiny.losses(whole_run / "teacher")
    assert len(tiny.losses(out)) == tiny.STEPS
    tiny.assert_same_weights(out / "encoder", whole_run / "teacher" / "encoder")


def test_another_seed_gives_other_losses(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    with tiny.every_step(), tiny.interrupted("teacher", step=1):
        semmae.teacher(data=creatures / "images", out=tmp_path / "run", seed=1, **OPTIONS)
    assert tiny.losses(tmp_path / "run")[0] != tiny.losses(whole_run / "teacher")[0]


def test_the_average_of_the_student_is_kept(whole_run: Path) -> None:
    state = tiny.saved_state(whole_run / "teacher")
    encoder = semmae.load_encoder(whole_run / "teacher")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state["state_dict"][f"teacher.{name}"]), name
    assert not torch.equal(state["state_dict"]["student.vit.cls_token"], encoder.vit.cls_token)


def options(**changes: Any) -> TeacherOptions:
    return TeacherOptions(data="photos", out=Path("out"), **{**OPTIONS, **changes})


def test_init_begins_with_exactly_these_weights(whole_run: Path) -> None:
    encoder = load_init(options(init=str(whole_run / "encoder")))
    assert encoder is not None
    task = TeacherTask(encoder, shared(TeacherRecipe, options()), lr=1e-3)
    wanted = semmae.load_encoder(whole_run).state_dict()
    for network in (task.student, task.teacher):
        found = network.state_dict()
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_init_at_another_size_sees_as_it_would_have(whole_run: Path) -> None:
    """Positions are resampled once, to what the encoder would have interpolated at every step."""
    encoder, images = load_init(options(init=str(whole_run), image_size=48)), torch.randn(2, 3, 48, 48)
    assert encoder is not None
    assert encoder.spec.image_size == 48 and encoder.vit.pos_embed.shape[1] == 1 + 36
    with torch.no_grad():
        found, expected = encoder(images), semmae.load_encoder(whole_run)(images)
    assert torch.allclose(found.patches, expected.patches, atol=1e-5)


def test_a_run_begun_with_init_goes_on_from_there(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    init = whole_run / "encoder"
    semmae.teacher(data=creatures / "images", out=tmp_path / "run", init=init, **{**OPTIONS, "epochs": 1}, blr=0.0)
    # A rate of 0: nothing moves but by the rounding of the average.
    ours, theirs = (semmae.load_encoder(path).state_dict() for path in (tmp_path / "run", init))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_local_crops_are_three_sevenths_in_whole_patches() -> None:
    sizes = [local_size(options(image_size=size, patch_size=patch)) for size, patch in ((224, 16), (224, 8), (32, 8))]
    assert sizes == [96, 96, 16]
    assert local_size(options(local_size=24)) == 24


def test_every_kind_of_run_is_resumed_exactly(creatures: Path, tmp_path: Path) -> None:
    kind = {
        "local_crops": 2, "centering": "sinkhorn", "masking": "random", "shared_head": False, "teacher_temp": 0.07,
        "epochs": 2, "limit": 16, "knn_every": 1, "learned_positions": True,
    }  # fmt: skip
    given = {**OPTIONS, "data": creatures / "images", **kind}
    with tiny.every_step():
        semmae.teacher(out=tmp_path / "whole", **given)
        with tiny.interrupted("teacher", step=3):
            semmae.teacher(out=tmp_path / "parted", **given)
        semmae.teacher(out=tmp_path / "parted", resume=True)
    assert tiny.losses(tmp_path / "parted") == tiny.losses(tmp_path / "whole")
    tiny.assert_same_weights(tmp_path / "parted" / "encoder", tmp_path / "whole" / "encoder")
    measured = [[line.get("knn_top1") for line in tiny.metrics(tmp_path / run)] for run in ("parted", "whole")]
    assert measured[0] == measured[1]
    assert [value is not None for value in measured[0]] == [False, True, False, True]
    positions = semmae.load_encoder(tmp_path / "whole").vit.pos_embed
    assert positions is not None and not torch.allclose(positions, sincos_positions(4, 96), atol=0.1)


def test_a_new_encoder_begins_as_dinos() -> None:
    """Not as the autoencoder's, whose Xavier weights of 192 channels reach 0.18 and more."""
    torch.manual_seed(0)
    weight = new_encoder(options()).vit.blocks[0].attn.proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_knn_is_that_of_the_verb(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    semmae.knn(encoder=whole_run / "teacher", data=creatures / "images", out=tmp_path / "knn", workers=0)
    found = json.loads((tmp_path / "knn" / "results.json").read_text())
    lines = [line for line in tiny.metrics(whole_run / "teacher") if "knn_top1" in line]
    assert [line["step"] for line in lines] == [tiny.STEPS]
    assert lines[0]["knn_top1"] == pytest.approx(found["top1"])


def test_the_mask_token_is_not_written(whole_run: Path) -> None:
    assert "mask_token" in tiny.saved_state(whole_run / "teacher")["state_dict"]
    names = semmae.load_encoder(whole_run / "teacher").state_dict()
    assert not any("mask_token" in name or "head" in name for name in names)
