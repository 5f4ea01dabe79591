"""Errors as one line: the user's whole message, and the machine's faults in our words."""

import re

from semmae.errors import DiskError, UserError, message

_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|out of memory|bad_alloc", re.I)
_PROCESS_LOST = re.compile(r"Connection (closed|reset) by|Broken pipe.*gloo|gloo.*Broken pipe", re.I)
# What NCCL says of a process that it misses; else it speaks of its own start, of GPUs or of the network.
_PEER_LOST = re.compile(r"remote process|prematurely|abort|time[d ]*out|timing out", re.I)
_WORKER_KILLED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)", re.I)


def machine_fault(error: Exception) -> str | None:
    """The line on a fault of the machine, whichever library raised it: disk, memory; None where it is ours."""
    if isinstance(error, UserError):
        return None
    if isinstance(error, DiskError):
        return message(error)
    from semmae.files import is_disk_fault  # not above: help needs none of it

    if is_disk_fault(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}{message(error)}; free space there, or use another disk, and give the same command again"
    text = str(error)
    # torch's own class of it, by name: torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        return "out of memory; use a smaller --batch-size or --image-size, or fewer --workers"
    if _WORKER_KILLED.search(text):
        return "a process that loads images was killed, as for want of memory; use fewer --workers"
    if "connectFullMesh failed" in text:
        return (
            "processes of other machines are not reached: Gloo took the interface of this machine's name, which may be "
            "the loopback; name the one that leads to them in GLOO_SOCKET_IFNAME"
        )
    of_nccl = isinstance(error, RuntimeError) and "nccl" in text.lower()
    if isinstance(error, RuntimeError) and (_PEER_LOST if of_nccl else _PROCESS_LOST).search(text):
        return "another process of this run was lost, as for want of memory; see what it wrote, and --resume"
    if of_nccl:
        return f"GPUs do not reach each other: {message(error)}; with NCCL_DEBUG=INFO in the environment NCCL says more"
    return None
