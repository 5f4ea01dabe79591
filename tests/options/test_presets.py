"""Presets: each is a set of options that its verb takes; who wins over whom; how they are found."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from refusals import refused

import semmae
from semmae.cli import run
from semmae.options import VERBS, kind_of
from semmae.options.fields import options_of
from semmae.options.parts import PartsOptions
from semmae.options.presets import preset_list, preset_options, presets_of
from semmae.options.teacher import TeacherOptions
from semmae.options.values import check_values
from semmae.verbs.pretrain import check_recipe
from semmae.verbs.segment import protocol_of
from semmae.verbs.stages import parts_stage, teacher_stage
from semmae.verbs.teacher import check_teacher

ALL = [(verb, name) for verb in VERBS for name in presets_of(verb)]


def parsed(*arguments: str) -> Any:
    kind = kind_of("teacher")
    return tiny.options_from(kind, ["--data", "photos", "--out", "out", *arguments])


@pytest.mark.parametrize(("verb", "name"), ALL, ids=[f"{verb} {name}" for verb, name in ALL])
def test_a_preset_is_options_of_its_verb(verb: str, name: str) -> None:
    preset = presets_of(verb)[name]
    kind = kind_of(verb)
    fields = {field.name for field in dataclasses.fields(kind)}
    required = {each: value for each, value in {"data": "photos", "encoder": "run"}.items() if each in fields}
    recipe = {each: value for each, value in preset().items() if each in options_of(kind)}
    assert recipe.keys() >= preset().keys() - {"masking"} and (verb == "compare" or recipe == preset())
    options = kind(out=Path("out"), preset=name, **required, **recipe)
    check_values(options)
    if verb == "teacher":
        check_teacher(options)
    if verb == "pretrain":
        check_recipe(options)
    # What the docstring says first is its line in --help: whole, and it fits.
    first = preset.__doc__.splitlines()[0]
    assert first.endswith(".") and len(first) <= 80
    given = [text for each, value in required.items() for text in (f"--{each}", value)]
    assert tiny.options_from(kind, [*given, "--out", "out", "--preset", name]) == options


def test_options_win_over_a_file_and_a_file_over_the_preset(tmp_path: Path) -> None:
    preset = preset_options("teacher", "ibot-vit-s16")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"epochs": 7, "momentum": 0.9}))
    (tmp_path / "b.yaml").write_text("preset: dino-vit-s16\n")
    config = ["--config", str(tmp_path / "a.yaml")]

    beside = parsed("--preset", "ibot-vit-s16", *config, "--momentum", "0.5")
    assert (beside.momentum, beside.epochs, beside.prototypes) == (0.5, 7, preset["prototypes"])
    assert beside.koleo == 0.0  # the preset's, over the default
    assert beside.knn_every == 10  # nobody's
    in_file = parsed("--config", str(tmp_path / "b.yaml"))
    assert (in_file.preset, in_file.prototypes) == ("dino-vit-s16", 65536)
    other = parsed("--config", str(tmp_path / "b.yaml"), "--preset", "ibot-vit-s16")
    assert (other.preset, other.prototypes) == ("ibot-vit-s16", 8192)


def test_the_python_call_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("semmae.calls.run_verb", lambda options, names: given.append(options) or options.out)
    (tmp_path / "a.yaml").write_text("epochs: 7\nmomentum: 0.9\n")

    semmae.teacher(data="photos", out=tmp_path / "out", preset="ibot-vit-s16", config=tmp_path / "a.yaml", momentum=0.5)

    wanted = parsed("--preset", "ibot-vit-s16", "--config", str(tmp_path / "a.yaml"), "--momentum", "0.5")
    assert given == [dataclasses.replace(wanted, out=tmp_path / "out")]


def test_the_published_recipes_differ_in_model_and_mask_alone() -> None:
    """Settings of MAE's PRETRAIN.md; SemMAE changes the mask, ViT-B/8 the patches."""
    kind = kind_of("pretrain")
    found = {
        name: kind(data="photos", out=Path("out"), **preset_options("pretrain", name))
        for name in ("semmae-vit-b16", "semmae-vit-b8", "mae-vit-b16", "mae-vit-l16")
    }
    semmae_b, semmae_b8, mae_b, mae_l = found.values()
    # The rate that a batch of 4096 has, and 40 epochs of warm-up.
    assert mae_l.blr * mae_l.batch_size / 256 == pytest.approx(2.4e-3)
    assert mae_l.warmup_share * mae_l.epochs == pytest.approx(40)
    assert dataclasses.replace(mae_l, model="vit_base") == mae_b
    stage = {"parts_preset": "semmae-published", "parts_epochs": 5}
    assert dataclasses.replace(mae_b, masking="semantic", **stage) == semmae_b
    assert dataclasses.replace(semmae_b, patch_size=8, token_subset=196) == semmae_b8


