"""Decoding is compared with Pillow, format by format; what is broken must say so."""

import importlib.util
import io
import struct
import sys
import warnings
import zlib
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from semmae.data import decode as module
from semmae.data.decode import SUFFIXES, decode, decode_labels, upright_size

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
if ".avif" in SUFFIXES:
    PLAIN["avif"] = lambda: encode(gradient(), "AVIF")
if ".heic" in SUFFIXES:
    PLAIN["heic"] = lambda: encode(gradient(), "HEIF")


@pytest.mark.parametrize("kind", PLAIN)
def test_agrees_with_pillow(kind: str) -> None:
    raw = PLAIN[kind]()
    image = decode(raw)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    # Decoders of JPEG may round differently by one step.
    assert (image.int() - by_pillow(raw).int()).abs().max() <= int(raw.startswith(b"\xff\xd8"))
    assert upright_size(raw) == tuple(image.shape[1:])


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def with_xmp(image: Image.Image, kind: str, orientation: int, **options: object) -> bytes:
    """A file whose XMP gives an orientation."""
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
        return encode(image, kind, pnginfo=info, **options)
    if kind == "TIFF":
        return encode(image, kind, tiffinfo={700: xmp(orientation)}, **options)
    return encode(image, kind, xmp=xmp(orientation), **options)


TURNS = {  # what EXIF calls 2 to 8
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
TURNED = [*LOSSLESS, "JPEG", *(("AVIF",) if ".avif" in SUFFIXES else ())]


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    options = LOSSLESS.get(kind, {"quality": 95})
    plain = encode(gradient(), kind, **options)
    expected = Image.open(io.BytesIO(plain)).convert("RGB")
    if orientation in TURNS:
        expected = expected.transpose(TURNS[orientation])
    raw = encode(gradient(), kind, exif=exif(orientation), **options)
    image, expected = decode(raw), torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert tuple(image.shape[1:]) == upright_size(raw) == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert (image.int() - expected.int()).abs().max() <= int(kind == "JPEG")


@pytest.mark.parametrize("endian", ["<", ">"])
def test_an_orientation_among_other_entries_in_both_orders_of_bytes(endian: str) -> None:
    block = Image.Exif()
    block.endian = endian
    for tag, value in ((0x010F, "maker"), (0x0112, 6), (0x011A, 72.0), (0x0132, "2024:01:01 00:00:00")):
        block[tag] = value
    for kind in ("JPEG", "PNG"):
        turned, plain = (encode(gradient(), kind, exif=exif) for exif in (block.tobytes(), b""))
        assert torch.equal(decode(turned), decode(plain).rot90(-1, (1, 2)))


@pytest.mark.parametrize("kind", TURNED)
def test_orientation_of_xmp_counts_for_nothing(kind: str) -> None:
    options = LOSSLESS.get(kind, {"quality": 95})
    plain, turned = encode(gradient(), kind, **options), encode(gradient(), kind, exif=exif(6), **options)
    alone = with_xmp(gradient(), kind, 6, **options)
    assert torch.equal(decode(alone), decode(plain)) and upright_size(alone) == (HEIGHT, WIDTH)
    if kind != "TIFF":  # Pillow takes one of the two there
        contradicting = with_xmp(gradient(), kind, 3, exif=exif(6), **options)
        assert torch.equal(decode(contradicting), decode(turned)) and upright_size(contradicting) == (WIDTH, HEIGHT)


BROKEN = [
    b"",
    b"no EXIF",
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",  # its directory lies beyond its end
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02six\0\0\0\0\0",  # the orientation is a text
    exif(0).tobytes(),
    exif(9).tobytes(),
]


@pytest.mark.parametrize("block", BROKEN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_is_none(kind: str, block: bytes) -> None:
    raw = encode(gradient(), kind, exif=block)
    assert torch.equal(decode(raw), decode(encode(gradient(), kind))) and upright_size(raw) == (HEIGHT, WIDTH)


def test_exif_may_follow_the_pixels_of_a_png() -> None:
    raw = encode(gradient(), "PNG", exif=exif(6))
    at = raw.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
    last = raw[:at] + raw[end:-12] + raw[at:end] + raw[-12:]
    assert torch.equal(decode(last), decode(raw)) and upright_size(last) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("first", ["xmp", "exif"])
def test_which_block_of_a_jpeg_comes_first_is_of_no_account(first: str) -> None:
    raw = encode(gradient(), "JPEG", exif=exif(6), quality=95)
    at = raw.index(b"Exif") - 4
    content = b"http://ns.adobe.com/xap/1.0/\0" + xmp(3)
    segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    if first == "exif":
        at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    assert torch.equal(decode(raw[:at] + segment + raw[at:]), decode(raw))


def test_labels_are_read_as_stored_and_turned_as_photos_are() -> None:
    stored = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    grey = Image.fromarray(stored)
    palette = Image.fromarray(stored, "L").copy()
    palette.putpalette(np.random.default_rng(0).permutation(256).astype(np.uint8).repeat(3).tobytes())
    for image in (grey, palette):
        for kind in ("PNG", "BMP", "TIFF", "GIF"):
            np.testing.assert_array_equal(decode_labels(encode(image, kind)), stored)
        turned = decode_labels(encode(image, "PNG", exif=exif(6)))
        np.testing.assert_array_equal(turned, np.rot90(stored, -1))
    with pytest.raises(ValueError, match="mode RGB"):
        decode_labels(encode(gradient(), "PNG"))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("colour", [0, 3])  # grey, palette
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_are_those_of_the_file(bits: int, colour: int) -> None:
    """Written by hand: each row is a byte of filter and its labels, packed from the high bits on."""
    stored = np.random.default_rng(bits).integers(0, 2**bits, (5, 11)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].reshape(5, -1), axis=-1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 11, 5, bits, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour else b""
    rows = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)))
    raw = b"\x89PNG\r\n\x1a\n" + header + palette + rows + chunk(b"IEND", b"")
    labels = decode_labels(raw)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, stored)


