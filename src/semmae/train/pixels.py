"""What a network sees of a batch in training: pixels whose colours are changed as was drawn, and normalised."""

import torch
from torch import Tensor, nn

from semmae.data.colour import Changes, recoloured
from semmae.data.loaders import of_channels
from semmae.models.vit import EncoderSpec


class Pixels(nn.Module):
    """uint8 (B, 3, H, W) and the changes of their colours (B,), if there are any → what an encoder sees, float32.

    As `normalise`, by numbers that lie on the device and are in no checkpoint: a step sends nothing there.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.register_buffer("shift", of_channels(spec.mean), persistent=False)
        self.register_buffer("scale", of_channels(spec.std), persistent=False)

    def forward(self, images: Tensor, changes: Changes | None = None) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError(f"images of {images.dtype}, not torch.uint8; give them as decoded, 0 to 255")
        if changes is None:
            pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        else:
            pixels = recoloured(images, changes)
        return pixels.sub_(self.shift).div_(self.scale)