def test_ibots_fine_tunings_have_the_rates_of_its_run_sh() -> None:
    """Its script multiplies --lr by batch / 512, and starts 96 images on each of 8 GPUs; the rest is DeiT's."""
    kind = kind_of("finetune")
    published = {"cars": (7.5e-5, 1000, 0.25), "flowers": (7.5e-6, 1000, 0.25), "inaturalist": (7.5e-6, 360, 0.1)}
    for name, (rate, epochs, erasing) in published.items():
        options = kind(data="photos", encoder="run", out=Path("out"), **preset_options("finetune", name))
        assert (options.batch_size, options.epochs, options.erasing) == (96 * 8, epochs, erasing)
        assert options.blr * options.batch_size / 256 == pytest.approx(rate * options.batch_size / 512)
        assert (options.pooling, options.layer_decay, options.min_lr) == ("cls", 1.0, 1e-5)
        assert options.warmup_share * options.epochs == pytest.approx(5)


def test_segmentation_on_ade20k_slides_as_the_recipes_it_is_from() -> None:
    """mmsegmentation's MAE and iBOT's linear head move their windows of 512 pixels by 341."""
    kind = kind_of("segment")
    for name in ("ade20k-vit-b16", "linear"):
        options = kind(data="photos", encoder="run", out=Path("out"), **preset_options("segment", name))
        assert protocol_of(options, options.image_size).windows.step == 341
        assert (options.batch_size, options.steps) == (16, 160_000)
        assert options.warmup_share * options.steps == pytest.approx(1500)


def test_pretrain_takes_a_preset_and_hands_none_to_its_stages(tmp_path: Path) -> None:
    kind = kind_of("pretrain")
    given = ["--data", "photos", "--out", str(tmp_path), "--preset", "semmae-vit-b16", "--epochs", "100"]
    options = tiny.options_from(kind, given)
    assert (options.model, options.epochs, options.batch_size) == ("vit_base", 100, 4096)
    stage = teacher_stage(options)
    # The size is the run's, the rate the teacher's own.
    assert (stage.preset, stage.model, stage.blr) == (None, "vit_base", TeacherOptions.blr)


def test_the_published_pretraining_learns_parts_as_published() -> None:
    """Section 3.1: pixels and diversity; not with the batch of stage 2, whose size the rate does not follow."""
    kind = kind_of("pretrain")
    given = preset_options("pretrain", "semmae-vit-b16")
    options = kind(data="photos", out=Path("out"), teacher="encoder", **given)

    stage = parts_stage(options, "encoder")

    assert (stage.preset, stage.rebuild, stage.diversity, stage.sample) == ("semmae-published", "pixels", 0.1, None)
    assert (stage.batch_size, stage.lr, stage.epochs) == (64, PartsOptions.lr, 5)
    assert (stage.image_size, stage.teacher, stage.num_parts) == (None, "encoder", 6)  # as the encoder was trained
    many = parts_stage(dataclasses.replace(options, devices=8, nodes=10, parts_epochs=2), "encoder")
    assert (many.batch_size, many.epochs) == (80, 2)
    small = parts_stage(dataclasses.replace(options, batch_size=32, parts_preset=None), "encoder")
    assert (small.batch_size, small.rebuild, small.preset) == (32, "tokens", None)
    assert (small.steps, small.epochs) == (PartsOptions.steps, PartsOptions.epochs)  # not an eighth of the run's


def test_an_unknown_preset_of_the_parts_is_refused(refuse: tiny.Refuse, tmp_path: Path) -> None:
    given = ["pretrain", "--data", str(Path(__file__).parent), "--out", str(tmp_path / "out")]
    command = [*given, "--parts-preset", "semmae-publish"]
    refuse(command, tmp_path, "--parts-preset", '"semmae-published"')


def test_an_unknown_preset_names_the_near_ones(refuse: tiny.Refuse, tmp_path: Path) -> None:
    command = ["teacher", "--data", "photos", "--out", str(tmp_path / "out"), "--preset", "ibot-vit-s8"]
    refuse(command, tmp_path, "--preset", "'ibot-vit-s8'", '"ibot-vit-s16"')
    with refused('"dino-vit-s16"'):
        semmae.teacher(data="photos", out=tmp_path / "out", preset="dino-s16")
    assert not (tmp_path / "out").exists()


def test_a_verb_without_presets_takes_none(tmp_path: Path) -> None:
    with refused("--preset"):
        tiny.options_from(kind_of("embed"), ["--preset", "ibot-vit-s16"])
    with refused("'preset'"):
        semmae.embed(encoder="e", data="photos", out=tmp_path / "out", preset="ibot-vit-s16")
    assert preset_list("embed") == ""


def test_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["teacher", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for name, preset in presets_of("teacher").items():
        assert f"{name} {(preset.__doc__ or '').splitlines()[0]}" in output
