"""Checkpoints that are whole or not there, whenever the process is killed or the power fails."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from semmae.files import whole


class BesideCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames.

    Lightning's own writes to the system's folder for temporary files and moves the result; from one file
    system to another that is a copy, which a kill cuts off in the middle of the only checkpoint. The new one is on
    the disk before it takes the old one's place, and so is the renaming before training goes on.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`, a local file; there are no storage options."""
        if storage_options is not None:
            raise TypeError("a local file takes no storage options")
        with whole(Path(path), durable=True) as beside:
            torch.save(checkpoint, beside)
