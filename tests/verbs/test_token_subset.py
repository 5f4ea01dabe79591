"""`pretrain --token-subset`: only the most attended patches take part; resumable; its stages; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from torch import Tensor

import semmae
from semmae.cli import run
from semmae.models.mae import MAEOutput, MaskedAutoencoder
from semmae.reporting.mask_pictures import faded, on_the_grid
from semmae.reporting.pictures import hide
from semmae.train import pretrain as task
from semmae.train.masks import MaskContext

OPTIONS: dict[str, Any] = {"epochs": tiny.EPOCHS, "token_subset": 8, **tiny.SIZE, **tiny.TRAIN}


def test_interrupted_and_resumed_is_as_never_interrupted(
    whole_run: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of every image the most attended half takes part, of which 6 patches are hidden and 2 encoded."""
    seen: list[tuple[Tensor, MAEOutput]] = []
    attended: list[Tensor] = []
    real, real_step = MaskedAutoencoder.forward, task.PretrainTask.training_step

    def watched(
        mae: MaskedAutoencoder,
        images: Tensor,
        mask: Tensor,
        subset: Tensor | None = None,
        count: int | None = None,
        *tokens: Tensor | None,
    ) -> MAEOutput:
        output = real(mae, images, mask, subset, count, *tokens)
        assert count in (6, None) and subset is not None and mask.shape == (len(images), 8) and (mask.sum(1) == 6).all()
        seen.append((subset, output))
        return output

    def watched_step(module: task.PretrainTask, batch: dict[str, Tensor], index: int) -> Tensor:
        attended.append(batch["attention"])
        return real_step(module, batch, index)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    monkeypatch.setattr(task.PretrainTask, "training_step", watched_step)
    with tiny.every_step():
        semmae.pretrain(data=creatures / "images", out=tmp_path / "once", parts=whole_run / "parts", **OPTIONS)
        for (subset, output), attention in zip(seen[: tiny.STEPS], attended, strict=True):
            taken = attention.gather(1, subset)
            left = attention.clone().scatter(1, subset, -1.0)
            assert (taken.amin(1) >= left.amax(1)).all()
            assert output.num_patches == 16 and output.hidden.shape == (tiny.BATCH, 6)
        with tiny.interrupted("pretrain", step=10):
            semmae.pretrain(data=creatures / "images", out=tmp_path / "twice", parts=whole_run / "parts", **OPTIONS)
        semmae.pretrain(out=tmp_path / "twice", resume=True)
    assert tiny.losses(tmp_path / "once") == tiny.losses(tmp_path / "twice")
    assert len(tiny.losses(tmp_path / "once")) == tiny.STEPS
    tiny.assert_same_weights(tmp_path / "once" / "autoencoder", tmp_path / "twice" / "autoencoder")
    assert (tmp_path / "once" / "pictures" / "masks.png").is_file()
    assert (tmp_path / "once" / "pictures" / "reconstructions.png").is_file()


def test_without_parts_a_teacher_is_trained_and_its_attention_read(creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = OPTIONS | {"epochs": 1, "teacher": "own", "teacher_epochs": 1}
    semmae.pretrain(data=creatures / "images", out=out, masking="random", **options)
    assert np.load(out / "parts" / "attention.npy").shape == (tiny.COUNT, 4, 4)
    assert yaml.safe_load((out / "parts" / "config.yaml").read_text())["steps"] == 1  # nothing reads the labels
    assert (out / "teacher" / "encoder").is_dir() and (out / "autoencoder").is_dir()


def test_labels_without_attention_are_refused_with_the_remedy_that_helps(
    whole_run: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(whole_run / "parts", parts)
    expected = {name: (parts / name).read_bytes() for name in ("parts.npy", "attention.npy")}
    (parts / "attention.npy").unlink()
    tiny.rewrite_store(parts, attention_grid=0)
    out = tmp_path / "run"
    asked = tiny.pretrain_on(parts, creatures / "images", out, "--token-subset", "8", "--epochs", "1")
    remedy = refuse(asked, out).split("`")[1].split()
    assert remedy == ["semmae", "parts", "--out", str(parts), "--labels-only"]
    assert run(remedy[1:]) == 0
    assert {name: (parts / name).read_bytes() for name in expected} == expected
    assert run(asked) == 0


def test_a_context_of_the_most_attended() -> None:
    attention = torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.0, 0.2, 0.3, 0.1]])
    parts = torch.arange(8).view(2, 4)
    whole = MaskContext((2, 4), 0.5, 0.0, torch.Generator().manual_seed(0), 8, parts, attention)
    some = whole.most_attended(2)
    assert some.shape == (2, 2) and some.uniform().shape == (2, 2)
    assert some.subset is not None and some.subset[1].tolist() == [1, 2] and some.subset[0, 0] == 1
    assert some.parts is not None and torch.equal(some.parts, some.subset + torch.tensor([[0], [4]]))
    assert some.attention is not None and torch.equal(some.attention[1], attention[1, 1:3])
    with pytest.raises(ValueError, match="attention"):
        MaskContext((2, 4), 0.5, 0.0, torch.Generator()).most_attended(2)


def test_pictures_show_what_takes_part_and_what_is_hidden() -> None:
    """Patches that take no part are pale; hidden ones grey; visible ones as they are."""
    images = torch.full((1, 3, 8, 8), 55, dtype=torch.uint8)
    subset, mask = torch.tensor([[0, 3]]), torch.tensor([[True, False]])
    shown = hide(faded(images, subset, 4), on_the_grid(mask, subset, 4))
    assert [int(shown[0, 0, y, x]) for y, x in ((0, 4), (4, 0), (4, 4))] == [205, 205, 55]
    assert shown[0, 0, 0, 0] == hide(images, torch.ones(1, 4, dtype=torch.bool))[0, 0, 0, 0]
    whole = torch.tensor([[True, False, False, True]])
    assert torch.equal(on_the_grid(whole, None, 4), whole)
