"""`semmae finetune` as a user runs it: exact resume, what it writes, measuring alone, and what it refuses."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny
import torch
from refusals import refused

import semmae
from semmae.data.creatures import draw_creatures
from semmae.data.manifest import open_images
from semmae.data.splits import held_out
from semmae.formats.folders import save_encoder
from semmae.formats.open import load_encoder
from semmae.models.fresh import fresh_like
from semmae.models.vit import EncoderSpec
from semmae.options.finetune import FinetuneOptions
from semmae.options.presets import preset_options, presets_of
from semmae.verbs.finetune import check_finetune

# All that draws by chance is at work.
SHORT: dict[str, Any] = {
    **tiny.TRAIN, "epochs": 3, "blr": 2e-2, "drop_path": 0.3, "ema": 0.5, "val_every": 1, "erasing": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.new_encoder(tmp_path_factory.mktemp("encoder") / "encoder", EncoderSpec(32, 8, 48, 3, 3))


@pytest.fixture(scope="module")
def whole(encoder: Path, creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, and the same from new weights."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with tiny.every_step():
        semmae.finetune(encoder=encoder, data=creatures / "images", out=out, untrained=True, **SHORT)
    return out


def test_a_resumed_run_is_the_one_never_interrupted(
    whole: Path, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    """Bit for bit: crops, policies, mixing, erasing, drop path, the average, and what is measured."""
    out = tmp_path / "run"
    assert len(tiny.losses(whole)) == 9  # 24 of 32 images, 8 a step
    with tiny.every_step():
        with tiny.interrupted("finetune", 4):
            semmae.finetune(encoder=encoder, data=creatures / "images", out=out, **SHORT)
        assert not (out / "classifier").exists()
        semmae.finetune(out=out, resume=True)
    assert tiny.losses(out) == tiny.losses(whole)
    tiny.assert_same_weights(out / "classifier", whole / "classifier")
    assert tiny.results(out) == {name: value for name, value in tiny.results(whole).items() if name != "untrained"}


def test_new_weights_are_trained_as_an_encoder_that_has_them(
    whole: Path, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    save_encoder(fresh_like(load_encoder(encoder), seed=0), tmp_path / "new")
    with tiny.every_step():
        semmae.finetune(encoder=tmp_path / "new", data=creatures / "images", out=tmp_path / "run", **SHORT)
    tiny.assert_same_weights(tmp_path / "run" / "classifier", whole / "untrained" / "classifier")
    assert tiny.losses(tmp_path / "run") == tiny.losses(whole / "untrained")


def test_interrupted_in_the_second_training_the_first_is_kept(
    whole: Path, encoder: Path, creatures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with tiny.every_step():
        with tiny.interrupted("untrained", 5):
            semmae.finetune(encoder=encoder, data=creatures / "images", out=out, untrained=True, **SHORT)
        before = tiny.listing(out / "classifier")
        semmae.finetune(out=out, resume=True)
    assert tiny.listing(out / "classifier") == before
    tiny.assert_same_weights(out / "untrained" / "classifier", whole / "untrained" / "classifier")
    assert tiny.results(out) == tiny.results(whole)


def test_the_table_and_the_files_give_the_same(whole: Path) -> None:
    figures = tiny.results(whole)
    rows = list(csv.DictReader((whole / "per_class.csv").open()))
    right = [float(row["right_percent"]) for row in rows]
    images = [int(row["images"]) for row in rows]
    assert figures["images"] == sum(images) == 8 and figures["classes"] == len(rows) == 8
    assert figures["mean_class"] == pytest.approx(sum(right) / len(right), abs=0.01)
    weighed = sum(share * count for share, count in zip(right, images, strict=True))
    assert figures["top1"] == pytest.approx(weighed / sum(images), abs=0.01)
    assert figures["top1_low"] < figures["top1"] < figures["top1_high"] or figures["top1"] in (0, 100)
    assert set(figures["untrained"]) == set(figures) - {"protocol", "untrained"}
    assert figures["protocol"]["crop_pct"] == 0.875 and figures["protocol"]["seed"] == 0
    last = [line for line in tiny.metrics(whole) if "val_top1" in line]
    assert len(last) == 3 and last[-1]["val_top1"] == pytest.approx(figures["top1"])
    assert "untrained" in (whole / "results.md").read_text()
    assert (whole / "report.html").read_text().count("<svg") >= 4 and (whole / "confusion.png").stat().st_size > 1000


def test_what_is_kept_is_what_timm_loads(whole: Path) -> None:
    model = timm.create_model(f"local-dir:{whole / 'classifier'}", pretrained=True).eval()
    classifier, classes = semmae.load_classifier(whole)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images), classifier(images), atol=1e-6)
    assert classes == sorted(classes) == list(model.pretrained_cfg["label_names"])


def test_measured_alone_it_does_as_well_as_after_its_training(whole: Path, creatures: Path, tmp_path: Path) -> None:
    """Without a validation split, the images that were held out from its training are found again."""
    out = tmp_path / "measured"
    semmae.finetune(encoder=whole, data=creatures / "images", out=out, eval_only=True, workers=0)
    figures, before = tiny.results(out), tiny.results(whole)
    assert {name: figures[name] for name in figures if name != "protocol"} == {
        name: before[name] for name in before if name not in ("protocol", "untrained")
    }
    assert figures["protocol"]["split"].startswith("8 of 32 images")
    assert (out / "per_class.csv").read_text() == (whole / "per_class.csv").read_text()
    assert not (out / "classifier").exists() and (out / "report.html").is_file()


def test_a_classifier_that_keeps_no_keys_of_its_images_is_measured_on_all(
    whole: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole / "classifier", tmp_path / "run" / "classifier")
    learned, config = (tmp_path / "run" / "classifier" / name for name in ("learned.txt", "config.json"))
    assert config.stat().st_size < 5000  # what timm and the hub read holds nothing of single images
    learned.unlink()
    given = {"encoder": tmp_path / "run", "data": creatures / "images", "eval_only": True, "workers": 0}
    semmae.finetune(out=tmp_path / "out", **given)
    assert tiny.results(tmp_path / "out")["protocol"]["split"] == "all 32 images"
    assert "which images" in caplog.text


def test_no_image_that_it_learned_from_is_measured(
    whole: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else lies in the folder, and however many of it are taken."""
    caplog.set_level("INFO", "semmae")
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(creatures / "images", data)
    images = open_images(creatures / "images")
    kept, held = held_out(images.labels or (), 0.2, seed=0)
    added = data / Path(images.names[0]).parent / "zzz.png"
    shutil.copy(data / images.names[kept[0]], added)
    given = {"encoder": whole, "data": data, "eval_only": True, "workers": 0}
    semmae.finetune(out=out, **given)
    assert tiny.results(out)["images"] == len(held) + 1
    assert "24 of 33 images left out" in caplog.text

    semmae.finetune(out=tmp_path / "few", limit=20, **given)
    drawn = set(open_images(data, limit=20, seed=0).names)
    expected = drawn & ({images.names[row] for row in held} | {added.relative_to(data).as_posix()})
    assert 0 < tiny.results(tmp_path / "few")["images"] == len(expected) < 20

    for row in held:
        (data / images.names[row]).unlink()
    added.unlink()
    with refused("24 images"):
        semmae.finetune(out=tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_the_same_from_new_weights_leaves_no_options_that_would_train_the_encoder(whole: Path) -> None:
    assert (whole / "untrained" / "classifier").is_dir()
    assert not (whole / "untrained" / "config.yaml").exists()
    assert not (whole / "untrained" / ".unfinished").exists()


def test_measured_alone_with_a_preset_or_the_runs_own_options(whole: Path, creatures: Path, tmp_path: Path) -> None:
    given = {"encoder": whole, "data": creatures / "images", "eval_only": True, "workers": 0}
    semmae.finetune(out=tmp_path / "preset", preset="small-data", **given)
    semmae.finetune(out=tmp_path / "config", config=whole / "config.yaml", untrained=False, **given)
    assert (
        tiny.results(tmp_path / "preset")["top1"]
        == tiny.results(tmp_path / "config")["top1"]
        == tiny.results(whole)["top1"]
    )


def test_measured_on_other_images_all_of_them_count(whole: Path, tmp_path: Path) -> None:
    others, drawn = tmp_path / "others", tmp_path / "drawn"
    draw_creatures(drawn, count=16, size=64)
    for number, folder in enumerate(sorted((drawn / "images").iterdir())[:2]):
        (others / folder.name).mkdir(parents=True)
        for copy in range(2 + number):
            shutil.copy(min(folder.iterdir()), others / folder.name / f"other{copy}.png")
    semmae.finetune(encoder=whole, data=others, out=tmp_path / "out", eval_only=True, workers=0, image_size=48)
    figures = tiny.results(tmp_path / "out")
    assert figures["images"] == 5 and figures["classes"] == 8 and figures["protocol"]["image_size"] == 48
    table = list(csv.DictReader((tmp_path / "out" / "per_class.csv").open()))
    assert [row["right_percent"] == "" for row in table] == [False] * 2 + [True] * 6


def test_balanced_and_plain_settings_train_too(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    options = {**SHORT, "epochs": 1, "ema": 0.0, "drop_path": 0.0, "augment": "none", "mixup": 0.0, "cutmix": 0.0}
    runs = {}
    for name, own in {"plain": {}, "balanced": {"balanced": True}, "cls": {"pooling": "cls"}}.items():
        runs[name] = tmp_path / name
        semmae.finetune(encoder=encoder, data=creatures / "images", out=runs[name], **options, **own)
    heads = {name: semmae.load_classifier(out)[0].vit.head.weight for name, out in runs.items()}
    assert not torch.equal(heads["plain"], heads["balanced"])
    assert semmae.load_classifier(runs["cls"])[0].pooling == "cls"


REFUSED = {
    "no such policy": (["--augment", "rand-x3"], ("--augment 'rand-x3'",)),
    "sizes": (["--image-size", "30"], ("30 pixels", "24 or 32")),
    "rates": (["--blr", "1e-7"], ("--min-lr 1e-06", "9.37e-09", "--blr")),
    "limits": (["--drop-path", "1.5"], ("--drop-path 1.5", "0.95")),
    "batches": (["--accumulate", "5"], ("--batch-size 64", "--accumulate 5")),
    "both": (["--eval-only", "--untrained"], ("--untrained", "--eval-only")),
    "training alone": (["--eval-only", "--mixup", "0.5"], ("--mixup 0.5", "--eval-only")),
    "alone, flags": (["--eval-only", "--balanced"], ("--balanced", "--eval-only")),
    "no classifier": (["--eval-only"], ("classifier", "semmae finetune")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_is_written(
    case: str, encoder: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    arguments, named = REFUSED[case]
    out = tmp_path / "out"
    given = ["--encoder", str(encoder), "--data", str(creatures / "images"), "--out", str(out), *arguments]
    refuse(["finetune", *given], out, *named)


def test_classes_that_it_does_not_know_are_refused(
    whole: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    known = sorted((creatures / "images").iterdir())[0]
    for name in ("zebra", "aardvark", known.name):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.png").symlink_to(next(known.iterdir()))
    given = ["--encoder", str(whole), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--eval-only"]
    refuse(["finetune", *given], tmp_path / "out", "class 'aardvark' and 1 more", "8")


def test_the_published_recipes_have_the_published_rates() -> None:
    """The rates that MAE's and iBOT's scripts come to, with the batches that they are for."""
    rates = {"mae-vit-b16": 2e-3, "mae-vit-l16": 4e-3, "cars": 1.125e-4, "inaturalist": 1.125e-5}
    for name in presets_of("finetune"):
        options = FinetuneOptions(encoder="run", data="photos", out=Path("out"), **preset_options("finetune", name))
        check_finetune(options)
        rate = options.scaled_rate(options.blr, 10**6)
        assert rate == pytest.approx(rates.get(name, rate))
    # MAE's defaults are those of the verb, but for the batch.
    plain = FinetuneOptions(encoder="run", data="photos", out=Path("out"), batch_size=1024)
    assert plain == FinetuneOptions(
        encoder="run", data="photos", out=Path("out"), **preset_options("finetune", "mae-vit-b16")
    )
