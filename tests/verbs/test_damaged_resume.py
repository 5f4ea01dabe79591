"""A run is resumed from its checkpoint only where that is whole, its own and finite: else one line, exit 2."""

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import check_refusal, refused

import semmae
from semmae.cli import run
from semmae.data.manifest import open_images
from semmae.labels.kinds import grid_parts
from semmae.models.vit import EncoderSpec

LAST = Path("checkpoints", "last.ckpt")


@pytest.fixture(scope="module")
def stopped(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pretrain that was stopped in the middle."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    how = {"masking": "random", "epochs": tiny.EPOCHS, **tiny.TRAIN, **tiny.SIZE}
    with tiny.interrupted("pretrain", step=6):
        semmae.pretrain(data=creatures / "images", out=out, **how)
    return out


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def changed(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        edited = edit(content)
        torch.save(content if edited is None else edited, path)

    return change


def spoil(content: dict[str, Any]) -> None:
    next(iter(content["state_dict"].values())).view(-1)[0] = float("nan")


def spoil_optimiser(content: dict[str, Any]) -> None:
    next(iter(content["optimizer_states"][0]["state"].values()))["exp_avg"].fill_(float("inf"))


def shrink(content: dict[str, Any]) -> None:
    name = next(name for name, tensor in content["state_dict"].items() if len(tensor) > 1)
    content["state_dict"][name] = content["state_dict"][name][:1].clone()


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("no checkpoint") and None,
    "a fifo": as_fifo,
    "a tensor": changed(lambda content: torch.zeros(3)),
    "a state dict": changed(lambda content: content["state_dict"]),
    "without its optimiser": changed(lambda content: content.pop("optimizer_states") and None),
    "without a state": changed(lambda content: {**content, "optimizer_states": []}),
    "without a schedule": changed(lambda content: {**content, "lr_schedulers": []}),
    "without its place": changed(lambda content: {**content, "loops": {}}),
    "a rate that is NaN": changed(lambda content: content["lr_schedulers"][0].update(base_lrs=[float("nan")])),
    "of other types": changed(lambda content: {**content, "global_step": "six"}),
    "of another network": changed(lambda content: content["state_dict"].popitem() and None),
    "of other sizes": changed(shrink),
    "a weight that is NaN": changed(spoil),
    "an infinite moment": changed(spoil_optimiser),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line(
    damage: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    DAMAGE[damage](out / LAST)
    assert run(["pretrain", "--out", str(out), "--resume"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semmae: ")]
    check_refusal("\n".join(lines), LAST)
    assert (out / LAST).exists() and not (out / "encoder").exists()


def test_the_undamaged_one_goes_on(stopped: Path, tmp_path: Path) -> None:
    """What is refused above is so for its damage alone."""
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    changed(copy.deepcopy)(out / LAST)
    assert run(["pretrain", "--out", str(out), "--resume"]) == 0
    assert tiny.metrics(out)[-1]["epoch"] == tiny.EPOCHS - 1


@pytest.mark.parametrize("name", ["parts", "init"])
def test_a_run_does_not_go_on_with_other_labels_or_first_weights(name: str, creatures: Path, tmp_path: Path) -> None:
    """At the same place by now: the half that is there would have been trained by something else."""
    place, out = tmp_path / "given", tmp_path / "out"
    images = open_images(creatures / "images", workers=0)
    spec = EncoderSpec.named("vit_mini", tiny.SIZE["image_size"], tiny.SIZE["patch_size"])

    def make(number: int) -> None:
        if name == "parts":
            grid_parts(place, images, labels=4, grid=8 + number)
        else:
            tiny.new_encoder(place, spec, seed=number)

    make(0)
    how = {"masking": "semantic" if name == "parts" else "random", name: place, "epochs": tiny.EPOCHS}
    with tiny.interrupted("pretrain", step=6):
        semmae.pretrain(data=creatures / "images", out=out, **how, **tiny.TRAIN, **tiny.SIZE)
    shutil.rmtree(place)
    make(1)
    with refused(out, name):
        semmae.pretrain(out=out, resume=True)
    shutil.rmtree(place)
    make(0)
    semmae.pretrain(out=out, resume=True)
    assert (out / "encoder").is_dir() and not (out / ".unfinished").exists()
