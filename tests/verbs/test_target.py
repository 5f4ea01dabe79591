"""`semmae pretrain --target tokens`: what a run leaves, how it is resumed, and what its decoder is not good for."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from refusals import refused
from safetensors.torch import load_file

import semmae
from semmae.data.loaders import IMAGE_TOKEN, TOKENS
from semmae.errors import DiskError
from semmae.formats import folders as checkpoint
from semmae.formats.open import load_encoder, load_mae
from semmae.models.vit import EncoderSpec
from semmae.options.pretrain import PretrainOptions
from semmae.train import teacher_tokens
from semmae.verbs import pretrain
from semmae.verbs.pretrain import load_init

OPTIONS: dict[str, Any] = {"target": "tokens", "epochs": tiny.EPOCHS, "blr": 0.02, **tiny.SIZE, **tiny.TRAIN}


@pytest.fixture(scope="module")
def run(creatures: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random masks, and an encoder of another width than the student's."""
    out = tmp_path_factory.mktemp("target") / "run"
    with tiny.every_step():
        semmae.pretrain(data=creatures / "images", out=out, masking="random", teacher=encoder, **OPTIONS)
    return out


def test_the_run_leaves_masks_and_no_pictures_of_predictions(run: Path) -> None:
    assert (run / "pictures/masks.png").is_file() and not (run / "pictures/reconstructions.png").exists()
    assert not (run / "teacher_tokens").exists()
    mae = load_mae(run)
    assert mae.decoder.token_width == 24 and mae.decoder_pred.out_features == 24
    assert "tokens" in (run / "report.html").read_text()


def test_interrupted_and_resumed_is_as_never_interrupted(
    run: Path, creatures: Path, encoder: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "data": creatures / "images", "masking": "random", "teacher": encoder}
    with tiny.every_step():
        with tiny.interrupted("pretrain", step=6):
            semmae.pretrain(out=tmp_path / "twice", **options)
        assert (tmp_path / "twice/teacher_tokens/tokens.safetensors").is_file()
        with refused("--target pixels", "tokens"):
            semmae.pretrain(out=tmp_path / "twice", target="pixels", resume=True)
        semmae.pretrain(out=tmp_path / "twice", resume=True)
    assert tiny.losses(tmp_path / "twice") == tiny.losses(run)
    tiny.assert_same_weights(tmp_path / "twice/autoencoder", run / "autoencoder")