def test_labels_of_one_bit_in_other_formats() -> None:
    stored = np.random.default_rng(0).integers(0, 2, (5, 11)).astype(bool)
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode_labels(encode(Image.fromarray(stored), kind)), stored)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16", "1"])
def test_large_images_are_made_rgb_band_by_band(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = gradient()
    if mode == "RGBA":
        image.putalpha(image.convert("L"))
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    raw = encode(image, "PNG", **({"transparency": 3} if mode in ("P", "L") else {}))
    whole = decode(raw)
    monkeypatch.setattr(module, "_BAND", 7 * WIDTH)
    assert torch.equal(decode(raw), whole)


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
@pytest.mark.parametrize("given_in", ["exif", "xmp", "both"])
def test_photos_stand_as_upright_at_every_size(orientation: int, given_in: str) -> None:
    options = {"quality": 95} | ({} if given_in == "xmp" else {"exif": exif(orientation)})
    other = orientation if given_in == "xmp" else 9 - orientation
    raw = encode(photo(), "JPEG", **options) if given_in == "exif" else with_xmp(photo(), "JPEG", other, **options)
    whole, size = decode(raw), upright_size(raw)
    assert tuple(whole.shape[1:]) == size == ((640, 960) if given_in == "xmp" or orientation < 5 else (960, 640))
    for least, divisor in ((80, 8), (320, 2), (640, 1)):
        reduced = decode(raw, least)
        assert reduced.shape == (3, size[0] // divisor, size[1] // divisor)
        assert (reduced - torch.nn.functional.avg_pool2d(whole.float(), divisor)).abs().mean() < 2


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


def test_where_torchvision_decodes_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    loaded_anew().tell_slow_decoder()
    assert caplog.messages == []


def test_what_libraries_warn_of_is_not_shown_to_users() -> None:
    """Neither the memory that is only read, nor that torchvision's decoders will go."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else only the first of a process, which was another test's
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.resetwarnings()
            module.decode(PLAIN["jpeg"]())
            assert any("not writable" in str(warning.message) for warning in raised)  # there is something to hide
            raised.clear()
            loaded_anew().decode(PLAIN["jpeg"]())
    finally:
        torch.set_warn_always(always)
    assert [str(warning.message) for warning in raised] == []
