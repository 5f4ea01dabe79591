"""`semmae teacher`: repeatable, resumable, readable."""

from pathlib import Path

import tiny
import torch

import semmae

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
