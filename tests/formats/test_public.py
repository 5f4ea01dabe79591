"""--teacher auto: the public encoder in the cache or on the hub, what takes its place, and what a resumed run keeps."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import tiny
import torch
import yaml
from huggingface_hub import constants
from refusals import refused
from safetensors.torch import load_file, save_file

import semmae
from semmae.data.part_store import PartStore
from semmae.formats import public
from semmae.formats.folders import digest, save_encoder
from semmae.formats.timm import cached
from semmae.models.weights import wrap_vit
from semmae.options.demo import DemoOptions
from semmae.options.pretrain import PretrainOptions, small_photos
from semmae.options.shared import OWN_TEACHER, PUBLIC_TEACHER
from semmae.verbs import demo, pretrain

NAME = PUBLIC_TEACHER.removeprefix("timm:")
REVISION = "0" * 40
# Two patches a side of the teacher's, beside four of the autoencoder's.
WAY: dict[str, Any] = {"teacher_image_size": 28, "epochs": 1, "limit": 8, **tiny.SIZE, **tiny.TRAIN}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of that name, which timm builds in one size alone, with random weights: an export of ours."""
    torch.manual_seed(0)
    vit = timm.create_model(NAME.partition(".")[0], dynamic_img_size=True, num_classes=0)
    folder = tmp_path_factory.mktemp("public") / "export"
    save_encoder(wrap_vit(vit, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), folder)
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache in which nothing lies yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, weights: Path) -> None:
    """As after a download."""
    place = cache / f"models--timm--{NAME}"
    (place / "snapshots").mkdir(parents=True)
    (place / "snapshots" / REVISION).symlink_to(weights)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)


@pytest.fixture
def filled(hub_cache: Path, weights: Path) -> Path:
    """A Hugging Face cache in which the public encoder lies."""
    fill(hub_cache, weights)
    return hub_cache


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "semmae"):
        yield caplog


def kept(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["teacher"])


def test_parts_are_learned_from_what_lies_in_the_cache(
    filled: Path, weights: Path, creatures: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"data": creatures / "images", "out": tmp_path / "parts", "limit": 8, "image_size": 28}
    run = semmae.parts(**given, steps=2, **tiny.TRAIN).path
    assert kept(run) == PUBLIC_TEACHER and PUBLIC_TEACHER in said.text
    store = PartStore.open(run)
    assert store.extra == {"teacher": PUBLIC_TEACHER} and store.teacher_digest == digest(semmae.load_encoder(weights))
    # Asked for again where it has gone meanwhile: what is finished needs no encoder, and other images do.
    shutil.rmtree(filled)
    semmae.parts(**given, steps=2, **tiny.TRAIN)
    with refused(PUBLIC_TEACHER, "not at hand"):
        semmae.parts(**given | {"limit": 9, "out": tmp_path / "more"}, learner=run, workers=0)


def test_a_run_begun_with_it_keeps_it(filled: Path, creatures: Path, tmp_path: Path) -> None:
    """Patches of 14 beside patches of 8; and without it the run stops rather than learning from another."""
    out = tmp_path / "run"
    given = {"data": creatures / "images", "out": out, **WAY}
    with tiny.interrupted("parts", step=1):
        semmae.pretrain(**given)
    assert kept(out) == PUBLIC_TEACHER
    away, before = tmp_path / "away", (out / "config.yaml").read_bytes()
    filled.rename(away)
    for again in (given, {"out": out, "resume": True, "teacher": "auto"}):
        with refused(f"--teacher {PUBLIC_TEACHER}", "HF_HUB_OFFLINE"):
            semmae.pretrain(**again)
    with refused("--teacher own", "began with timm:"):
        semmae.pretrain(out=out, resume=True, teacher="own")
    assert (out / "config.yaml").read_bytes() == before and not (out / "teacher").exists()
    away.rename(filled)
    semmae.pretrain(**given)
    assert kept(out) == PUBLIC_TEACHER and (out / "encoder").is_dir() and not (out / "teacher").exists()
    assert PartStore.open(out).extra == {"teacher": PUBLIC_TEACHER}
    # With the parts made, the rest needs it no more.
    shutil.rmtree(out / "encoder")
    (out / ".unfinished").touch()
    filled.rename(away)
    semmae.pretrain(**given)
    assert (out / "encoder").is_dir() and kept(out) == PUBLIC_TEACHER


