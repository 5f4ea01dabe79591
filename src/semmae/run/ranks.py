"""Which of several processes this one is: only the first one of the first node writes.

`torchrun` and `srun` start every process and give it its rank. Without them the command is given once on each node,
with MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment, and starts the other processes of its node itself.
"""

import os

from semmae.errors import UserError

_INTERACTIVE = ("bash", "interactive")  # names of Slurm's jobs in which nothing was started by srun
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # the first that is set counts

_node_begins_at: int | None = None  # of the process that begins another node than the first


def check_processes(nodes: int, devices: int) -> None:
    """Refuse another number of processes than was started, and nodes of which nothing says which one this is."""
    starter, count = started()
    asked = f"--nodes {nodes} --devices {devices}"
    if starter is not None and count != nodes * devices:
        raise UserError(
            f"{asked}: {nodes * devices} processes, and {starter} has started {count}; --devices are those of each "
            "node, so give --nodes, --devices and as many processes as their product"
        )
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "not given")
    if starter == "srun" and count > 1 and tasks != str(devices):
        raise UserError(
            f"{asked}: tasks per node are {tasks} for Slurm; start the job with --ntasks-per-node={devices}"
        )
    if nodes > 1 and starter is None and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise UserError(
            f"--nodes {nodes}: nothing says which node this is; start it by torchrun or srun, or on every node with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment"
        )


def take_rank(nodes: int, devices: int) -> None:
    """Know which process this is before any training; of those that begin a node only NODE_RANK says it."""
    global _node_begins_at
    _node_begins_at = None
    if nodes > 1 and started()[0] is None and "LOCAL_RANK" not in os.environ:
        _node_begins_at = int(os.environ.get("NODE_RANK", 0)) * devices


def is_rank_zero() -> bool:
    """Whether this process writes what all processes share."""
    if _node_begins_at is not None:  # before the environment: Lightning writes LOCAL_RANK there later
        return _node_begins_at == 0
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0)) == 0


def started() -> tuple[str | None, int]:
    """What has started this process among others, and how many they are; None where it was a user."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        return "srun", int(os.environ["SLURM_NTASKS"])
    return None, 1
