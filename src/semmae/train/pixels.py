"""What a network sees of a batch in training: pixels whose colours are changed as was drawn, and normalised."""

from torch import Tensor, nn

from semmae.data.colour import Changes, recoloured
from semmae.levels import PIXEL_TYPES, levels, of_channels
from semmae.models.vit import EncoderSpec


class Pixels(nn.Module):
    """uint8 (B, 3, H, W) and the changes of their colours (B,), if there are any → what an encoder sees, float32.

    As `normalise`, by numbers that lie on the device and are in no checkpoint: a step sends nothing there.
    """

    REGIONS = ("_normalised",)
    shift: Tensor
    scale: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.register_buffer("shift", of_channels(spec.mean), persistent=False)
        self.register_buffer("scale", of_channels(spec.std), persistent=False)

    def forward(self, images: Tensor, changes: Changes | None = None) -> Tensor:
        return self._normalised(images if changes is None else recoloured(images, changes))

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = levels(images) if images.dtype in PIXEL_TYPES else images
        return pixels.sub_(self.shift).div_(self.scale)
