"""How many cores a process may use."""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, such as "200000 100000": 0.2 s of each 0.1 s


def usable_cores() -> int:
    """Cores that this process may use: those that it is bound to, fewer where its container has less of their time."""
    # macOS does not say which these are: there all that it has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def own_cores(processes: int) -> int:
    """The share of one of so many processes on this machine; 1 at least."""
    own = os.environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_PROCID" in os.environ else ""
    if own.isdecimal():  # srun has dealt them out already, and may have bound each process to its own
        return max(1, min(usable_cores(), int(own)))
    return max(1, usable_cores() // max(1, processes))
