"""What the headers of JPEG and PNG say before their pixels take any memory, and which files would have no end.

Pillow reads what stands before the pixels block by block, in Python, and a file of a few megabytes can hold millions of
blocks: they are counted here first, with bounds far above those of real photos.
"""

import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

MOST_PIXELS = 250_000_000  # 0.75 GB as RGB; the largest sensors of cameras have 200 million
JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
_MOST_MEMORY = 1_500_000_000  # bytes of an image's pixels while they are read
_MOST_SCANS = 100  # of a JPEG: ten are usual, and each passes over all pixels
_MOST_SEGMENTS = 1000  # of a JPEG before a scan: a colour profile has up to 255, maps of depth some hundred
_MOST_PADDING = 2**16  # bytes between these
_MOST_EXIF = 2**20  # bytes; one segment, 64 kB, is usual, and joining thousands takes time by their square
_MOST_NOTES = 1000  # chunks of a PNG that hold no pixels
_PIXEL_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")  # of animations, too
_MOST_CHUNKS = 10_000  # of these, and one more for each kilobyte of the file


class Jpeg(NamedTuple):
    """What the segments before the first scan of a JPEG say."""

    height: int
    width: int
    channels: int
    exif: bytes  # empty where there is none


_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}  # of these
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_LENGTHLESS = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))  # stuffed bytes, restarts, padding: passed over
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # any other


def jpeg_header(raw: bytes) -> Jpeg | None:
    """Of a JPEG; None of anything else, and where libjpeg would find no frame and scan either; ValueError by bounds."""
    if not raw.startswith(JPEG):
        return None
    height, width, channels, several, exif, at = 0, 0, 0, False, b"", 2
    segments, padding = 0, 0
    try:
        while True:
            if raw[at] != 0xFF or raw[at + 1] in _LENGTHLESS:
                before, at = at, _next_marker(raw, at)
                padding += at - before
            segments += 1
            _check_bound("segments", segments, _MOST_SEGMENTS)
            _check_bound("bytes between its segments", padding, _MOST_PADDING)
            marker, begin = raw[at + 1], at + 2
            if marker in (_START_OF_SCAN, _END_OF_IMAGE):
                several |= raw[begin + 2] < channels  # where a scan holds some of them alone
                break
            at = begin + (raw[begin] << 8 | raw[begin + 1])
            if marker == _APP1 and raw.startswith(b"Exif\0\0", begin + 2):
                exif += raw[begin + (8 if exif else 2) : at]  # a long block comes in several segments
                _check_bound("bytes of EXIF", len(exif), _MOST_EXIF)
            elif marker in _START_OF_FRAME and not channels:
                height, width, channels = struct.unpack_from(">HHB", raw, begin + 3)
                several = marker in _PROGRESSIVE
    except (IndexError, struct.error):
        return None
    if not channels:
        return None
    check_size(height * width)
    if several and raw.count(b"\xff\xda") > _MOST_SCANS:  # which is more than there are
        _check_scans(raw, at)
    return Jpeg(height, width, channels, exif)


def _next_marker(raw: bytes, at: int) -> int:
    """Where the next marker with a length is, beyond what is none. IndexError where there is none."""
    found = _MARKER.search(raw, at)
    _check_bound("bytes between its segments", (found.start() if found else len(raw)) - at, _MOST_PADDING)
    if found is None:
        raise IndexError
    return found.start()


def _check_scans(raw: bytes, at: int) -> None:
    """ValueError where a JPEG, of which a segment begins at `at`, has too many scans, or segments between them."""
    scans, others = 0, 0
    while (found := _MARKER.search(raw, at)) and raw[found.start() + 1] != _END_OF_IMAGE:
        is_scan = raw[found.start() + 1] == _START_OF_SCAN
        scans, others = scans + is_scan, others + (not is_scan)
        _check_bound("scans", scans, _MOST_SCANS)
        _check_bound("segments", others, _MOST_SEGMENTS)
        at = found.end() + int.from_bytes(raw[found.end() : found.end() + 2], "big")


def check_png(raw: bytes) -> None:
    """ValueError where a PNG breaks off, or a chunk that its pixels depend on has another checksum than it bears."""
    view, at, notes, parts = memoryview(raw), len(PNG), 0, 0
    while at + 12 <= len(raw):
        kind, end = raw[at + 4 : at + 8], at + 12 + int.from_bytes(raw[at : at + 4], "big")
        if end > len(raw):
            break
        of_pixels = kind in _PIXEL_CHUNKS
        parts, notes = parts + of_pixels, notes + (not of_pixels)
        _check_bound("chunks beside its pixels", notes, _MOST_NOTES)
        _check_bound("chunks of pixels", parts, _MOST_CHUNKS + len(raw) // 1024)
        needed = kind[:1].isupper()
        if needed and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], "big"):
            raise ValueError("damaged: a checksum differs")
        if kind == b"IEND":
            return
        at = end
    raise ValueError("truncated")


def check_size(pixels: int) -> None:
    """ValueError above `MOST_PIXELS`."""
    if pixels > MOST_PIXELS:
        raise ValueError(f"{pixels:,} pixels, limit {MOST_PIXELS:,}; scale it down")


def check_memory(needed: int) -> None:
    """ValueError above what the pixels of one image may take."""
    if needed > _MOST_MEMORY:
        raise ValueError(f"{needed:,} bytes of pixels in memory, limit {_MOST_MEMORY:,}; scale it down")


def _check_bound(name: str, count: int, most: int) -> None:
    """ValueError above what any real photo has."""
    if count > most:
        raise ValueError(f"more than {most:,} {name}; save it anew")


def grey_bits(raw: bytes, opened: Image.Image) -> int:
    """Bits of a grey level as the file stores it: 1, 2, 4 or 8, of PNG and TIFF; 8 of other formats."""
    if raw.startswith(PNG):
        return raw[24]
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        bits = opened.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
        return int(bits[0])
    return 8
