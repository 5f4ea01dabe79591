"""Networks too large for every device to hold whole: shards of weights, gradients and optimiser (FSDP2).

Each block is gathered for its own forward and backward pass alone. Weights are kept in float32, gathered and computed
with in bf16 where that is the run's arithmetic, and gradients are summed in float32. Lightning has the strategy
(`ModelParallelStrategy`); ours are what is sharded, and checkpoints that are whole or not there.
"""

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from semmae.errors import UserError
from semmae.files import PART, make_folder, move_into_place


class ShardingStrategy(ModelParallelStrategy):
    """Checkpoints are folders that any number of processes reads, each written beside its place and moved there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """All processes write their shards, then the first one lets the new folder take the old one's place."""
        path = Path(filepath)
        fresh = path.with_name(f".{path.name}.new{PART}")
        if self.global_rank == 0:
            make_folder(path.parent)
            shutil.rmtree(fresh, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.global_rank == 0:
            move_into_place(fresh, path, durable=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Weights and optimiser into their shards, the rest returned; nothing in it is executed."""
        try:
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        except Exception as error:  # bytes that are no checkpoint fail in as many ways as there are bytes
            raise UserError(
                f"{checkpoint_path}: not readable as a checkpoint ({type(error).__name__}); restore it from a copy, or "
                "begin anew with --overwrite"
            ) from error


def can_shard() -> bool:
    """Whether torch leaves weights whole that are to stay so, which it can from 2.7 on."""
    return "ignored_params" in inspect.signature(fully_shard).parameters


def shard(network: nn.Module, mesh: DeviceMesh, *, bf16: bool) -> None:
    """Deal a network's weights out over the devices of a mesh: every block by itself, all else together.

    What is not trained, positions above all, stays whole and in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    given: dict[str, Any] = {"mesh": mesh} | ({"mp_policy": policy} if policy else {})
    given["ignored_params"] = {parameter for parameter in network.parameters() if not parameter.requires_grad}
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, **given)
    fully_shard(network, **given)


def whole_state(network: nn.Module) -> Mapping[str, Tensor]:
    """All weights, on the CPU, of a network in shards, by all processes at once; empty but in the first one."""
    state: Any = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(state)
