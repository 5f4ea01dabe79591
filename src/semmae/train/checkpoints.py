"""Checkpoints that are whole or not there, whenever the process is killed or the power fails; and read with suspicion.

A file may be cut by a copy that broke off, be another run's, or hold numbers that are not finite: it is looked at
before training continues with it, for what would come of that fails in the middle of Lightning, or not at all.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from semmae.errors import UserError
from semmae.files import open_regular, whole

# What Lightning cannot go on without, by type.
_NEEDED: Mapping[str, type] = {
    "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict,
    "epoch": int, "global_step": int, "pytorch-lightning_version": str,
}  # fmt: skip


class CheckedCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames; reads only what fits.

    Lightning's own writes to the system's folder for temporary files and moves the result; from one file
    system to another that is a copy, which a kill cuts off in the middle of the only checkpoint. The new one is on
    the disk before it takes the old one's place, and so is the renaming before training goes on.
    What fits has the names and shapes of `state`, that of the task that goes on.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`."""
        assert storage_options is None, "a local file takes none"
        with whole(Path(path), durable=True) as beside:
            torch.save(checkpoint, beside)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """The checkpoint, nothing in it executed; one that is damaged, of another task or not finite is refused."""
        remedy = "restore it from a copy, or begin anew with --overwrite"
        try:
            open_regular(Path(path)).close()
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # bytes that are no checkpoint fail in as many ways as there are bytes
            raise UserError(f"{path}: not readable as a checkpoint ({type(error).__name__}); {remedy}") from error
        fault = self._fault(checkpoint)
        if fault is not None:
            raise UserError(f"{path}: {fault}; {remedy}")
        return dict(checkpoint)

    def _fault(self, checkpoint: Any) -> str | None:
        """What keeps training from going on with it; None where nothing does."""
        if not isinstance(checkpoint, dict):
            return f"holds a {type(checkpoint).__name__}, no checkpoint of a training"
        absent = [name for name, kind in _NEEDED.items() if not isinstance(checkpoint.get(name), kind)]
        if absent:
            return f"no checkpoint of a training ({', '.join(absent[:3])} missing)"
        state = checkpoint["state_dict"]
        if {name: tuple(tensor.shape) for name, tensor in _tensors(state)} != self._shapes:
            return "the checkpoint of another network than this run trains"
        if "fit_loop" not in checkpoint["loops"]:
            return "no checkpoint of a training (fit_loop missing)"
        broken = next((name for name, tensor in _tensors(state) if not _is_finite(tensor)), None)
        if broken is not None:
            return f"{broken} is not finite"
        for name in ("optimizer_states", "lr_schedulers"):
            if not all(map(_is_finite, _numbers(checkpoint[name]))):
                return f"{name} is not finite"
        return None


def _tensors(state: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))


def _numbers(value: Any, depth: int = 8) -> Iterable[Tensor | float]:
    """The numbers in lists and dictionaries, however deep; a dictionary that holds itself ends too."""
    if isinstance(value, Tensor | float):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner, depth - 1)


def _is_finite(number: Tensor | float) -> bool:
    if isinstance(number, float):
        return math.isfinite(number)
    return not number.is_floating_point() or bool(number.isfinite().all())
