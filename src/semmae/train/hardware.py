"""What Lightning computes on, and Slurm as it is to see it."""

import warnings
from typing import Any

import torch
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]  # exported, not declared so
    SLURMEnvironment,
)

from semmae.run.ranks import started


def cluster() -> list[SLURMEnvironment]:
    """Slurm as it is wanted here: it ends a job by SIGTERM or SIGUSR1, answered as everywhere, with a checkpoint.

    Lightning's own answer would be another checkpoint in another place. Whether a job is put into the queue again is
    for its script to say (examples/slurm.sh).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that srun exists and is not used is no fault
        # torchrun may itself be started by srun, and then it sets the ranks.
        return [SLURMEnvironment(auto_requeue=False)] if started()[0] == "srun" and SLURMEnvironment.detect() else []


class OneEach(CUDAAccelerator):
    """GPUs of processes that see one each, as Slurm's --gpus-per-task=1 has it: for each it is the first."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """A place for every process of this machine."""
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """What each of them computes on."""
        return [torch.device("cuda", 0) for _ in devices]


def accelerator(devices: int) -> CUDAAccelerator | str:
    """What Lightning is to compute on; not MPS: Apple's GPUs have no float64, in which masks count."""
    if not torch.cuda.is_available():
        return "cpu"
    sees_one = devices > 1 and started()[0] is not None and torch.cuda.device_count() == 1
    return OneEach() if sees_one else "cuda"
