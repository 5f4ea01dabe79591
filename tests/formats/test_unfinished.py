"""A run that was stopped: the encoder that it would leave behind is read out of its checkpoint."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import tiny
import torch
from refusals import refused

import semmae
from semmae.cli import run
from semmae.formats.folders import save_encoder
from semmae.formats.open import load_encoder
from semmae.formats.unfinished import CHECKPOINT
from semmae.models.vit import Encoder, EncoderSpec
from semmae.run.config import UNFINISHED

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def stopped(verb: str, creatures: Path, out: Path, *, after: int, **options: object) -> Path:
    """A run of `EPOCHS` epochs, stopped by Ctrl-C at the first step after so many."""
    given = {"data": creatures / "images", "out": out, "epochs": tiny.EPOCHS, **tiny.SIZE, **tiny.TRAIN, **options}
    if verb == "pretrain":
        given["masking"] = "random"
    with tiny.interrupted(verb, step=after * tiny.COUNT // tiny.BATCH + 1):
        getattr(semmae, verb)(**given)
    assert not (out / "encoder").exists()
    return out


@pytest.mark.parametrize(("verb", "prefix"), [("pretrain", "mae.encoder.vit."), ("teacher", "teacher.vit.")])
def test_its_encoder_is_that_of_the_last_checkpoint(
    verb: str, prefix: str, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = stopped(verb, creatures, tmp_path / "run", after=2)
    caplog.clear()

    with caplog.at_level(logging.INFO, "semmae"):
        encoder = load_encoder(out)

    wanted = tiny.saved_state(out)["state_dict"]
    assert not encoder.training and encoder.spec == EncoderSpec.named("vit_mini", 32, 8)
    for name, tensor in encoder.vit.state_dict().items():
        assert torch.equal(tensor, wanted[prefix + name]), name
    assert caplog.messages == [f"{out}: not finished: step 9, in epoch 3 of 3"]
    assert run(["knn", "--encoder", str(out), "--data", str(creatures / "images"), "--out", str(tmp_path / "knn")]) == 0
    assert json.loads((tmp_path / "knn/results.json").read_text())["protocol"]["encoder_digest"]


def test_what_weights_do_not_show_is_that_of_what_it_began_with(creatures: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(EncoderSpec.named("vit_mini", 48, 8), mean=MEAN, std=STD)
    save_encoder(Encoder(spec), tmp_path / "begun")
    out = stopped("pretrain", creatures, tmp_path / "run", after=1, init=str(tmp_path / "begun"))

    encoder = load_encoder(out)

    assert encoder.spec == dataclasses.replace(spec, image_size=32)
    trained = tiny.saved_state(out)["state_dict"]["mae.encoder.vit.blocks.3.mlp.fc1.weight"]
    assert torch.equal(encoder.vit.state_dict()["blocks.3.mlp.fc1.weight"], trained)


def test_before_its_first_checkpoint_it_says_how_to_go_on(creatures: Path, tmp_path: Path) -> None:
    out = stopped("teacher", creatures, tmp_path / "my run", after=0)
    (out / CHECKPOINT).unlink()

    with refused("not finished", f"semmae teacher --out '{out}' --resume"):
        load_encoder(out)


@pytest.mark.parametrize("verb", ["finetune", "segment"])
def test_of_others_only_how_to_go_on_is_said(verb: str, tmp_path: Path) -> None:
    (tmp_path / UNFINISHED).touch()
    (tmp_path / "config.yaml").write_text(f"verb: {verb}\n")
    (tmp_path / CHECKPOINT).parent.mkdir()
    (tmp_path / CHECKPOINT).touch()

    with refused(f"semmae {verb} --out {tmp_path} --resume"):
        load_encoder(tmp_path)


def test_a_checkpoint_that_was_changed_is_named(creatures: Path, tmp_path: Path) -> None:
    out = stopped("pretrain", creatures, tmp_path / "run", after=1)
    state = tiny.saved_state(out)

    del state["state_dict"]["mae.encoder.vit.norm.bias"]
    torch.save(state, out / CHECKPOINT)
    with refused("config.yaml", "missing: norm.bias"):
        load_encoder(out)
    (out / CHECKPOINT).write_bytes(b"no checkpoint")
    with refused("last.ckpt"):
        load_encoder(out)
