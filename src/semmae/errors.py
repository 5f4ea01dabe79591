"""What ends a command in one line: the user's to mend, or the machine's; and the near misses that a message names."""

import difflib
import re
from collections.abc import Iterable

_LONGEST = 120  # letters of one of several names, which may come from a file
# What moves the cursor, colours or hides text, or turns it round (Unicode's marks of direction), and ends of lines.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FEW = 20  # names that a message can list without hiding the fault; the verbs are fewer


class UserError(Exception):
    """Bad input, in one line: the value, the limit it broke, and the remedy. The command exits with code 2."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))  # a library's message within it may have several


class DiskError(Exception):
    """The disk is full, broken or read-only, in one line. The command exits with code 1."""


def near(name: str, known: Iterable[str]) -> str:
    """The hint to append to "unknown NAME": `; did you mean "vit_tiny"?`, else the known names, where they are few."""
    names = list(known)
    hint = near_only(name, names)
    return hint or (f" (known: {listed(names, _FEW)})" if len(names) <= _FEW else "")


def near_only(name: str, known: Iterable[str]) -> str:
    """As `near`, but nothing where no name is near: where what is known is no list to choose from."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return "; did you mean " + " or ".join(f'"{_cut(match)}"' for match in matches) + "?" if matches else ""


def listed(names: Iterable[object], most: int = 3) -> str:
    """Names or numbers as a message shows them: the first few, and how many more there are; an empty one in quotes."""
    every = [_cut(str(name)) or "''" for name in names]
    left = len(every) - most
    return ", ".join(every[:most]) + (f" and {left} more" if left > 0 else "")


def escaped(text: str, keep: str = "") -> str:
    """Text with escapes in place of what would command a terminal, but for what is to be kept, as ends of lines are."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def _cut(text: str) -> str:
    text = escaped(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def reason(error: BaseException, most: int = 120) -> str:
    """Why something failed, in a short line: what the system says, else a library's message, else the error's type."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return _shortened(said or type(error).__name__, most)


def _shortened(text: str, most: int) -> str:
    """A text of at most so many letters, cut between words, unless the last one is as long as a path may be."""
    if len(text) <= most:
        return text
    start = text[: most - 1]
    words = start.rpartition(" ")[0]
    return f"{words if len(words) > most // 2 else start}…"


def one_line(text: object) -> str:
    """A text, such as a library's message, on one line."""
    return " ".join(line for line in map(str.strip, str(text).splitlines()) if line)


def message(error: Exception) -> str:
    """The message of an error in one line, whole; also where a loader's worker has wrapped it in its traceback."""
    text = one_line(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        kind = type(error)
        text = text.rpartition(f" {kind.__module__}.{kind.__qualname__}: ")[2]
    return text
