"""Whether `torch.compile` takes part in a training: asked for, or because it will earn its time back."""

import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from semmae.errors import UserError
from semmae.options.shared import Compile

# Compiling forward and backward takes one to three minutes; a GPU's step gets some hundredths of a second shorter.
_EARNED_BACK = 5_000  # steps

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
