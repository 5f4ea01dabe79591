"""What the ending of a file's name says: an image that is decoded, one that is not, a table, an archive, anything else.

An image that is not decoded here is one all the same: it counts among those that cannot be read, with the remedy. Its
content is not asked: a camera's raw file is a TIFF whose first picture is a thumbnail.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from semmae.data.decode import SUFFIXES
from semmae.errors import listed

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_TABLE, ARRAY = ".parquet", ".npy"
_SHOWN = 5  # endings in one line

_RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw",
    ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
_FORMATS = {
    "HEIC": (".heic", ".heif", ".heics", ".hif"),
    "AVIF": (".avif", ".avifs"),
    "JPEG XL": (".jxl",),
    "JPEG XR": (".jxr", ".wdp"),
    "JPEG 2000": (".jp2", ".j2k", ".jpf", ".jpx", ".jpc"),
    "a camera's raw image": _RAW,
    "Photoshop": (".psd", ".psb"),
    "GIMP": (".xcf",),
    "vector graphics": (".svg", ".svgz"),
    "OpenEXR": (".exr",),
    "DICOM": (".dcm", ".dicom"),
    "Netpbm": (".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
    "Targa": (".tga",),
    "BPG": (".bpg",),
}
# What would decode it, where that is not there.
_INSTALLED = {
    kind: f"{remedy}, or "
    for kind, ending, remedy in (
        ("HEIC", ".heic", 'pip install "semmae[heic]"'),
        ("AVIF", ".avif", "install Pillow 11.3 or newer"),
    )
    if ending not in SUFFIXES
}
# Ending → why such an image is not read.
UNDECODED = {
    ending: f"{kind}, which is not decoded: {_INSTALLED.get(kind, '')}convert it to JPEG or PNG"
    for kind, endings in _FORMATS.items()
    for ending in endings
    if ending not in SUFFIXES
}


def ending(name: str) -> str:
    """The ending of a file's name in small letters, with its dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def is_archive(name: str) -> bool:
    """Whether a file of this name is an archive, in which images may lie unseen."""
    return name.lower().endswith(ARCHIVES)


@dataclass
class Sorted:
    """Names of files by what their endings say, each list in the order given."""

    images: list[str] = field(default_factory=list)  # also those that are not decoded
    decoded: int = 0  # how many of these are
    tables: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # ending → number of files


def sort_files(names: Iterable[str]) -> Sorted:
    """Sort names of files by their endings."""
    found, names = Sorted(), list(names)
    # Arrays beside pictures are something else, such as features of these.
    arrays = not any(ending(name) in SUFFIXES - {ARRAY} for name in names)
    for name in names:
        kind = ending(name)
        if kind == ARRAY and not arrays:
            found.others[kind] += 1
        elif kind in SUFFIXES or kind in UNDECODED:
            found.images.append(name)
            found.decoded += kind in SUFFIXES
        elif kind == _TABLE:
            found.tables.append(name)
        else:
            found.others[kind] += 1
    return found


def counted(counts: Counter[str]) -> str:
    """Endings in words, the most frequent first: `30 .txt, 2 .json, 1 without an ending`."""
    return listed((f"{count} {kind or 'without an ending'}" for kind, count in counts.most_common()), _SHOWN)
