"""Checkpoint files of any project → what they hold; nothing in them is executed.

A pickle can hold code: files are read by the unpickler of torch that builds tensors and plain values only. What
training scripts keep beside their weights (options, numbers of numpy, paths) is let in by name, and each name stands
for a function or class of this file: nothing of numpy or pathlib is called with what a stranger's file holds.
"""

import argparse
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semmae.errors import UserError, listed, reason
from semmae.files import open_regular
from semmae.formats.choose import Chosen, choose

_LOG = logging.getLogger("semmae")
# First bytes of pickles: bare, and in the archive that torch writes.
_PICKLES = (b"\x80", b"P")
# Types of numpy's numbers, as it writes them: truth, integers, floats.
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
# No file of tensors stands for more values than four times its bytes: several names may share one tensor.
_SHARED = 4


def read_weights(path: Path) -> Chosen:
    """Tensors of the encoder in a checkpoint file, see `choose`."""
    content = read_file(path)
    chosen = choose(content)
    if not chosen.tensors:
        found = listed([str(key)[:40] for key in list(content)[:100]]) or "nothing"
        raise UserError(f"{path}: holds no tensors by name (found {found}); give a state dict of a ViT")
    _check_plain(path, chosen.tensors)
    if chosen.source:
        others = [source.rstrip(".") or "the file itself" for source in chosen.others]
        left = f", not from {listed(others)}" if others else ""
        _LOG.info("%s: weights taken from %s%s", path, chosen.source.rstrip("."), left)
    return chosen


def read_file(path: Path) -> Mapping[str, Any]:
    """The dictionary that a checkpoint file holds; UserError for other things than tensors and plain values in it."""
    try:
        open_regular(path).close()
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_archive(path)
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol: what matters is raised below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the path, or restore it") from error
    except Exception as error:
        # Bytes that are no checkpoint fail in as many ways as there are bytes.
        raise UserError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(content, Mapping):
        held = type(content).__name__
        raise UserError(f"{path}: holds a {held}, not tensors by name; save model.state_dict()")
    return content


def damaged_download(path: Path, subject: str, error: Exception) -> UserError:
    """The refusal of weights in the hub's cache that fail to load with this error: its library takes them as whole."""
    # The cache holds links; with the link alone removed, it would be made again.
    fault = f"is damaged, no weights of {subject} ({reason(error, 150)})"
    return UserError(f"{path.resolve()}: {fault}; remove it, and it is downloaded again where the hub can be reached")


class _Dtype:
    """What stands for numpy's type of a number."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


class _Passive:
    """What stands for objects that no encoder needs; of what they are made of, nothing is kept."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _number(dtype: Any, content: Any) -> float:
    """What stands for numpy's making of a number out of its type and bytes."""
    if not isinstance(dtype, _Dtype) or not _NUMBERS.fullmatch(dtype.code) or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a value of numpy that is no number")
    value: float = numpy.frombuffer(content, numpy.dtype(dtype.order + dtype.code), count=1)[0].item()
    return value


def _path(*parts: Any) -> str:
    """What stands for paths: their text."""
    return "/".join(part for part in parts if isinstance(part, str))


def _allowed() -> list[Any]:
    """What is let in beside torch's own list: (what stands for it, its name in the file)."""
    names = {
        argparse.Namespace: ["argparse.Namespace"],  # options of released checkpoints
        _number: ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"],
        _Dtype: ["numpy.dtype"],
        _path: [f"pathlib.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")]
        + [f"pathlib._local.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")],
        # Curves that mmengine keeps: arrays of numpy, and functions by `getattr`, which is not called.
        _Passive: [
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "builtins.getattr",
        ],
    }
    return [(stand_in, name) for stand_in, own in names.items() for name in own]


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its file: what torch writes is not compressed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it unpacks to more than its size")


def _check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """UserError where values are not those of the file, such as one number spread over gigabytes."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise UserError(f"{path}: {name[:80]} is no plain tensor of numbers; save the model in float32")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = path.stat().st_size
    if total > _SHARED * size:
        raise UserError(f"{path}: a file of {size} bytes that stands for {total} bytes of tensors; save it again")


def _fault(path: Path, error: Exception) -> str:
    """Why a file failed to load with this error, and the remedy."""
    remedy = "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds an object of {code[1][:80]}, which is never loaded: it could run code; {remedy}"
    if isinstance(error, pickle.UnpicklingError):
        with open_regular(path) as file:
            if file.read(1) in _PICKLES:
                return f"holds objects other than tensors, which are never loaded; {remedy}"
    # Other errors of torch speak of its own options.
    said = reason(error) if isinstance(error, ValueError | SafetensorError) else type(error).__name__
    return f"not readable as a checkpoint ({said}); give a .pth, .pt, .bin or .safetensors file"
