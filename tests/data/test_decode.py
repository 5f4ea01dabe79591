"""Decoding is compared with Pillow, format by format; what is broken must say so."""

import importlib.util
import io
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from semmae.data import decode as module
from semmae.data.decode import decode

HEIGHT, WIDTH = 24, 40


def gradient() -> Image.Image:
    """Smooth, with no symmetry, so that every orientation differs."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 6, y * 10, (x + y) * 3], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_pillow(raw: bytes) -> torch.Tensor:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


PLAIN = {
    "jpeg": lambda: encode(gradient(), "JPEG"),
    "progressive": lambda: encode(gradient(), "JPEG", progressive=True),
    "gray jpeg": lambda: encode(gradient().convert("L"), "JPEG"),
    "cmyk jpeg": lambda: encode(gradient().convert("CMYK"), "JPEG"),
    "png": lambda: encode(gradient(), "PNG"),
    "gray png": lambda: encode(gradient().convert("L"), "PNG"),
    "two-colour png": lambda: encode(gradient().convert("1"), "PNG"),
    "palette png": lambda: encode(gradient().quantize(32), "PNG"),
    "4-bit palette png": lambda: encode(gradient().quantize(8), "PNG", bits=4),
    "webp": lambda: encode(gradient(), "WEBP"),
    "lossless webp": lambda: encode(gradient(), "WEBP", lossless=True),
    "bmp": lambda: encode(gradient(), "BMP"),
    "tiff": lambda: encode(gradient(), "TIFF", compression="tiff_lzw"),
    "cmyk tiff": lambda: encode(gradient().convert("CMYK"), "TIFF"),
    "gif": lambda: encode(gradient().quantize(32), "GIF"),
    "webp with exif": lambda: encode(gradient(), "WEBP", exif=exif(6)),
    "png with exif": lambda: encode(gradient(), "PNG", exif=exif(8)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_agrees_with_pillow(kind: str) -> None:
    raw = PLAIN[kind]()
    image = decode(raw)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    # JPEG and WebP decoders may round differently by one step.
    assert (image.int() - by_pillow(raw).int()).abs().max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    raw = encode(gradient(), "JPEG", quality=95, exif=exif(orientation))
    image = decode(raw)
    assert tuple(image.shape[1:]) == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert (image.int() - by_pillow(raw).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8(kind: str) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = decode(encode(Image.fromarray(eight * 257), kind))  # 257 = 65535 / 255
    assert torch.equal(image, torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[:4, :, 3], pixels[4:, :, 3] = 200, 255, 0  # top opaque, bottom clear
    image = decode(encode(Image.fromarray(pixels), kind, **options))
    assert image[:, 0, 0].tolist() == [200, 0, 0] and image[:, 7, 0].tolist() == [255, 255, 255]
    pixels[..., 3] = 51  # one fifth opaque
    image = decode(encode(Image.fromarray(pixels), kind, **options))
    assert image[:, 0, 0].tolist() == [244, 204, 204]


def test_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = decode(encode(image, "PNG", transparency=0))
    assert pixels[:, 0, 0].tolist() == [255, 255, 255] and pixels[:, 1, 1].tolist() == [0, 0, 255]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        raw = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(raw)[:, 3, 3].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    raw = encode(noise, kind)
    for keep in (12, len(raw) // 2, len(raw) * 9 // 10):
        with pytest.raises(ValueError, match=".") as caught:
            decode(raw[:keep])
        assert "\n" not in str(caught.value)


def test_reasons() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    floats = Image.fromarray(np.ones((4, 4), np.float32))
    for raw, reason in (
        (b"", "empty file"),
        (b"these are not the bytes of an image", "not an image"),
        (encode(noise, "JPEG")[:1000], "truncated"),
        (encode(floats, "TIFF"), "floating-point pixels"),
    ):
        with pytest.raises(ValueError, match=reason):
            decode(raw)


def photo(height: int = 640, width: int = 960) -> Image.Image:
    """Detail of all sizes, so that the file is large: a gradient under noise."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 1))
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("least", "divisor"), [(1, 8), (80, 8), (81, 4), (160, 4), (161, 2), (320, 2), (321, 1)])
def test_large_jpegs_come_no_smaller_than_needed(mode: str, least: int, divisor: int) -> None:
    raw = encode(photo().convert(mode), "JPEG", quality=95)
    whole, reduced = decode(raw), decode(raw, least)
    assert reduced.shape == (3, 640 // divisor, 960 // divisor) and reduced.dtype == torch.uint8
    if divisor == 1:
        assert torch.equal(reduced, whole)
    averaged = torch.nn.functional.avg_pool2d(whole.float(), divisor)
    assert (reduced - averaged).abs().mean() < 2  # of 255; the noise alone deviates by 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_photos_stand_upright(orientation: int) -> None:
    raw = encode(photo(), "JPEG", quality=95, exif=exif(orientation))
    whole, reduced = decode(raw), decode(raw, 80)
    assert reduced.shape == (3, whole.shape[1] // 8, whole.shape[2] // 8)
    assert (reduced - torch.nn.functional.avg_pool2d(whole.float(), 8)).abs().mean() < 2


def test_small_files_and_other_formats_are_never_reduced() -> None:
    flat = encode(Image.new("RGB", (960, 640), "red"), "JPEG")
    png = encode(photo(), "PNG")
    for raw in (flat, png):
        assert torch.equal(decode(raw, 1), decode(raw))


def test_a_truncated_photo_is_refused_at_any_size() -> None:
    raw = encode(photo(), "JPEG", quality=95)
    for keep in (len(raw) // 2, len(raw) * 9 // 10):
        with pytest.raises(ValueError, match="truncated"):
            decode(raw[:keep], 1)


def loaded_anew() -> ModuleType:
    """The module once more, as an interpreter would load it in which things are as they are now."""
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Hollow(ModuleType):
    """torchvision.io of a release that has given its decoders up."""


@pytest.mark.parametrize("gone", ["module", "functions", "libraries"])
def test_without_torchvisions_decoders_pillow_reads_everything(
    gone: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if gone == "libraries":
        monkeypatch.setattr(torch.ops, "image", object())
    else:
        monkeypatch.setitem(sys.modules, "torchvision.io", Hollow("torchvision.io") if gone == "functions" else None)
    bare = loaded_anew()

    for kind in PLAIN:
        raw = PLAIN[kind]()
        assert torch.equal(bare.decode(raw), by_pillow(raw)), kind
    large = encode(photo(), "JPEG", quality=95, exif=exif(6))
    assert torch.equal(bare.decode(large, 80), decode(large, 80))
    with pytest.raises(ValueError, match="truncated"):
        bare.decode(large[:5000])
    for _ in range(2):
        bare.tell_slow_decoder()
    assert [message.split(":")[0].split(" has ")[1] for message in caplog.messages] == [
        "no image decoders; Pillow reads all images, more slowly"
    ]


def test_where_torchvision_decodes_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    loaded_anew().tell_slow_decoder()
    assert caplog.messages == []


def test_what_libraries_warn_of_is_not_shown_to_users() -> None:
    """Neither the memory that is only read, nor that torchvision's decoders will go."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else only the first of a process, which was another test's
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.resetwarnings()
            module.decode(PLAIN["jpeg"]())
            assert any("not writable" in str(warning.message) for warning in told)  # there is something to hide
            told.clear()
            loaded_anew().decode(PLAIN["jpeg"]())
    finally:
        torch.set_warn_always(always)
    assert [str(warning.message) for warning in told] == []
