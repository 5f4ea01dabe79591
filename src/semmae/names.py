"""Names of files and values, as bytes, as paths and as messages show them."""

import itertools
import math
import os
import re
from pathlib import Path
from typing import Any

from semmae.errors import UserError, escaped, one_line, reason

_MOST_NAMES = 100_000  # that one pattern with braces stands for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def encoded(text: str) -> bytes:
    """Text as UTF-8; names of files that are none as the bytes that they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a half of a surrogate pair, such as JSON can hold
        return text.encode("utf-8", "backslashreplace")


def on_disk(name: str) -> bytes:
    """The bytes by which the file system knows a name, "ä" or, where the locale is C, two surrogate escapes."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return encoded(name)


def readable(name: str) -> str:
    """A name for what takes Unicode alone, as pictures and tables do: a byte that is no UTF-8 in hexadecimal."""
    return encoded(name).decode("utf-8", "backslashreplace")


def check_text(text: str, option: str = "") -> None:
    """Refuse what names nothing: an empty text, one with a NUL byte, or one that is no Unicode."""
    if not text.strip():
        raise UserError(f"{option or 'path'} {shown(text)}: is empty; give a value, or leave the option out")
    if "\0" in text:
        raise UserError(f"{option} {shown(text)}: holds a NUL byte, which no name can; check it".strip())
    if any("\ud800" <= letter < "\udc80" or "\udcff" < letter <= "\udfff" for letter in text):
        raise UserError(f"{option} {shown(text)}: holds half a letter, which no name can; check it".strip())


def user_path(text: str | os.PathLike[str], option: str = "") -> Path:
    """The path that a user gave to an option, `~` expanded; whether anything lies there is for the caller to ask."""
    given = os.fspath(text)
    check_text(given, option)
    named = f"{option} {given if len(given) <= 255 else given[:77] + '…'}".strip()
    try:
        path = Path(os.fsdecode(on_disk(given))).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:  # expanduser
        raise UserError(f"{named}: no such user ({given.split('/', 1)[0]}); write the path without ~") from error
    except OSError as error:
        fault = f"cannot be looked at ({reason(error).lower()})"
        raise UserError(f"{named}: {fault}; check the path and its permissions") from error
    return path


def braced(pattern: str) -> list[str]:
    """The names that `shards-{000..099}.tar` or `{train,val}.tar` stands for, in order, as a shell expands them.

    A text without braces is itself. UserError for braces that are neither, and for too many names.
    """
    pieces = _BRACES.split(pattern)  # every other one stood in braces
    choices = [[piece] if place % 2 == 0 else _choices(piece, pattern) for place, piece in enumerate(pieces)]
    _check_count(math.prod(map(len, choices)), pattern)
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def has_braces(pattern: str) -> bool:
    """Whether `braced` finds more in a text than itself."""
    return _BRACES.search(pattern) is not None


def _choices(inside: str, pattern: str) -> list[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        if "," in inside:
            return inside.split(",")
        raise UserError(f"{shown(pattern)}: {{{inside[:40]}}} is no range; write {{000..099}}, or names as {{a,b}}")
    first, last = map(int, found.groups())
    if first > last:
        raise UserError(f"{shown(pattern)}: {{{inside}}} counts down; write the lower number first")
    _check_count(last - first + 1, pattern)
    # As in a shell: a zero in front asks for numbers of one width.
    width = max(map(len, found.groups())) if any(end[0] == "0" and end != "0" for end in found.groups()) else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _check_count(count: int, pattern: str) -> None:
    if count > _MOST_NAMES:
        raise UserError(f"{shown(pattern)}: stands for {count} names, limit {_MOST_NAMES}; give a shorter range")


def shown(value: Any) -> str:
    """A value as a message shows it: at most 80 characters."""
    try:
        text = escaped(one_line(repr(value)))  # that of a text is so already, that of an array has lines
    except ValueError:  # Python writes no integer of more than some thousand digits
        text = f"an integer of {int(value).bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}…"


def short(digest: str) -> str:
    """The beginning of a digest, which is enough to distinguish two."""
    return digest[:12]


def bytes_shown(count: float) -> str:
    """`812 B`, `3.4 kB`, `1.2 GB`: a number of bytes as people read it."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
