"""Damaged and hostile files of every format, in a process of their own: each gives pixels or a ValueError.

What happens to whole ones is in `test_decode.py`.
"""

import io
import mmap
import os
import random
import resource
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile  # noqa: F401 - here, not in the time that a decoder takes
from forked import Forked
from PIL import Image
from refusals import refused

from semmae.data import decode as module, headers
from semmae.data.decode import SUFFIXES, decode, decode_labels, upright_size
from semmae.data.manifest import build_manifest
from semmae.data.segmentation import read_annotation
from semmae.data.sources import open_source

FILES = 1500  # damaged ones of each format
HEIGHT, WIDTH = 48, 64


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 1))
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def interlaced() -> bytes:
    """A colour PNG in the seven passes of Adam7, which Pillow does not write."""
    pixels, rows = np.asarray(photo()), b""
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
    ):  # fmt: skip
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def whole_files() -> dict[str, list[bytes]]:
    """Format → files of its forms."""
    rgb, grey = photo(), photo().convert("L")
    cmyk, palette, rgba = photo().convert("CMYK"), photo().quantize(64), photo()
    rgba.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files = {
        "JPEG": [
            *(encode(image, "JPEG", progressive=p) for image in (rgb, grey, cmyk) for p in (False, True)),
            encode(rgb, "JPEG", quality=95, subsampling=0, restart_marker_blocks=4),
        ],
        "PNG": [
            *(encode(image, "PNG") for image in (rgb, grey, palette, rgba, deep, photo().convert("1"))),
            encode(palette, "PNG", transparency=3),
            interlaced(),
        ],
        "WEBP": [
            *(encode(rgb, "WEBP", lossless=lossless) for lossless in (False, True)),
            encode(rgba, "WEBP"),
            encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        ],
        "BMP": [encode(image, "BMP") for image in (rgb, palette, grey)],
        "TIFF": [
            *(encode(rgb, "TIFF", compression=how) for how in (None, "tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
            encode(photo().convert("1"), "TIFF", compression="group4"),
            encode(deep, "TIFF"),
        ],
        "GIF": [encode(palette, "GIF"), encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)])],
    }
    if ".avif" in SUFFIXES:
        files["AVIF"] = [encode(image, "AVIF") for image in (rgb, grey, rgba)]
    if ".heic" in SUFFIXES:
        files["HEIF"] = [encode(image, "HEIF") for image in (rgb, rgba)]
    return files


def flip_middle(raw: bytearray, rng: random.Random) -> None:
    raw[len(raw) // 2] ^= 0xFF


def flip_bits(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 3, 10, 50])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def cut(raw: bytearray, rng: random.Random) -> None:
    del raw[rng.randrange(1, len(raw)) :]


def zero_tail(raw: bytearray, rng: random.Random) -> None:
    at = rng.randrange(1, len(raw) - 8)
    raw[at:] = bytes(len(raw) - at)


def false_header(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 4])):
        raw[rng.randrange(min(200, len(raw)))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])


def noise(raw: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(raw))
    end = min(len(raw), at + rng.randrange(64))
    raw[at:end] = rng.randbytes(end - at)


def lose_or_repeat(raw: bytearray, rng: random.Random) -> None:
    begin, end = rng.randrange(len(raw)), rng.randrange(len(raw))
    raw[begin:] = raw[end:]


def swap_magic(raw: bytearray, rng: random.Random) -> None:
    raw[:12] = rng.choice([files[0][:12] for files in WHOLE.values()])


DAMAGES = (flip_middle, flip_bits, cut, zero_tail, false_header, noise, lose_or_repeat, swap_magic)
WHOLE = whole_files()


