"""The pictures of a run, as PNG sheets: parts over images, masks along the schedule, reconstructions.

- Images are uint8 (N, 3, H, W) RGB; part labels uint8 (N, G, G), 255 where not yet computed;
  masks bool (N, L), True = hidden.
- A label has the same colour in every picture. Colour-blind readers can distinguish the first eight: Okabe and
  Ito's seven and Tol's indigo; each further one is the colour farthest from all before it.
- Tiles are scaled before labels or masks are laid over them: the edges of parts and patches stay sharp.
- Sheets are drawn with PIL: no global drawing state, and the pixels are what was asked for.
"""

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, pad

from semmae.data.crop import at_centres
from semmae.data.segment_crops import resized, scaled_size
from semmae.files import open_regular, write_bytes
from semmae.sizes import grid_in

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

BACKGROUND = "background"
NOT_COMPUTED = 255
HIDDEN_GREY = 128

_FIRST_COLOURS = ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "332288")
BACKGROUND_SWATCH: Colour = (90, 90, 90)
_BACKGROUND_HEAT: Colour = (200, 200, 200)

# Linear RGB → cones → OKLab (Ottosson 2020), in which Euclidean distance is about perceived difference.
_TO_CONES = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
             (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
_TO_OKLAB = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
             (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip

_OPACITY = 0.65
_SOFTWARE = "semmae"  # in a PNG of ours
_TILE = 192  # the side of a tile that is aimed at, in pixels
_GAP, _GROUP_GAP, _MARGIN = 6, 26, 14
_TEXT = 18
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def label_colours(label_names: Sequence[str]) -> list[Colour | None]:
    """One colour per label, None for a background; a part's colour depends on its number only."""
    has_background = len(label_names) > 0 and label_names[0] == BACKGROUND
    parts: list[Colour | None] = list(_palette()[: len(label_names) - has_background])
    return [None, *parts] if has_background else parts


@cache
def _palette() -> tuple[Colour, ...]:
    """255 colours, as many as there can be labels: the first ones, then always the farthest from all before."""
    chosen = [(int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in _FIRST_COLOURS]
    steps = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    perceived = _oklab(candidates)
    lightness, chroma = perceived[:, 0], np.hypot(perceived[:, 1], perceived[:, 2])
    usable = (lightness > 0.4) & (lightness < 0.92) & (chroma > 0.06) & (chroma < 0.21)  # neither grey nor neon
    candidates, perceived = candidates[usable], perceived[usable]
    distance = np.full(len(candidates), np.inf)
    for colour in chosen:
        distance = np.minimum(distance, np.linalg.norm(perceived - _oklab(np.array([colour])), axis=1))
    while len(chosen) < NOT_COMPUTED:
        farthest = int(distance.round(6).argmax())  # rounded: ties must not be broken by the machine's last bit
        red, green, blue = candidates[farthest].tolist()
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(perceived - perceived[farthest], axis=1))
    return tuple(chosen)


def _oklab(colours: NDArray[np.int_]) -> NDArray[np.float64]:
    """sRGB 0 to 255 → OKLab, both (N, 3)."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lab: NDArray[np.float64] = np.cbrt(linear @ np.array(_TO_CONES).T) @ np.array(_TO_OKLAB).T
    return lab


def overlay(images: Tensor, labels: Tensor | Pixels, label_names: Sequence[str]) -> Tensor:
    """Part colours blended over images: uint8 (N, 3, H, W) and (N, G, G) → uint8 (N, 3, H, W).

    Background becomes grey at half brightness; pixels whose label is not yet computed (255) stay as they are.
    Raises ValueError for a label that has no name.
    """
    grid = torch.as_tensor(np.asarray(labels)).long()
    at_pixel = at_centres(grid, images.shape[-2], images.shape[-1]).unsqueeze(1)
    known = at_pixel != NOT_COMPUTED
    if bool((at_pixel[known] >= len(label_names)).any()):
        largest = int(at_pixel[known].max())
        raise ValueError(f"label {largest} has no name: there are {len(label_names)} label names")
    blended, grey = images.float(), _grey(images).expand_as(images)
    for label, colour in enumerate(label_colours(label_names)):
        tint = grey / 2 if colour is None else _tint(grey, torch.tensor(colour).view(1, 3, 1, 1))
        blended = torch.where(at_pixel == label, tint, blended)
    return blended.round().clamp(0, 255).to(torch.uint8)


def heat(image: Tensor, maps: Tensor | NDArray[np.floating], colours: Sequence[Colour | None]) -> Tensor:
    """Soft maps over one image: uint8 (3, H, W) and values from 0 to 1, (K, g, g) → uint8 (K, 3, H, W).

    Where a map is 1, pixels are those of `overlay` for that part (the background's light grey); where it is 0,
    those of its background; in between, a mixture.
    """
    values = torch.as_tensor(np.asarray(maps)).float()[None]
    strength = interpolate(values, image.shape[-2:], mode="bilinear", align_corners=False)[0].unsqueeze(1)
    grey = _grey(image[None])
    full = _tint(grey, torch.tensor([colour or _BACKGROUND_HEAT for colour in colours]).view(-1, 3, 1, 1))
    return ((1 - strength) * grey / 2 + strength * full).round().to(torch.uint8)


def spotlight(images: Tensor, regions: Tensor | NDArray[np.bool_], colours: Sequence[Colour]) -> Tensor:
    """A region of each image as it is, outlined; what is around it, dim: uint8 (N, 3, H, W), bool (N, H, W)."""
    inside = torch.as_tensor(np.asarray(regions)).unsqueeze(1)
    grown = max_pool2d(inside.float(), 5, stride=1, padding=2) > 0
    outline = torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1)
    around = (0.5 * (0.5 * images + 0.5 * _grey(images))).round().to(torch.uint8)
    return torch.where(inside, images, torch.where(grown, outline, around))


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images with their hidden patches in flat grey: uint8 (N, 3, H, W), bool (N, L) → uint8 (N, 3, H, W)."""
    return torch.where(_at_pixels(mask, images), torch.full_like(images, HIDDEN_GREY), images)


def paste(images: Tensor, mask: Tensor, reconstruction: Tensor) -> Tensor:
    """The reconstruction where patches were hidden, the image itself elsewhere; uint8 (N, 3, H, W)."""
    return torch.where(_at_pixels(mask, images), reconstruction, images)


def parts_picture(images: Tensor, labels: Tensor | Pixels, label_names: Sequence[str], path: Path) -> None:
    """Writes a sheet of pairs, image | parts, four pairs to a row, with a legend."""
    large = _to_tile_size(images)
    columns = [("image", large), ("parts", overlay(large, labels, label_names))]
    _write_sheet(path, columns, groups=4, legend=_legend(label_names))


def masks_picture(
    images: Tensor,
    labels: Tensor | Pixels | None,
    label_names: Sequence[str],
    masks: Sequence[tuple[str, Tensor]],
    path: Path,
) -> None:
    """Writes a sheet with a row per image: image | parts, where there are labels | under every (title, bool (N, L))."""
    large = _to_tile_size(images)
    parts = [] if labels is None else [("parts", overlay(large, labels, label_names))]
    columns = [("image", large), *parts, *((title, hide(large, mask)) for title, mask in masks)]
    _write_sheet(path, columns, legend=_legend(label_names) if parts else ())


def reconstructions_picture(
    images: Tensor, mask: Tensor, reconstruction: Tensor, path: Path, description: str = ""
) -> None:
    """Writes a sheet, two images to a row: image | visible patches | reconstruction | image.

    Of the reconstruction, uint8 (N, 3, H, W), the hidden patches are shown. `description_of` reads the description.
    """
    large, painted = _to_tile_size(images), _to_tile_size(paste(images, mask, reconstruction))
    columns = [("image", large), ("visible", hide(large, mask)), ("reconstruction", painted), ("image", large)]
    _write_sheet(path, columns, groups=2, description=description)


def segmentation_picture(
    images: Sequence[Tensor],
    columns: Sequence[tuple[str, Sequence[Tensor]]],
    names: Sequence[str],
    path: Path,
) -> None:
    """Writes a sheet with the image, uint8 (3, H, W), and under each (title, labels uint8 (H, W) of every image).

    Images are fitted into squares. Pixels labelled 255 stay as they are; the legend names the classes that occur.
    """
    shapes = [image.shape[1:] for image in images]
    sizes = [scaled_size(shape, 1, _TILE * min(shape) / max(shape)) for shape in shapes]
    small = [resized(image, *size) for image, size in zip(images, sizes, strict=True)]
    fitted = torch.stack([_in_square(image, _PAPER[0]) for image in small])
    shown, occurring = [("image", fitted)], set()
    for title, labels in columns:
        shrunk = [at_centres(own, *size) for own, size in zip(labels, sizes, strict=True)]
        square = torch.stack([_in_square(own, NOT_COMPUTED) for own in shrunk])
        shown.append((title, overlay(fitted, square, names)))
        occurring |= set(np.unique(square.numpy()).tolist())
    legend = [key for label, key in enumerate(_legend(names)) if label in occurring]
    _write_sheet(path, shown, groups=2, legend=legend)


def webp(image: Tensor) -> str:
    """An image, uint8 (3, H, W), as the data URI of a WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(_pixels(image)).save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _at_pixels(mask: Tensor, images: Tensor) -> Tensor:
    """bool (N, L) over the patches of images (N, 3, H, W), which are squares → bool (N, 1, H, W)."""
    height, width = images.shape[-2:]
    rows, columns = grid_in(mask.shape[-1], height, width)
    down, across = (torch.arange(side) * cells // side for side, cells in ((height, rows), (width, columns)))
    return mask.view(-1, rows, columns)[:, down][:, :, across].unsqueeze(1)


def _to_tile_size(images: Tensor) -> Tensor:
    """Small images grow by a whole factor (patches stay equal in size), large ones shrink to a long side of 224."""
    height, width = images.shape[-2:]
    longest = max(height, width)
    target = longest * max(1, round(_TILE / longest)) if longest <= 256 else 224
    if target == longest:
        return images
    size = (max(1, width * target // longest), max(1, height * target // longest))
    resized = [Image.fromarray(_pixels(image)).resize(size, Image.Resampling.LANCZOS) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)


def _in_square(image: Tensor, around: int) -> Tensor:
    """An image or its labels (…, H, W) in the middle of a tile, with a value around it."""
    down, across = (_TILE - side for side in image.shape[-2:])
    return pad(image, (across // 2, across - across // 2, down // 2, down - down // 2), value=around)


def _pixels(image: Tensor) -> Pixels:
    return image.permute(1, 2, 0).contiguous().numpy()


def _grey(images: Tensor) -> Tensor:
    """float (N, 1, H, W), 0 to 255."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _tint(grey: Tensor, colours: Tensor) -> Tensor:
    # Parts lie over the image in grey, its contrast halved: dark blue on white cloth must not look like
    # sky blue on black cloth, and the image's own colours must not shift those of the legend.
    return (1 - _OPACITY) * (64 + grey / 2) + _OPACITY * colours


def _legend(label_names: Sequence[str]) -> list[tuple[str, Colour]]:
    colours = label_colours(label_names)
    return [(name, colour or BACKGROUND_SWATCH) for name, colour in zip(label_names, colours, strict=True)]


@cache
def _font() -> ImageFont.FreeTypeFont:
    # The face that matplotlib ships: the same on every machine, and it has the Greek letters of the schedule.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _TEXT)


def _write_sheet(
    path: Path,
    columns: Sequence[tuple[str, Tensor]],
    groups: int = 1,
    legend: Sequence[tuple[str, Colour]] = (),
    description: str = "",
) -> None:
    """Writes a PNG: a row of tiles for each image under the titles of the columns, uint8 (N, 3, H, W) each.

    Up to `groups` such rows stand side by side.
    """
    headers = [title for title, _ in columns]
    placed = [_pixels(image) for row in zip(*(images for _, images in columns), strict=True) for image in row]
    sheet = _sheet(placed, headers, min(groups, len(placed) // len(headers)), legend)
    buffer, about = io.BytesIO(), PngInfo()
    about.add_text("Software", _SOFTWARE)
    if description:
        about.add_text("Description", description)
    # A level of 6 takes twice as long for a tenth of the bytes, `optimize` five times as long for little more.
    sheet.save(buffer, "PNG", pnginfo=about, compress_level=3)
    write_bytes(path, buffer.getvalue())


def _sheet(
    placed: Sequence[Pixels], headers: Sequence[str], groups: int, legend: Sequence[tuple[str, Colour]]
) -> Image.Image:
    """Tiles (H, W, 3), all alike, in reading order on paper: `groups` blocks of len(headers) columns side by side."""
    (height, side), columns = placed[0].shape[:2], len(headers) * groups
    group_gap = _GROUP_GAP - _GAP
    left = [_MARGIN + i * (side + _GAP) + i // len(headers) * group_gap for i in range(columns)]
    titles = [textwrap.fill(title, max(8, side // 11)) for title in headers]
    top = _MARGIN + (max(title.count("\n") for title in titles) + 1) * (_TEXT + 6) + 4
    bottom = top + math.ceil(len(placed) / columns) * (height + _GAP)
    width = left[-1] + side + _MARGIN
    keys, legend_bottom = _place_legend(legend, width, bottom + 6)
    sheet = Image.new("RGB", (width, legend_bottom + _MARGIN - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, x in enumerate(left):
        title = titles[column % len(headers)]
        middle = (x + side / 2, top - 8)
        draw.multiline_text(middle, title, _INK, _font(), anchor="md", align="center", spacing=6)
    for number, tile in enumerate(placed):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(tile), (left[column], top + row * (height + _GAP)))
    for x, y, name, colour in keys:
        draw.rounded_rectangle((x, y, x + _TEXT, y + _TEXT), 4, fill=colour)
        draw.text((x + _TEXT + 8, y + _TEXT / 2), name, _INK, _font(), anchor="lm")
    return sheet


def _place_legend(
    legend: Sequence[tuple[str, Colour]], width: int, top: int
) -> tuple[list[tuple[int, int, str, Colour]], int]:
    """(x, y, name, colour) of every key, wrapped into lines, and where the legend ends."""
    placed: list[tuple[int, int, str, Colour]] = []
    x, y = _MARGIN, top
    for name, colour in legend:
        needed = _TEXT + 8 + math.ceil(_font().getlength(name)) + 22
        if x > _MARGIN and x + needed > width:
            x, y = _MARGIN, y + _TEXT + 10
        placed.append((x, y, name, colour))
        x += needed
    return placed, y + _TEXT + _GAP if legend else top - 6


def description_of(path: Path) -> str | None:
    """What a PNG that this module drew says of itself; None of a file of another origin."""
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as picture:
            return str(picture.info.get("Description", "")) if picture.info["Software"] == _SOFTWARE else None
    except Exception:  # bytes of another origin fail in as many ways as there are bytes
        return None
