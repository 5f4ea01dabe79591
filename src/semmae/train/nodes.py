"""Several nodes: who starts the processes, which of them this one is, and what does not fit together.

`torchrun` and `srun` start every process and give it its rank. Without them the command is given once on each node,
with MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment, and starts the other processes of its node itself.
"""

import os
import warnings

from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]  # exported, not declared so
    SLURMEnvironment,
)
from pytorch_lightning.utilities import rank_zero_only

from semmae.errors import UserError

_INTERACTIVE = ("bash", "interactive")  # names of Slurm's jobs in which nothing was started by srun


def check_processes(nodes: int, devices: int) -> None:
    """Refuse another number of processes than torchrun or srun has started, and a node without a number of its own."""
    starter, started = _started()
    asked = f"--nodes {nodes} --devices {devices}"
    if starter is not None and started != nodes * devices:
        raise UserError(
            f"{asked}: {nodes * devices} processes, and {starter} has started {started}; --devices are those of each "
            "node, so give --nodes, --devices and as many processes as their product"
        )
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "not given")
    if starter == "srun" and started > 1 and tasks != str(devices):
        raise UserError(
            f"{asked}: tasks per node are {tasks} for Slurm; start the job with --ntasks-per-node={devices}"
        )
    if nodes > 1 and starter is None and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise UserError(
            f"--nodes {nodes}: nothing says which node this is; start it by torchrun or srun, or on every node with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment"
        )


def take_rank(nodes: int, devices: int) -> None:
    """Know which process this is before any training: only the first one of the first node writes.

    torchrun and srun give it, and so does the process that starts others on its node; of those that begin a node
    only NODE_RANK does.
    """
    if nodes > 1 and _started()[0] is None and "LOCAL_RANK" not in os.environ:
        rank_zero_only.rank = int(os.environ.get("NODE_RANK", 0)) * devices  # type: ignore[attr-defined]


def cluster() -> list[SLURMEnvironment]:
    """Slurm as it is wanted here: it ends a job by SIGTERM, which is answered as everywhere, with a checkpoint.

    Lightning's own answer would be another checkpoint in another place, and the same job put into the queue again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that srun exists and is not used is no fault
        # torchrun may itself be started by srun, and then gives the ranks.
        return [SLURMEnvironment(auto_requeue=False)] if _started()[0] == "srun" and SLURMEnvironment.detect() else []


def _started() -> tuple[str | None, int]:
    """What has started this process among others, and how many they are; None where it was a user."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        return "srun", int(os.environ["SLURM_NTASKS"])
    return None, 1