def test_the_teacher_looks_once_at_each_image(
    creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the parts and for what is predicted, in a run that is stopped in between, too; again where that was lost."""
    one = {**OPTIONS, "epochs": 1, "data": creatures / "images", "teacher": encoder}
    with tiny.every_step():
        with monkeypatch.context() as patch:
            patch.setattr(teacher_tokens, "tokens_of", lambda *_: pytest.fail("looks again"))
            semmae.pretrain(out=tmp_path / "once", **one)
            with tiny.interrupted("parts", step=3):
                semmae.pretrain(out=tmp_path / "twice", **one)
            with tiny.interrupted("pretrain", step=2):
                semmae.pretrain(out=tmp_path / "twice", resume=True)
        assert tiny.losses(tmp_path / "twice") == tiny.losses(tmp_path / "once")[:2]
        shutil.rmtree(tmp_path / "twice/teacher_tokens")
        semmae.pretrain(out=tmp_path / "twice", resume=True)
    assert tiny.losses(tmp_path / "twice") == pytest.approx(tiny.losses(tmp_path / "once"), rel=1e-3)


@pytest.mark.parametrize("devices", [1, 2])
def test_images_that_are_labelled_alone_are_not_looked_at_again(
    devices: int, creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where parts are learned from some of them, the others are looked at for labels and for what is predicted."""
    real = pretrain.parts_stage
    monkeypatch.setattr(
        pretrain, "parts_stage", lambda *given: dataclasses.replace(real(*given), sample=9, devices=devices)
    )
    monkeypatch.setattr(teacher_tokens, "tokens_of", lambda *_: pytest.fail("looks again"))
    given = {**OPTIONS, "epochs": 1, "data": creatures / "images", "teacher": encoder}
    with tiny.interrupted("pretrain", step=2):
        semmae.pretrain(out=tmp_path / "run", **given)
    found = load_file(tmp_path / "run/teacher_tokens/tokens.safetensors")
    assert found["done"].all()
    monkeypatch.undo()
    with tiny.interrupted("pretrain", step=2):
        semmae.pretrain(out=tmp_path / "random", masking="random", **given)
    alone = load_file(tmp_path / "random/teacher_tokens/tokens.safetensors")
    for name in (TOKENS, IMAGE_TOKEN):
        assert torch.allclose(found[name].float(), alone[name].float(), atol=5e-3)


def test_a_look_of_another_size_is_one_more(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is trained here shows its parts in the autoencoder's images, and its tokens in its own."""
    shown: list[int] = []
    real = teacher_tokens.tokens_of
    monkeypatch.setattr(teacher_tokens, "tokens_of", lambda *given: shown.append(given[2]) or real(*given))
    one = {**OPTIONS, "epochs": 1, "teacher_epochs": 1, "teacher": "own", "teacher_image_size": 24}
    semmae.pretrain(data=creatures / "images", out=tmp_path / "run", **one)
    assert shown == [24, 24]  # 32 images, 16 at once


def test_tokens_are_kept_where_other_images_are_refused(creatures: Path, encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(creatures / "images", tmp_path / "images")
    options = {**OPTIONS, "data": tmp_path / "images", "masking": "random", "teacher": encoder}
    with tiny.every_step(), tiny.interrupted("pretrain", step=6):
        semmae.pretrain(out=tmp_path / "run", **options)
    tokens = (tmp_path / "run/teacher_tokens/tokens.safetensors").read_bytes()
    min((tmp_path / "images").rglob("*.png")).unlink()
    with refused("manifest", "restore"):
        semmae.pretrain(out=tmp_path / "run", resume=True)
    assert (tmp_path / "run/teacher_tokens/tokens.safetensors").read_bytes() == tokens


@pytest.mark.parametrize(
    ("masking", "stage"), [("random", "pretrain"), ("semantic", "pretrain"), ("semantic", "parts")]
)
def test_tokens_are_kept_where_another_teacher_is_refused(
    masking: str, stage: str, creatures: Path, encoder: Path, tmp_path: Path
) -> None:
    """Under the same name, as wide as the first and wider."""
    shutil.copytree(encoder, tmp_path / "teacher")
    given = {**OPTIONS, "data": creatures / "images", "masking": masking, "teacher": tmp_path / "teacher"}
    with tiny.interrupted(stage, step=2):
        semmae.pretrain(out=tmp_path / "run", **given)
    kept = [file for file in (tmp_path / "run").rglob("*.safetensors") if file.parent.name.endswith("tokens")]
    before = [file.read_bytes() for file in kept]
    for width in (24, 48):
        shutil.rmtree(tmp_path / "teacher")
        tiny.new_encoder(tmp_path / "teacher", EncoderSpec(32, 8, width, 2, 2), seed=1)
        for again in (given, {"resume": True}):
            with refused(tmp_path / "run", "begun with teacher ", ", now ", "restore"):
                semmae.pretrain(out=tmp_path / "run", **again)
    assert before and [file.read_bytes() for file in kept] == before
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(encoder, tmp_path / "teacher")
    semmae.pretrain(out=tmp_path / "run", resume=True)


def test_a_teacher_that_sees_every_crop_stores_nothing(
    run: Path, creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: stopped and resumed the run ends the same, and the teacher is in no checkpoint."""
    monkeypatch.setattr("semmae.verbs.pretrain.teacher_sees_crops", lambda: True)
    options = {**OPTIONS, "data": creatures / "images", "masking": "random", "teacher": encoder}
    with tiny.every_step():
        semmae.pretrain(out=tmp_path / "once", **options)
        with tiny.interrupted("pretrain", step=6):
            semmae.pretrain(out=tmp_path / "twice", **options)
        assert not (tmp_path / "twice/teacher_tokens").exists()
        kept = torch.load(tmp_path / "twice/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert {name for name in kept if not name.startswith("mae.")} == {"token_mean", "token_matrix"}
        semmae.pretrain(out=tmp_path / "twice", resume=True)
    assert tiny.losses(tmp_path / "twice") == tiny.losses(tmp_path / "once")
    tiny.assert_same_weights(tmp_path / "twice/autoencoder", tmp_path / "once/autoencoder")
    assert tiny.losses(tmp_path / "once") != tiny.losses(run)  # of crops it says something else than of whole images


@pytest.mark.parametrize("given", [{}, {"token_subset": 8}])
def test_the_teacher_is_that_of_the_parts(whole_run: Path, creatures: Path, tmp_path: Path, given: Any) -> None:
    """Semantic masks; the encoder is the one that the learner recorded, or what stands in its place."""
    one = {**OPTIONS, "epochs": 1, **given}
    for name, teacher in (("recorded", {}), ("given", {"teacher": whole_run / "teacher"})):
        with tiny.every_step():
            semmae.pretrain(data=creatures / "images", out=tmp_path / name, parts=whole_run / "parts", **teacher, **one)
    assert tiny.losses(tmp_path / "recorded") == tiny.losses(tmp_path / "given")
    assert load_mae(tmp_path / "given").decoder.token_width == 96


def test_without_a_teacher_one_is_trained_first(creatures: Path, tmp_path: Path) -> None:
    one = {**OPTIONS, "epochs": 1, "teacher_epochs": 1, "teacher": "own"}
    semmae.pretrain(data=creatures / "images", out=tmp_path / "run", masking="random", **one)
    assert (tmp_path / "run/teacher/encoder/model.safetensors").is_file()
    assert not (tmp_path / "run/parts").exists()
    assert load_mae(tmp_path / "run").decoder.token_width == 96


def test_a_run_begins_with_its_decoder_where_that_predicts_the_same(run: Path, encoder: Path) -> None:
    teacher = load_encoder(encoder)
    options = PretrainOptions(data="photos", out=Path("out"), init=str(run), masking="random", **OPTIONS)
    taken, wanted = load_init(options, teacher), load_mae(run)
    assert taken is not None and torch.equal(taken.decoder_pred.weight, wanted.decoder_pred.weight)
    pixels = PretrainOptions(
        data="photos", out=Path("out"), init=str(run), masking="random", **{**OPTIONS, "target": "pixels"}
    )
    fresh = load_init(pixels)
    assert fresh is not None and fresh.decoder_pred.out_features == 8 * 8 * 3
    assert torch.equal(fresh.encoder.vit.blocks[0].attn.qkv.weight, wanted.encoder.vit.blocks[0].attn.qkv.weight)


def test_what_a_decoder_of_tokens_is_not_good_for_is_refused(run: Path, creatures: Path, tmp_path: Path) -> None:
    with refused(run, "tokens", "pixels"):
        semmae.reconstruct(autoencoder=run, data=creatures / "images", out=tmp_path / "a.png")
    for form, asked in (("mae", "auto"), ("mae", "with"), ("hf", "with")):
        with refused("tokens", "--decoder without"):
            semmae.export(encoder=run, to=form, out=tmp_path / "export", decoder=asked)
    for form in ("mae", "hf", "timm"):
        semmae.export(encoder=run, to=form, out=tmp_path / form, decoder="without")
        found = load_encoder(tmp_path / form).vit
        assert checkpoint.digest(found) == checkpoint.digest(load_encoder(run).vit)


def test_options_that_contradict_each_other_are_refused(
    whole_run: Path, creatures: Path, encoder: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    base = ["pretrain", "--data", str(creatures / "images"), "--out", str(tmp_path / "out"), *tiny.SMALL]
    tokens, random = ["--target", "tokens"], ["--masking", "random"]
    parts, teacher = ["--parts", str(whole_run / "parts")], ["--teacher", str(encoder)]
    refuse([*base, "--target", "token"], tmp_path / "out", "--target 'token'", "did you mean")
    refuse([*base, *parts, *teacher], tmp_path / "out", "--teacher", encoder, "learns parts", "predicts tokens")
    refuse([*base, *random, *teacher], tmp_path / "out", "--teacher", encoder, "learns parts", "predicts tokens")
    refuse([*base, *tokens, *random, *parts], tmp_path / "out", "--masking random", "--parts")
    refuse([*base, *tokens, "--no-norm-pix-loss"], tmp_path / "out", "--no-norm-pix-loss", "--target pixels")
    size = ["--teacher-image-size", "36"]
    refuse([*base, *tokens, *random, *teacher, *size], tmp_path / "out", "--teacher-image-size 36", "32 or 40")


def test_parts_that_do_not_say_their_encoder_ask_for_it(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    for name in ("parts.json", "parts.npy", "attention.npy"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / name).write_bytes((whole_run / "parts" / name).read_bytes())
    with refused("--target tokens", tmp_path / "parts", "--teacher"):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "out", parts=tmp_path / "parts", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_parts_whose_teacher_has_moved_ask_where_it_is(creatures: Path, encoder: Path, tmp_path: Path) -> None:
    """The user has named the parts, not the place that their run recorded."""
    teacher, parts = tmp_path / "teacher", tmp_path / "parts"
    given: dict[str, Any] = {"data": creatures / "images", "limit": 8}
    shutil.copytree(encoder, teacher)
    semmae.parts(teacher=teacher, out=parts, steps=1, **given, **tiny.TRAIN)
    teacher.rename(tmp_path / "moved")
    with refused(f"--parts {parts}: its teacher {teacher} is gone", "restore", "--teacher"):
        semmae.pretrain(out=tmp_path / "out", parts=parts, **OPTIONS, **given)
    with refused(f"--learner {parts}: its teacher {teacher} is gone", "restore", "--teacher"):
        semmae.parts(out=tmp_path / "out", learner=parts, workers=0, **given)
    (teacher / "encoder").mkdir(parents=True)
    with refused(f"--parts {parts}: its teacher: {teacher}: holds no encoder"):
        semmae.pretrain(out=tmp_path / "out", parts=parts, **OPTIONS, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["parts", "random", "semantic"])
def test_tokens_that_cannot_be_stored_are_refused_before_a_run_is_begun(
    verb: str, creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large for half precision, or for the disk."""
    loud = load_encoder(encoder)
    with torch.no_grad():
        loud.vit.norm.weight.mul_(1e6)
    checkpoint.save_encoder(loud, tmp_path / "loud")
    given: dict[str, Any] = {"data": creatures / "images", "out": tmp_path / "out"}
    call: Any = semmae.parts if verb == "parts" else semmae.pretrain
    own = tiny.TRAIN if verb == "parts" else {**OPTIONS, "masking": verb}
    with refused(f"--teacher {tmp_path / 'loud'}", "half precision", "another"):
        call(teacher=tmp_path / "loud", **given, **own)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with refused(tmp_path / "out", "0 B are free", "--sample" if verb == "parts" else "--limit", error=DiskError):
        call(teacher=encoder, **given, **own)
    assert not (tmp_path / "out").exists()
