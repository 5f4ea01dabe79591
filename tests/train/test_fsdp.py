"""What travels in bf16: gradients (`--gradients bf16`), weights of shards; by two processes of this machine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from semmae.masking import random_mask
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.fsdp import can_shard, shard, whole_state
from semmae.train.optimizer import adamw

STEPS = 3
Found = dict[str, Any]


class Loss(nn.Module):
    """A training step as DDP sees it: of a static graph it looks for tensors in what comes out, not inside of that."""

    def __init__(self, mae: MaskedAutoencoder) -> None:
        super().__init__()
        self.mae = mae

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        loss: Tensor = self.mae(images, mask, None, 12).loss
        return loss


def trained(way: str, rank: int = 0, ranks: int = 1) -> Found:
    """Losses of some steps, over all processes; the gradients of the first; the types of what is kept."""
    torch.manual_seed(0)
    mae = MaskedAutoencoder(Encoder(EncoderSpec(image_size=16, patch_size=4, width=24, depth=2, num_heads=3)),
                            DecoderSpec(24, 1, 3))  # fmt: skip
    images, noise = torch.randn(8, 3, 16, 16)[rank::ranks], torch.rand(8, 16)[rank::ranks]
    network: Any = Loss(mae)
    if way.startswith("ddp"):
        network = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)
        if way == "ddp, bf16":
            network.register_comm_hook(None, bf16_compress_hook)
    elif way.startswith("fsdp"):
        shard(mae, init_device_mesh("cpu", (ranks,)), bf16=way == "fsdp, bf16")
    optimizer = adamw(mae, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    losses, gradients = [], {}
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=way in ("alone, bf16", "fsdp, bf16")):
            loss = network(images, random_mask(noise, 0.75))
        loss.backward()
        if step == 0 and not way.startswith("fsdp"):
            gradients = {name: each.grad.clone() for name, each in mae.named_parameters() if each.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss.detach(), ranks))
    local = [each.to_local() if isinstance(each, DTensor) else each for each in mae.parameters() if each.requires_grad]
    kept = {each.dtype for each in (*local, *(m for state in optimizer.state.values() for m in state.values()))}
    state = whole_state(mae) if way.startswith("fsdp") else mae.state_dict()
    return {"losses": losses, "gradients": gradients, "kept": kept, "numbers": sum(each.numel() for each in local),
            "state": {name: each.clone() for name, each in state.items()}}  # fmt: skip


def mean(loss: Tensor, ranks: int) -> float:
    if ranks > 1:
        distributed.all_reduce(loss)
    return float(loss) / ranks


pytestmark = pytest.mark.skipif(not can_shard(), reason="torch is older than 2.7")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """What each of two processes finds, each way."""
    folder = tmp_path_factory.mktemp("two")

    def begun(rank: int) -> Forked:
        def work() -> None:
            store = distributed.FileStore(str(folder / "store"), 2)
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
            torch.save({way: trained(way, rank, 2) for way in ("ddp", "ddp, bf16", "fsdp, bf16")}, file(folder, rank))
            distributed.destroy_process_group()

        return Forked(work)

    for child in [begun(rank) for rank in range(2)]:
        assert child.ended(120) == 0, child.output
    return [torch.load(file(folder, rank), weights_only=False) for rank in range(2)]


def file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.pt"


def test_gradients_in_bf16_are_rounded_once_alike_in_all_processes(of_two: list[dict[str, Found]]) -> None:
    first, second = (found["ddp, bf16"]["gradients"] for found in of_two)
    exact, alone = of_two[0]["ddp"]["gradients"], trained("alone")["gradients"]
    assert all(torch.equal(first[name], second[name]) for name in alone)
    assert any(not torch.equal(first[name], exact[name]) for name in alone)
    for name, gradient in alone.items():
        largest = float(gradient.abs().max())
        assert torch.allclose(exact[name], gradient, rtol=1e-4, atol=1e-6 * largest), name
        assert torch.allclose(first[name], gradient, rtol=2**-6, atol=2**-6 * largest), name


def test_a_training_with_gradients_in_bf16_loses_nothing(of_two: list[dict[str, Found]]) -> None:
    found = of_two[0]["ddp, bf16"]
    assert found["losses"] == pytest.approx(trained("alone")["losses"], rel=1e-3)
    assert found["kept"] == {torch.float32}


def test_shards_compute_in_bf16_and_keep_float32(of_two: list[dict[str, Found]]) -> None:
    alone = trained("alone, bf16")
    for found in of_two:
        assert found["fsdp, bf16"]["losses"] == pytest.approx(alone["losses"], rel=1e-2)
        assert found["fsdp, bf16"]["kept"] == {torch.float32}
    shares = [found["fsdp, bf16"]["numbers"] for found in of_two]
    assert sum(shares) == alone["numbers"] and max(shares) < 0.6 * alone["numbers"]
    state = of_two[0]["fsdp, bf16"]["state"]
    assert state.keys() == alone["state"].keys()
    assert all(float((state[name] - each).abs().mean()) < 1e-3 for name, each in alone["state"].items())
