"""One image, in whatever form it is at hand, → the input of an encoder, as features of whole images are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from semmae.data.decode import MOST_BYTES, decode, picture_pixels
from semmae.data.deep import other_channels
from semmae.data.items import pixels, taken
from semmae.data.loaders import centre_cut, enough, normalise
from semmae.errors import UserError, reason
from semmae.files import read_bytes
from semmae.names import shown, user_path
from semmae.sizes import Size, around, sides

Colour = tuple[float, ...]


@dataclass(frozen=True)
class ImageTransform:
    """An image → float32 (3, *size): resized to cover the size, bicubic, its centre cut out, normalised.

    `WholeDataset` with fit="centre" and `normalise` compute the same, bit for bit. A call takes, all in RGB or grey:

    | what                                       | how it is read                                              |
    |--------------------------------------------|-------------------------------------------------------------|
    | a path                                     | decoded, upright by its EXIF block                          |
    | a picture of Pillow's                      | as it is; transparency on white, 16 bits cut to 8           |
    | an array, uint8 (H, W, 3) or (H, W)        | transparency, a fourth channel, on white                    |
    | a tensor, uint8 (3, H, W) or (1, H, W)     |                                                             |
    | a tensor of floats from 0 to 1, the same   | rounded to 8 bits: encoders are trained on nothing between  |

    or a list of such, for float32 (B, 3, *size).
    """

    size: Size  # pixels, a square's side or (height, width)
    mean: Colour  # for pixels from 0 to 1
    std: Colour
    crop_pct: float = 1.0  # share of each side that is shown, of a square of the short one

    def __call__(self, images: Any) -> Tensor:
        squares = self.squares(images if isinstance(images, list | tuple) else [images])
        inputs = normalise(squares, self.mean, self.std)
        return inputs if isinstance(images, list | tuple) else inputs[0]

    def squares(self, images: Sequence[Any]) -> Tensor:
        """uint8 (B, 3, *size): what is left to do is `normalise`, best on the device."""
        if not images:
            return torch.empty(0, len(self.mean), *sides(self.size), dtype=torch.uint8)
        resized = around(self.size, self.crop_pct)
        return torch.stack(
            [centre_cut(_pixels(image, enough(resized), len(self.mean)), resized, self.size) for image in images]
        )


def _pixels(image: Any, least: int, channels: int) -> Tensor:
    """uint8 (3, H, W), or uint16 (C, H, W); of a file, a short side of `least` pixels is enough (see `decode`)."""
    if isinstance(image, str | PathLike):
        path = user_path(fspath(image))
        try:
            return decode(read_bytes(path, MOST_BYTES), least, channels)
        except (OSError, ValueError) as error:
            wanted = "file" if other_channels(str(error)) is None else f"of {channels} channels"
            raise UserError(f"{path}: cannot be read ({reason(error)}); give an image {wanted}") from error
    if isinstance(image, Image.Image):
        try:
            return picture_pixels(image, channels)
        except (OSError, ValueError) as error:
            wanted = "give a picture of 8 bits a channel" if channels == 3 else taken(channels)
            raise UserError(f"{shown(image)}: cannot be read ({error}); {wanted}") from error
    return pixels(image, "what is given", channels)
