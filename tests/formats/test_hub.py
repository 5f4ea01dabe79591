"""Models of the Hugging Face hub by name: from its cache, without the hub; what is not there in one line."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from refusals import refused

import semmae
from semmae.formats.folders import digest
from semmae.formats.hub import downloaded

REVISION = "0" * 40


def in_cache(folder: Path, name: str) -> Path:
    """A folder as the hub's own library keeps a repository that it has downloaded."""
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    shutil.copytree(folder, snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)
    return snapshot


@pytest.mark.parametrize("form", ["hf", "timm"])
def test_an_export_in_the_cache_is_loaded_by_its_name(form: Any, encoder: Path, tmp_path: Path) -> None:
    semmae.export(encoder=encoder, to=form, out=tmp_path / "export")
    in_cache(tmp_path / "export", f"semmae-tests/{form}")
    given, loaded = semmae.load_encoder(encoder), semmae.load_encoder(f"hf:semmae-tests/{form}")
    assert digest(loaded) == digest(given) and loaded.pooling == given.pooling
    assert loaded.source == f"hf:semmae-tests/{form}"
    if form == "timm":
        images = torch.rand(2, 3, given.spec.image_size, given.spec.image_size)
        named = semmae.load_encoder(f"timm:hf-hub:semmae-tests/{form}")
        assert torch.equal(named(images).cls, given(images).cls)


def test_a_teacher_of_the_hub_is_known_again_by_its_name(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    semmae.export(encoder=encoder, to="hf", out=tmp_path / "export")
    in_cache(tmp_path / "export", "semmae-tests/teacher")
    given: dict[str, Any] = {"data": creatures / "images", "workers": 0, "limit": 8}
    run = semmae.parts(teacher="hf:semmae-tests/teacher", out=tmp_path / "parts", steps=2, batch_size=8, **given)
    again = semmae.parts(learner=run.path, out=tmp_path / "again", **given)
    assert (again.path / "parts.npy").read_bytes() == (run.path / "parts.npy").read_bytes()


def test_weights_of_one_kind_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns[-1])
        if allow_patterns[-1] == held:
            (tmp_path / held).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: ["config.json"])
    (tmp_path / "config.json").touch()
    held = "pytorch_model.bin"
    assert downloaded("a/b") == tmp_path and asked == ["model.safetensors", held]
    (tmp_path / held).unlink()
    held = "none"
    with refused("'hf:a/b'", "model.safetensors", "pytorch_model.bin", "give a repository"):
        downloaded("a/b")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_model_that_is_only_in_part_in_the_cache_is_no_fault_of_the_repository(
    lost: str, encoder: Path, tmp_path: Path
) -> None:
    semmae.export(encoder=encoder, to="hf", out=tmp_path / "export")
    snapshot = in_cache(tmp_path / "export", f"semmae-tests/without-{lost}")
    (snapshot / lost).unlink()
    with refused("hf:semmae-tests", "in the cache", snapshot, f"lacks {lost}", "hub can be reached", "HF_HOME"):
        semmae.load_encoder(f"hf:semmae-tests/without-{lost}")


@pytest.mark.parametrize("form", ["hf:", "timm:hf-hub:"])
@pytest.mark.parametrize("damage", ["cut", "empty", "page"])
def test_a_download_that_is_damaged_is_named_to_be_removed(
    damage: str, form: str, encoder: Path, tmp_path: Path
) -> None:
    """By the file that the cache has a link to: without the link alone, the hub's library would not ask the hub."""
    name = f"semmae-tests/{damage}-{form.count(':')}"
    semmae.export(encoder=encoder, to="timm", out=tmp_path / "export")
    link = in_cache(tmp_path / "export", name) / "model.safetensors"
    whole = link.read_bytes()
    blob = link.rename(tmp_path / "blob")
    link.symlink_to(blob)
    blob.write_bytes({"cut": whole[:-9], "empty": b"", "page": b"<!DOCTYPE html>" * 99}[damage])
    with refused(blob, "damaged", name, "remove it", "downloaded again"):
        semmae.load_encoder(form + name)


@pytest.mark.parametrize("name", ["semmae-tests/none", "", "a/b/c", "x" * 300])
def test_what_is_not_at_hand_is_refused(name: str) -> None:
    for door in (semmae.load_encoder, semmae.load_mae):
        with refused("hf:", "HF_HOME"):
            door(f"hf:{name}")
