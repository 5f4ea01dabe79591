"""Commands to paste into a shell, whatever the names of files in them are."""

import shlex
from typing import Any


def command(verb: str, /, **options: Any) -> str:
    """A command line of ours; an option that is None is left out, True is a flag."""
    words = ["semmae", verb]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [quoted(value)]
    return " ".join(words)


def quoted(value: object) -> str:
    r"""A word as a shell reads it, on one line; what no terminal shows as bash's `$'a\377'`."""
    word = str(value)
    raw = word.encode("utf-8", "surrogateescape")  # the bytes of a name; what is "ö" in one locale is no letter in C
    if raw.decode("utf-8", "surrogateescape").isprintable():
        return shlex.quote(word)
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in raw)
    return f"$'{''.join(shown)}'"