def damaged(kind: str) -> Iterator[bytes]:
    """`FILES` of them, each form with each damage."""
    rng, forms = random.Random(0), WHOLE[kind]
    for number in range(FILES):
        raw = bytearray(forms[number % len(forms)])
        DAMAGES[number // len(forms) % len(DAMAGES)](raw, rng)
        yield bytes(raw)


def crashes(work: Callable[[int], None], count: int) -> list[tuple[int, str]]:
    """Does pieces of work by number in another process, and says which ended it, and how.

    After each such end the next process goes on behind it.
    """
    found, at = [], mmap.mmap(-1, 8)

    def go_on(begin: int) -> None:
        for number in range(begin, count):
            at[:] = number.to_bytes(8, "little")
            work(number)
        at[:] = count.to_bytes(8, "little")

    begin = 0
    while begin < count and len(found) < 5:
        child = Forked(lambda begin=begin: go_on(begin))
        child.ended(120)
        begin = int.from_bytes(at[:], "little") + 1
        if begin <= count:
            found.append((begin - 1, child.output))
    return found


def test_crashes_are_counted() -> None:
    def work(number: int) -> None:
        if number in (2, 3):
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 7:
            raise TypeError("another than ValueError")

    assert [number for number, _ in crashes(work, 9)] == [2, 3, 7]


@pytest.mark.parametrize("kind", WHOLE)
def test_no_damaged_file_ends_the_process(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REDUCED_FROM", 0)  # small files are decoded at a fraction of their size, too
    monkeypatch.setattr(headers, "MOST_PIXELS", 2**18)  # a false header must not take the test's time
    raws = list(damaged(kind))

    def work(number: int) -> None:
        raw, size = raws[number], None
        try:
            size = upright_size(raw)
        except ValueError as error:
            assert "\n" not in str(error)
        for least in (None, 8):
            try:
                image = decode(raw, least)
            except ValueError as error:
                assert 0 < len(str(error)) <= 120 and "\n" not in str(error)
            else:
                assert image.ndim == 3 and image.shape[0] == 3
                assert least or tuple(image.shape[1:]) == size
        try:
            labels = decode_labels(raw)
        except ValueError:
            pass
        else:
            assert labels.dtype == np.uint8 and labels.shape == size

    assert crashes(work, len(raws)) == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("damage", [cut, zero_tail])
def test_what_breaks_off_is_refused(kind: str, damage: Callable[[bytearray, random.Random], None]) -> None:
    """Also where the rest decodes to something: a copy that ran out of disk ends in zeros."""
    rng, read = random.Random(0), []
    for raw in WHOLE[kind]:
        if raw.find(b"\xff\xdd") >= 0:
            continue  # a decoder that finds restart markers gone goes on at the next
        for _ in range(40):
            broken = bytearray(raw)
            damage(broken, rng)
            try:
                decode(bytes(broken))
            except ValueError:
                continue
            read.append(len(broken))
    assert read == []


def test_a_png_with_a_flipped_byte_is_listed(tmp_path: Path) -> None:
    for number in range(20):
        photo().save(tmp_path / f"{number:02}.png")
    raw = bytearray((tmp_path / "07.png").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "07.png").write_bytes(raw)
    manifest = build_manifest(open_source(tmp_path), workers=2, cache=None)
    assert len(manifest) == 19 and [name for name, _ in manifest.skipped] == ["07.png"]


def test_other_formats_are_not_tried() -> None:
    """Pillow starts Ghostscript for one of them."""
    for kind in ("EPS", "PDF", "PPM", "ICO", "TGA"):
        with pytest.raises(ValueError, match="not an image"):
            decode(encode(photo(), kind))


# Endless work


def claims(kind: str, side: int) -> bytes:
    """A small file whose header claims so many pixels a side."""
    raw = bytearray(WHOLE[kind][0])
    if kind == "JPEG":
        at = raw.index(b"\xff\xc0") + 5
        raw[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "PNG":
        header = struct.pack(">II", side, side) + bytes(raw[24:29])
        raw[8:33] = chunk(b"IHDR", header)
    elif kind == "BMP":
        raw[18:26] = struct.pack("<ii", side, side)
    elif kind == "GIF":
        raw[6:10] = struct.pack("<HH", side, side)
    elif kind == "TIFF":
        for tag in (256, 257):  # width, height; one entry of type LONG
            entry = raw.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in raw else None
            at = raw.index(struct.pack("<HHI", tag, 3, 1)) if entry is None else entry
            raw[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    elif kind == "WEBP":
        raw = bytearray(WHOLE["WEBP"][3])  # only the extended form can claim more than 16,383
        raw[24:30] = (side - 1).to_bytes(3, "little") * 2
    else:
        at = raw.index(b"ispe") + 8
        raw[at : at + 8] = struct.pack(">II", side, side)
    return bytes(raw)


# libheif, which looks at the pixels themselves, and libavif say it in their own words.
REFUSED = "4,290,250,000 pixels, limit 250,000,000|^not an image$|Security limit|mode RGB"


@pytest.mark.parametrize("kind", WHOLE)
def test_a_header_that_claims_billions_of_pixels_is_refused_at_once(kind: str) -> None:
    raw = claims(kind, 65500)

    def work(number: int) -> None:
        begin, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for door in (decode, lambda raw: decode(raw, 16), decode_labels, upright_size):
            with pytest.raises(ValueError, match=REFUSED):
                door(raw)
        assert time.process_time() - begin < 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 100 * 1024  # KiB

    assert crashes(work, 1) == []


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as without pytest
def test_200_megapixels_are_read() -> None:
    """As the largest sensors of telephones have; Pillow alone refuses them."""
    raw = encode(Image.new("L", (16320, 12240), 128), "JPEG", quality=60)
    assert upright_size(raw) == (12240, 16320)
    small = decode(raw, 1500)
    assert small.shape == (3, 1530, 2040) and small.eq(128).all()


def test_scans_without_end_are_refused() -> None:
    """A progressive JPEG may repeat a scan, and each passes over all pixels."""
    raw = encode(photo(), "JPEG", progressive=True)
    at = raw.rindex(b"\xff\xda")
    scan, begin = raw[at:-2], time.process_time()
    with pytest.raises(ValueError, match="more than 100 scans"):
        decode(raw[:-2] + 10_000 * scan + raw[-2:])
    assert time.process_time() - begin < 1
    whole = raw + np.random.default_rng(0).bytes(2**24)  # as telephones append a film
    assert whole.count(b"\xff\xda") > 100
    assert decode(whole).equal(decode(raw))


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg_with(between: bytes) -> bytes:
    """A photo of 1 MB, so that it may be decoded at a fraction of its size, with these bytes before its frame."""
    raw = encode(photo(800, 1000), "JPEG", quality=98)
    return raw[:2] + between + raw[2:]


def png_with(chunks: bytes) -> bytes:
    raw = WHOLE["PNG"][0]
    return raw[:33] + chunks + raw[33:]


ENDLESS: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG, padding": (lambda: jpeg_with(b"\xff" * 10_000_000), "bytes between"),
    "JPEG, padding and no marker": (lambda: b"\xff\xd8" + b"\xff" * 10_000_000, "bytes between"),
    "JPEG, padding and a stuffed byte": (lambda: jpeg_with(b"\xff" * 10_000_000 + b"\0"), "bytes between"),
    "JPEG, zeros": (lambda: jpeg_with(segment(0xFE, b"a") + bytes(10_000_000)), "bytes between"),
    "JPEG, EXIF": (lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 600), "of EXIF"),
    "JPEG, comments": (lambda: jpeg_with(segment(0xFE, b"") * 2_500_000), "segments"),
    "JPEG, comments between scans": (
        lambda: (
            encode(photo(), "JPEG", progressive=True)[:-2]
            + segment(0xFE, b"\xff\xda") * 2_000_000
            + WHOLE["JPEG"][0][-2:]
        ),
        "segments",
    ),
    "PNG, texts": (lambda: png_with(chunk(b"tEXt", b"a\0b") * 2_000_000), "chunks beside"),
    "PNG, chunks of no pixels": (lambda: png_with(chunk(b"IDAT", b"") * 2_000_000), "chunks of pixels"),
    "PNG, unknown chunks": (lambda: png_with(chunk(b"abCd", b"") * 2_000_000), "chunks beside"),
    "PNG, 15800 a side with transparency": (lambda: transparent(15_800), "bytes of pixels in memory"),
}


def transparent(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as without pytest
@pytest.mark.parametrize("name", ENDLESS)
def test_blocks_and_pixels_without_end_are_refused_at_once(name: str) -> None:
    make, reason = ENDLESS[name]
    raw = make()
    for door in (decode, lambda raw: decode(raw, 1), decode_labels, upright_size):
        begin = time.process_time()
        with pytest.raises(ValueError, match=f"{reason}|8 bits") as caught:
            door(raw)
        assert time.process_time() - begin < 1
        assert len(str(caught.value)) <= 120


def test_many_blocks_are_still_read() -> None:
    """A colour profile in all its segments, an EXIF block in several, a PNG in chunks of a byte."""
    raw = encode(photo(), "JPEG")
    block = Image.Exif()
    block[0x0112] = 6
    exif = segment(0xE1, block.tobytes()) + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 3
    profile = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes((n + 1, 255)) + bytes(60_000)) for n in range(255))
    assert decode(raw[:2] + exif + profile + bytes(100) + raw[2:]).equal(decode(raw).transpose(1, 2).flip(2))
    raw = encode(photo(), "PNG")
    at = raw.index(b"IDAT") - 4
    end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
    single = b"".join(chunk(b"IDAT", raw[i : i + 1]) for i in range(at + 8, end - 4))
    assert len(single) > 50_000 and decode(raw[:at] + single + raw[end:]).equal(decode(raw))


def test_annotations_that_are_hostile_are_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "large.png").write_bytes(claims("PNG", 65500))
    (tmp_path / "cut.png").write_bytes(WHOLE["PNG"][1][:300])
    for name, reason in (
        ("fifo", ["regular file"]),
        ("folder", []),
        ("large", ["4,290,250,000 pixels"]),
        ("cut", ["truncated"]),
        ("gone", []),
    ):
        with refused(f"{name}.png", *reason):
            read_annotation(tmp_path / f"{name}.png")
