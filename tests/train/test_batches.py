"""Fewer images than --batch-size: what is trained with, and at which rate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from pytorch_lightning.strategies import DDPStrategy
from refusals import refused
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.data import Dataset

import semmae
from semmae.data.samplers import EpochSampler
from semmae.train.batches import Training
from semmae.train.fsdp import ShardingStrategy
from semmae.train.trainer import _strategy


class Numbered(Dataset[dict[str, Any]]):
    """So many items, each its own number."""

    images = SimpleNamespace(shards=None)  # of none of which it is read

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"row": key[1]}


@pytest.mark.parametrize("images", [1, 5, 7, 8, 9, 15, 31, 32])
@pytest.mark.parametrize("split", [{}, {"accumulate": 2}, {"devices": 2}, {"nodes": 2, "devices": 2}])
def test_rate_and_steps_are_those_of_the_loader(images: int, split: dict[str, int]) -> None:
    """Counted in the batches that every rank is given."""
    how = Training(batch_size=8, workers=0, resume=False, **split)
    if -(-images // how.processes) < how.accumulate:
        with refused("--accumulate"):
            how.loader(Numbered(images))  # type: ignore[arg-type]
        return
    loader = how.loader(Numbered(images))  # type: ignore[arg-type]
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    seen, steps = 0, set()
    for rank in range(how.processes):
        sampler._num_replicas, sampler._rank = how.processes, rank
        batches = [len(batch["row"]) for batch in loader]
        seen += sum(batches)
        steps.add(len(batches) / how.accumulate)
    effective = how.effective(images)
    assert steps == {how.optimiser_steps(images, epochs=1)}
    assert seen == effective * steps.pop()
    assert how.scaled_rate(0.1, images) == pytest.approx(0.1 * effective / 256)
    assert effective == 8 if images >= 8 else effective <= max(images, how.batches)


@pytest.mark.parametrize("verb", ["teacher", "pretrain", "finetune"])
def test_the_rate_follows_the_images_of_a_step(verb: str, whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    """A large --batch-size trains as one that just takes all images: the same weights."""
    given: dict[str, Any] = {
        "data": creatures / "images",
        "limit": 10,
        "epochs": 1,
        "workers": 0,
        "precision": "float32",
    }
    if verb == "finetune":
        given |= {"encoder": whole_run, "val_every": 0, "min_lr": 0.0}
        folder, images = "classifier", 7
    else:
        given |= tiny.SIZE | ({"masking": "random", "warmup_share": 0.0} if verb == "pretrain" else {"knn_every": 0})
        given |= {"warmup_share": 0.0}
        folder, images = "encoder", 10
    for batch in (images, 4096):
        getattr(semmae, verb)(out=tmp_path / str(batch), batch_size=batch, **given)
    assert [tiny.metrics(tmp_path / str(batch))[0]["step"] for batch in (images, 4096)] == [1, 1]
    tiny.assert_same_weights(tmp_path / str(images) / folder, tmp_path / "4096" / folder)


def test_shards_sum_their_gradients_in_float32() -> None:
    with refused("--gradients bf16", "--strategy fsdp"):
        Training(strategy="fsdp", gradients="bf16", resume=False).check()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_graph_is_static_where_every_batch_is_summed(accumulate: int) -> None:
    how = Training(devices=2, accumulate=accumulate, gradients="bf16", resume=False)
    strategy = _strategy(how, static=True)
    assert isinstance(strategy, DDPStrategy)
    wanted = {"gradient_as_bucket_view": True, "broadcast_buffers": False, "static_graph": accumulate == 1}
    assert strategy._ddp_kwargs == wanted and strategy._ddp_comm_hook is bf16_compress_hook
    assert _strategy(Training(resume=False), static=True) == "auto"
    assert isinstance(_strategy(Training(strategy="fsdp", resume=False), static=True), ShardingStrategy)
