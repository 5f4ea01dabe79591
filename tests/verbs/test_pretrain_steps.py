"""`semmae pretrain`: steps of several batches, limited gradients, checkpointing; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from refusals import refused
from torch import Tensor

import semmae
from semmae.train import masks
from semmae.train.masks import MaskContext

OPTIONS: dict[str, Any] = {**tiny.SIZE, **tiny.TRAIN, "epochs": 2, "masking": "random"}


def every_other(context: MaskContext) -> Tensor:
    """The same patches of every image, whatever the noise: masks do not depend on how a step is divided."""
    return (torch.arange(context.shape[1], device=context.device) % 4 > 0).expand(context.shape)


def run(creatures: Path, out: Path, **changes: Any) -> list[float]:
    with tiny.every_step():
        semmae.pretrain(data=creatures / "images", out=out, **{**OPTIONS, **changes})
    return tiny.losses(out)


def test_several_batches_make_the_step_of_one(creatures: Path, tmp_path: Path) -> None:
    """Same crops, same masks, rate, steps: the losses differ by rounding."""
    whole = run(creatures, tmp_path / "whole", masking=every_other, clip=1.0)
    parts = run(creatures, tmp_path / "parts", masking=every_other, clip=1.0, accumulate=4, checkpointing=True)

    assert parts == pytest.approx(whole, rel=2e-5)
    assert len(whole) == 2 * tiny.COUNT // tiny.BATCH
    for name in ("lr", "grad_norm"):
        found = [[line[name] for line in tiny.metrics(tmp_path / folder)] for folder in ("whole", "parts")]
        assert found[1] == pytest.approx(found[0], rel=1e-3), name


def test_every_batch_of_a_step_has_masks_of_its_own_and_a_resumed_run_the_same(
    creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []
    real = masks.mask_seed

    def spied(seed: int, step: int, place: int) -> int:
        drawn.append((step, place))
        return real(seed, step, place)

    monkeypatch.setattr(masks, "mask_seed", spied)
    whole = run(creatures, tmp_path / "whole", accumulate=2)
    assert drawn == [(step, place) for step in range(8) for place in (0, 1)]

    with tiny.interrupted("pretrain", step=6):
        run(creatures, tmp_path / "halves", accumulate=2)
    with tiny.every_step():
        semmae.pretrain(out=tmp_path / "halves", resume=True)
    assert tiny.losses(tmp_path / "halves") == whole
    tiny.assert_same_weights(tmp_path / "halves" / "encoder", tmp_path / "whole" / "encoder")


def test_a_residual_in_bf16_trains_alike_and_is_refused_where_all_else_is_float32(
    creatures: Path, tmp_path: Path
) -> None:
    with refused("--residual bf16", "--precision float32"):
        run(creatures, tmp_path / "run", residual="bf16")
    assert not (tmp_path / "run").exists()
    few = {"precision": "bf16", "limit": 16, "epochs": 1}
    found = [run(creatures, tmp_path / name, residual=name, **few) for name in ("float32", "bf16")]
    assert found[0] != found[1] and found[1] == pytest.approx(found[0], rel=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_fp16_without_a_gpu_is_refused_before_anything_is_written(creatures: Path, tmp_path: Path) -> None:
    with refused("--precision fp16", "CUDA"):
        run(creatures, tmp_path / "run", precision="fp16")
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_a_step_takes(creatures: Path, tmp_path: Path) -> None:
    assert len(run(creatures, tmp_path / "run", limit=5, accumulate=2, epochs=1)) == 1


def test_checkpointing_and_compiling_may_change_on_resume(creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.interrupted("pretrain", step=5):
        run(creatures, out)
    with tiny.every_step():
        semmae.pretrain(out=out, resume=True, checkpointing=True, compile="off")
    assert len(tiny.losses(out)) == 8
    with refused("--batch-size 16", "began with 8"):
        semmae.pretrain(out=out, resume=True, batch_size=16)
