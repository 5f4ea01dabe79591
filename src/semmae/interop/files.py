"""Checkpoint files of any project → tensors by name; nothing in them is executed.

A pickle can hold code: files are read by the unpickler that builds tensors and plain values only. Beyond these
`argparse.Namespace` is let in, in which released checkpoints keep their options.
"""

import argparse
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from semmae.errors import UserError

_LOG = logging.getLogger("semmae")
# Where checkpoints of training scripts keep the weights, best first: DINO evaluates the teacher.
_WRAPPERS = ("teacher", "model", "state_dict", "student")
# First bytes of pickles: bare, and in the archive that torch writes.
_PICKLES = (b"\x80", b"P")


def read_weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors by name, out of whatever they were wrapped in, and the options saved beside them.

    Raises:
        UserError: no checkpoint, one with code or other objects inside, or without tensors.
    """
    content = read_file(path)
    options = vars(content["args"]) if isinstance(content.get("args"), argparse.Namespace) else {}
    state = content
    while wrapper := next((key for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None):
        others = [key for key in _WRAPPERS if key != wrapper and isinstance(state.get(key), Mapping)]
        _LOG.info("%s: weights taken from %r%s", path, wrapper, f", not from {others}" if others else "")
        state = state[wrapper]
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(str(key) for key in list(state)[:3]) or "nothing"
        raise UserError(f"{path}: holds no tensors by name (found {found}); give a state dict of a ViT")
    return tensors, options


def read_file(path: Path) -> Mapping[str, Any]:
    """The dictionary that a checkpoint file holds; nothing of it is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol: what matters is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail in as many ways as there are bytes.
        raise UserError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(content, Mapping):
        held = type(content).__name__
        raise UserError(f"{path}: holds a {held}, not tensors by name; save model.state_dict()")
    return content


def _fault(path: Path, error: Exception) -> str:
    """Why a file failed to load with this error, and the remedy."""
    remedy = "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds code ({code[1]}), which is never run; {remedy}"
    if isinstance(error, pickle.UnpicklingError):
        with path.open("rb") as file:
            if file.read(1) in _PICKLES:
                return f"holds objects other than tensors, which are never loaded; {remedy}"
    return f"not readable as a checkpoint ({type(error).__name__}); give a .pth, .pt, .bin or .safetensors file"
