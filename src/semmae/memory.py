"""Memory of the process, where the C library slows work on a CPU by how it hands it out."""

import ctypes
import sys

# Names of <malloc.h>, and the largest value that its `int` takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_HIGHEST = 2**25  # that older releases of glibc take as the second


def keep_freed_memory() -> bool:
    """Let the process keep what it frees for the next step or image, which needs as much; whether it could be told.

    glibc gives large blocks back to the system at once. Every step then asks for them anew, page by page, each
    cleared first: a tenth and more of a training step on a CPU (docs/performance.md). The most that the process holds
    hardly changes. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # In this order: the trim threshold alone would stop glibc from adapting the other one, which begins low.
    told = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _HIGHEST)
    return bool(told and mallopt(_M_TRIM_THRESHOLD, _NEVER))
