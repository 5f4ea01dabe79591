"""Memory of the process, where the C library slows work on a CPU by how it hands it out.

Its settings hold for the whole process: also for what a notebook does after training. So the verbs called from
Python give back what they kept when they return (`memory_given_back`); a process of the command line ends anyway.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Names of <malloc.h>, and the largest value that its `int` takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_HIGHEST = 2**25  # that older releases of glibc take as the second, and that all reach by themselves

_kept = False


def keep_freed_memory() -> bool:
    """Let the process keep what it frees for the next step or image, which needs as much; whether it took the setting.

    glibc gives large blocks back to the system at once, and every step asks for them anew, page by page, each cleared
    first: 4 to 34 % of a training step on a CPU (docs/performance.md). The process holds what it held at most to its
    end, or until `memory_given_back` ends around it. Other C libraries are left as they are.
    """
    global _kept
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    # In this order: the trim threshold alone would stop glibc from adapting the other one, which begins low.
    taken = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _HIGHEST)
    _kept = bool(taken and mallopt(_M_TRIM_THRESHOLD, _NEVER))
    return _kept


@contextmanager
def memory_given_back() -> Iterator[None]:
    """What `keep_freed_memory` begins inside ends with the block: what is free goes to the system, then and later.

    The thresholds become the highest that glibc takes by itself where large blocks are freed: it cannot be made to
    adapt them again. What was kept already when the block began stays so.
    """
    global _kept
    before = _kept
    try:
        yield
    finally:
        mallopt, trim = _function("mallopt"), _function("malloc_trim")
        if _kept and not before and mallopt is not None and trim is not None:
            mallopt(_M_MMAP_THRESHOLD, _HIGHEST)
            mallopt(_M_TRIM_THRESHOLD, 2 * _HIGHEST)
            trim(0)
            _kept = False


def _function(name: str) -> Callable[..., Any] | None:
    """A function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