def test_a_run_begun_without_it_keeps_its_own(
    hub_cache: Path, weights: Path, creatures: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    given = {"data": creatures / "images", "out": out, **WAY, "teacher_image_size": 32}
    with tiny.interrupted("teacher", step=1):
        semmae.pretrain(**given)
    (warning,) = [record.getMessage() for record in said.records if "--teacher auto" in record.getMessage()]
    for fact in (PUBLIC_TEACHER, "HF_HUB_OFFLINE", "longer", "poor", "HF_HOME", "--teacher FILE"):
        assert fact in warning
    assert kept(out) == "own"
    fill(hub_cache, weights)
    assert cached(NAME)
    semmae.pretrain(**given)
    assert kept(out) == "own" and PartStore.open(out).extra == {"teacher": str(out / "teacher")}
    # In words too, that is the same run, finished; and another one would take the public encoder.
    semmae.pretrain(**given, teacher="own")
    with refused("--out", "not empty"):
        semmae.pretrain(**given, teacher=PUBLIC_TEACHER)
    options = PretrainOptions(data="photos", out=tmp_path / "new")
    assert pretrain.with_teacher(options).teacher == PUBLIC_TEACHER


def test_sizes_that_do_not_divide_are_refused_at_once(filled: Path, creatures: Path, tmp_path: Path) -> None:
    with refused("--teacher-image-size 32", "patch size 14", "use 28 or 42"):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", **WAY | {"teacher_image_size": 32})
    with refused("30 pixels", "patches of 14", "use 28 or 42"):
        semmae.parts(data=creatures / "images", out=tmp_path / "run", image_size=30)
    assert not (tmp_path / "run").exists()


def test_processes_that_were_started_together_train_none_of_their_own(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "started", lambda: ("torchrun", 2))
    options = PretrainOptions(data="photos", out=Path("out"))
    with refused("--teacher auto", "--teacher own", "--teacher FILE"):
        pretrain.with_teacher(options)
    for idle in (dataclasses.replace(options, masking="random"), dataclasses.replace(options, teacher="own")):
        assert pretrain.with_teacher(idle) == idle


def test_the_demo_draws_without_it(filled: Path) -> None:
    """Drawn images never need the network; of one's own the public encoder sees as many patches as the autoencoder."""
    drawn, own = DemoOptions(out=Path("out")), DemoOptions(out=Path("out"), data="photos")
    sizes = {}
    for options in (drawn, own, dataclasses.replace(own, teacher_image_size=56), dataclasses.replace(own, teacher="x")):
        first = Path("first") if demo.with_teacher(options).teacher == OWN_TEACHER else None
        stage = demo.pretrain_options(demo.with_teacher(options), "photos", None, first)
        sizes[options.data, options.teacher_image_size, options.teacher] = (stage.teacher, stage.teacher_image_size)
    assert sizes == {
        (None, 128, "auto"): ("first", 128),
        ("photos", 128, "auto"): (PUBLIC_TEACHER, 112),
        ("photos", 56, "auto"): (PUBLIC_TEACHER, 56),
        ("photos", 128, "x"): ("x", None),
    }


def test_the_demo_of_photos_predicts_the_tokens_of_a_given_encoder() -> None:
    """By the recipe for photos, but for what is given."""
    recipe = small_photos()
    options = DemoOptions(out=Path("out"), data="photos", teacher="x", epochs=7)
    stage = demo.pretrain_options(demo.with_recipe(options), "photos", None, None)
    assert {name: getattr(stage, name) for name in recipe} == {**recipe, "epochs": 7}
    own = dataclasses.replace(options, teacher=OWN_TEACHER)
    assert demo.with_recipe(own) == own


# The hub


@pytest.fixture
def online(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(public, "SECONDS", 0.2)


def test_a_hub_that_does_not_answer_is_not_waited_for(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str, timeout: float) -> None:
        assert NAME in url and timeout == 0.2
        time.sleep(5)  # a name server that is silent

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    began = time.monotonic()
    assert public.why_not() == "the hub did not answer within 0.2 seconds"
    assert time.monotonic() - began < 3

    def unknown(url: str, timeout: float) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unknown)
    assert public.why_not() == "Name or service not known"


def test_what_is_downloaded_is_said_once_with_size_and_place(
    online: None, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    place, asked = tmp_path / "remote", []
    filled.rename(place)
    about = SimpleNamespace(size=88_240_544)

    def download(repository: str, file: str) -> None:
        asked.append((repository, file))
        place.rename(filled)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: about)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        assert public.public_teacher("auto", or_own=True) == PUBLIC_TEACHER
    assert asked == [(f"timm/{NAME}", "model.safetensors")]
    (line,) = [record.getMessage() for record in said.records if "downloading" in record.getMessage()]
    assert "88.2 MB" in line and str(filled) in line and PUBLIC_TEACHER in line

    def broken(repository: str, file: str) -> None:
        raise OSError("connection lost")

    filled.rename(place)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    assert public.public_teacher("auto", or_own=True) == OWN_TEACHER
    with refused(f"--teacher {PUBLIC_TEACHER}", "connection lost"):
        public.public_teacher(PUBLIC_TEACHER, or_own=True)


def test_what_lies_in_the_cache_is_loaded_without_a_look_at_the_hub(
    online: None, filled: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", asked)
    assert digest(semmae.load_encoder(PUBLIC_TEACHER)) == digest(semmae.load_encoder(weights))


@pytest.mark.parametrize("damage", ["cut", "pointer", "another", "block"])
def test_damaged_weights_in_the_cache_are_named(damage: str, filled: Path, weights: Path, encoder: Path) -> None:
    """Cut short, a pointer in place of the file, weights of another model, or without a block."""
    link = filled / f"models--timm--{NAME}/snapshots" / REVISION
    link.unlink()
    link.mkdir()
    place = link / "model.safetensors"
    whole = weights / "model.safetensors"
    if damage == "block":
        save_file({name: own for name, own in load_file(whole).items() if "blocks.3." not in name}, place)
    else:
        found = {"cut": whole.read_bytes()[:-9], "pointer": b"version https://git-lfs.github.com/spec/v1\n"}
        place.write_bytes(found.get(damage) or (encoder / "model.safetensors").read_bytes())
    with refused(place, "damaged", PUBLIC_TEACHER, "remove it", "downloaded again"):
        semmae.load_encoder(PUBLIC_TEACHER)
