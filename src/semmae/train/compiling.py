"""Whether `torch.compile` takes part in a training: asked for, or because it will earn its time back."""

import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn

from semmae.errors import UserError
from semmae.options.shared import Compile

# Compiling forward and backward takes one to three minutes; a GPU's step gets some hundredths of a second shorter.
_EARNED_BACK = 5_000  # steps

# Graphs of one function: blocks that differ in how often they are left out have one each, and so have widths.
_MOST_GRAPHS = 128

_log = logging.getLogger("semmae")


def compile_pays(gpu: bool, steps: int) -> bool:
    """Whether a run of so many optimiser steps earns back the minutes that compiling takes."""
    return gpu and steps >= _EARNED_BACK


def check_compile(choice: Compile) -> None:
    """Refuse `on` where something that compiling needs is missing."""
    missing = missing_for_compile(torch.cuda.is_available()) if choice == "on" else None
    if missing:
        raise UserError(f"--compile on: needs {missing}, which is not here; install it, or use --compile off")


def resolve_compile(choice: Compile, steps: int) -> bool:
    """Whether to compile a run of so many optimiser steps on this machine."""
    gpu = torch.cuda.is_available()
    if choice != "auto":
        return choice == "on"
    if not compile_pays(gpu, steps):
        return False
    missing = missing_for_compile(gpu)
    if missing:
        _log.warning("not compiled, which would be faster: needs %s, which is not here", missing)
    return missing is None


def missing_for_compile(gpu: bool) -> str | None:
    """What is missing of what torch.compile builds its kernels with; None if nothing is."""
    if gpu and importlib.util.find_spec("triton") is None:
        return "Triton (the package triton)"
    # Both build C code: for a CPU the kernels themselves, for a GPU what launches them.
    if gpu:
        known = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    else:
        known = [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")]
    if not any(shutil.which(name) for name in known):
        return f"a {'C' if gpu else 'C++'} compiler ({' or '.join(known)})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"Python's headers ({header})"
    return None


@contextmanager
def compiled(network: nn.Module, on: bool = True, backend: str = "inductor") -> Iterator[None]:
    """Inside, every block of a network, and what it names as `REGIONS`, runs compiled where gradients are computed.

    Each is a whole graph of its own: hooks of modules, checkpoints and the gathering of shards stay around them, and
    alike blocks share one. Names of parameters stay, and so does what runs without gradients, in batches of other
    sizes. Every batch has the same shape: the last, short one of an epoch is left out.
    """
    if not on:
        yield
        return
    blocks = [(block, "forward") for block in network.modules() if isinstance(block, Block | EvaBlock)]
    regions = [(module, name) for module in network.modules() for name in getattr(module, "REGIONS", ())]
    word = "recompile" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size"  # as in torch 2.6
    settings: dict[str, Any] = {f"{word}_limit": _MOST_GRAPHS, f"accumulated_{word}_limit": 4 * _MOST_GRAPHS}
    # DDP sends the gradients of a block when its graph has run backward: there is nothing to split it for.
    with torch._dynamo.config.patch(settings | {"optimize_ddp": False}):
        try:
            for module, name in blocks + regions:
                setattr(module, name, _for_gradients(getattr(module, name), backend))
            yield
        finally:
            for module, name in blocks + regions:
                vars(module).pop(name, None)


def _for_gradients(plain: Callable[..., Any], backend: str) -> Callable[..., Any]:
    fast = torch.compile(plain, fullgraph=True, dynamic=False, backend=backend)
    return lambda *given, **named: (fast if torch.is_grad_enabled() else plain)(*given, **named)
