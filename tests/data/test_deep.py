"""Images of other than three channels: what files hold, at full range; RGB stays what it was."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from semmae.data import headers
from semmae.data.colour import GLOBAL_CHANCES, changes_of, draw_changes, recoloured, shift_colours
from semmae.data.decode import decode, upright_size
from semmae.data.endings import sort_files
from semmae.data.from_python import open_object
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import OtherChannels, open_images
from semmae.data.statistics import colours_of, measured_colours
from semmae.data.transform import ImageTransform
from semmae.levels import in_rgb, levels


def encoded(image: Image.Image, kind: str = "PNG", **how: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def array(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_read_whole(kind: str) -> None:
    values = np.arange(0, 65536, 113, dtype=np.uint16)[:570].reshape(19, 30)
    raw = encoded(Image.fromarray(values), kind)
    assert np.array_equal(decode(raw, channels=1)[0].numpy(), values)
    assert np.array_equal(decode(raw)[2].numpy(), values >> 8)  # among photos as ever


def test_grey_of_8_bits_and_colour_are_brought_to_the_same_range() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), channels=1)[0].numpy(), grey.astype(np.uint16) * 257)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    assert np.array_equal(
        decode(encoded(photo), channels=1)[0].numpy(), np.asarray(photo.convert("L")) * np.uint16(257)
    )
    four = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 4), np.uint8))
    assert np.array_equal(decode(encoded(four), channels=4).permute(1, 2, 0).numpy() // 257, np.asarray(four))


def test_arrays_are_read_as_they_lie() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 11, 5), np.uint16)
    found = decode(array(deep), channels=5)
    assert found.dtype == torch.uint16 and np.array_equal(found.permute(1, 2, 0).numpy(), deep)
    assert upright_size(array(deep)) == (8, 11)
    rgb = (deep[..., :3] >> 8).astype(np.uint8)
    assert np.array_equal(decode(array(rgb)).permute(1, 2, 0).numpy(), rgb)
    assert np.array_equal(decode(array(deep[..., :3])).permute(1, 2, 0).numpy(), rgb)
    assert np.array_equal(decode(array(rgb[..., 0]))[1].numpy(), rgb[..., 0])


@pytest.mark.parametrize(
    ("raw", "channels", "words"),
    [
        (array(np.zeros((4, 4, 5), np.uint16)), 3, "^5 channels, not 3$"),
        (array(np.zeros((4, 4, 5), np.uint16)), 4, "5 channels, not 4"),
        (array(np.zeros((4, 4, 5), np.float32)), 5, "float32"),
        (array(np.zeros((4, 4, 5, 2), np.uint8)), 5, "no image"),
        (array(np.array([{}], dtype=object)), 5, "object"),
        (array(np.zeros((9, 9, 5), np.uint16))[:-7], 5, "."),
        (b"\x93NUMPY\x01\x00", 5, "damaged"),
        (encoded(Image.new("RGB", (4, 4))), 5, "3 channels, not 5"),
    ],
)
def test_what_holds_no_such_image_is_said(raw: bytes, channels: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(raw, channels=channels)


def test_tiff_of_many_channels() -> None:
    tifffile = pytest.importorskip("tifffile")
    deep = np.random.default_rng(0).integers(0, 65536, (8, 11, 5), np.uint16)
    for order, pixels in (("contig", deep), ("separate", np.moveaxis(deep, -1, 0))):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig=order)
        assert np.array_equal(decode(file.getvalue(), channels=5).permute(1, 2, 0).numpy(), deep)
        assert upright_size(file.getvalue()) == (8, 11)  # which --check header asks for
        with pytest.raises(ValueError, match="5 channels, not 4"):
            decode(file.getvalue(), channels=4)
        with pytest.raises(ValueError, match="TIFF"):
            decode(file.getvalue()[:-700], channels=5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_of_other_channels_is_turned_upright_like_any_other(orientation: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 11, 5), np.uint8)
    tag = [(274, "H", 1, orientation, True)]
    raws = []
    for channels, kind in ((3, "rgb"), (4, "rgb"), (5, "minisblack")):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels[..., :channels], photometric=kind, planarconfig="contig", extratags=tag)
        raws.append(file.getvalue())
    upright = decode(raws[0]).int() * 257
    for raw, channels in zip(raws[1:], (4, 5), strict=True):
        image = decode(raw, channels=channels)
        assert torch.equal(image[:3].int(), upright)
        assert upright_size(raw) == tuple(image.shape[1:])


def test_tiff_packed_in_a_way_that_tifffile_alone_cannot_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 11, 4), np.uint8)
    raw = encoded(Image.fromarray(pixels, "CMYK"), "TIFF", compression="tiff_lzw")
    assert np.array_equal(decode(raw, channels=4).permute(1, 2, 0).numpy(), pixels.astype(np.uint16) * 257)

    def asarray(_: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    for kind, channels in (("minisblack", 5), ("rgb", 4)):  # Pillow opens the second one, in 8 bits
        file = io.BytesIO()
        tifffile.imwrite(file, np.zeros((8, 11, channels), np.uint16), photometric=kind, planarconfig="contig")
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="pip install imagecodecs"):
            patch.setattr(tifffile.TiffPageSeries, "asarray", asarray)
            decode(file.getvalue(), channels=channels)


def test_what_takes_too_much_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.zeros((8, 11, 5), np.uint8)
    tifffile.imwrite(file := io.BytesIO(), pixels, photometric="minisblack", planarconfig="contig")
    for raw in (file.getvalue(), array(pixels)):
        monkeypatch.setattr(headers, "_MOST_MEMORY", 2 * pixels.size)
        assert decode(raw, channels=5).shape == (5, 8, 11)
        monkeypatch.setattr(headers, "_MOST_MEMORY", 2 * pixels.size - 1)
        with pytest.raises(ValueError, match=f"{2 * pixels.size} bytes .* limit {2 * pixels.size - 1}"):
            decode(raw, channels=5)


def test_arrays_beside_pictures_are_none(tmp_path: Path) -> None:
    assert sort_files(["a.npy", "b.npy"]).decoded == 2
    assert sort_files(["a.npy", "b.png"]).images == ["b.png"]
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 2), np.uint8))
    assert open_images(tmp_path, channels=2).read(0).shape == (2, 8, 8)
    with refused("1 of 1 images", "2 channels, not 3"):  # what is known of them with two says nothing of three
        open_images(tmp_path)


def test_objects_files_and_transforms_give_the_same(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (40, 30, 5), np.uint16)
    np.save(tmp_path / "a.npy", deep)
    images = open_images(tmp_path, channels=5)
    mean, std = measured_colours(images)
    assert np.allclose(mean, deep.mean((0, 1)) / 65535, atol=1e-6)
    assert np.allclose(std, np.maximum((deep / 65535).std((0, 1)), 0), atol=1e-4)
    assert colours_of(images, "auto") == colours_of(images, "data") == (mean, std)
    with refused("'imagenet'", "3 channels", "have 5", "'data'"):
        colours_of(images, "imagenet")

    whole = WholeDataset(images, (16, 24), fit="centre")[0]["image"]
    seen = normalise(whole, mean, std)
    transform = ImageTransform((16, 24), mean, std)
    of_object = open_images([deep], channels=5)
    assert torch.equal(of_object.read(0), images.read(0)) and open_object([deep], None).channels == 3
    for given in (deep, torch.from_numpy(deep).permute(2, 0, 1), str(tmp_path / "a.npy")):
        assert torch.equal(transform(given), seen)
    with refused("2 channels, not 5", "(height, width, 5)"):
        transform(deep[..., :2])
    np.save(tmp_path / "two.npy", deep[..., :2])
    with refused("2 channels, not 5", "of 5 channels"):
        transform(tmp_path / "two.npy")


@pytest.mark.parametrize(
    ("image", "facts"),
    [
        (np.zeros((8, 9, 12), np.float32), ("an array of float32 (8, 9, 12)", "uint16")),
        (torch.zeros(12, 8, 9), ("a tensor of float32 (12, 8, 9)", "uint16")),
        (torch.zeros(12, 8, 9, dtype=torch.bfloat16), ("a tensor of bfloat16 (12, 8, 9)",)),
        (np.zeros((8, 9, 5), np.uint16), ("5 channels, not 12",)),
        (Image.new("RGB", (9, 8)), ("3 channels, not 12",)),
        ("a.npy", ("'a.npy'", "str")),
    ],
)
def test_what_is_taken_is_said_for_as_many_channels(image: object, facts: tuple[str, ...]) -> None:
    with refused("item 0", *facts, "(height, width, 12)", "(12, height, width)") as raised:
        open_images([(image, 7)], channels=12)
    assert ", 3)" not in str(raised.value) and "PIL" not in str(raised.value)


def test_some_of_other_channels_are_among_what_cannot_be_read(tmp_path: Path) -> None:
    """Of all, who asked for the channels says what to do; of some, these have to be converted."""
    for name in range(8):
        Image.new("RGBA" if name else "RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with refused("1 of 8 images", "3 channels, not 4", "convert") as raised:
        open_images(tmp_path, channels=4)
    assert not isinstance(raised.value, OtherChannels)
    with refused("8 of 8 images", "of 12 channels") as raised:
        open_images(tmp_path, channels=12)
    assert isinstance(raised.value, OtherChannels) and raised.value.found == 3 and "repair" not in str(raised.value)


def test_colours_are_changed_in_brightness_and_contrast_alone() -> None:
    """A matrix for three channels says both: for three alike it does to each what is done to every other number."""
    drawn = draw_changes(np.random.default_rng(3), GLOBAL_CHANCES)
    changes = changes_of(drawn)
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    wanted = shift_colours(grey.expand(-1, 3, -1, -1), changes.colours)[:, :1]
    one = shift_colours((grey.int() * 257).to(torch.uint16), changes.colours)
    assert torch.allclose(one, wanted, atol=1e-3)
    five = torch.randint(0, 65536, (2, 5, 8, 8), dtype=torch.int32).to(torch.uint16)
    assert recoloured(five, changes).shape == five.shape and recoloured(five, changes).max() <= 255


def test_what_is_looked_at_is_stretched() -> None:
    dark = torch.randint(0, 900, (2, 5, 6, 6), dtype=torch.int32).to(torch.uint16)
    shown = in_rgb(dark)
    assert shown.dtype == torch.uint8 and shown.shape == (2, 3, 6, 6)
    assert shown.flatten(1).amin(1).tolist() == [0, 0] and shown.flatten(1).amax(1).tolist() == [255, 255]
    photo = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    assert in_rgb(photo) is photo
    assert torch.equal(
        levels(torch.tensor([65535, 257], dtype=torch.int32).to(torch.uint16)), torch.tensor([255.0, 1.0])
    )
