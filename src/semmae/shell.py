"""Commands to paste into a shell, whatever the names of files in them are."""

import shlex
from pathlib import Path
from typing import Any


def command(verb: str, /, **options: Any) -> str:
    """A command line of ours; an option that is None is left out, True is a flag."""
    words = ["semmae", verb]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif str(value).startswith("-"):  # else it would be an option itself
            words.append(f"{flag}={quoted(value)}")
        elif isinstance(value, list | tuple):  # height and width
            words += [flag, *map(quoted, value)]
        elif value is not None and value is not False:
            words += [flag, quoted(value)]
    return " ".join(words)


def again(run: Path) -> str:
    """The command that makes a run's pages again."""
    return command("report", run=run) if str(run).startswith("-") else f"semmae report {quoted(run)}"


def quoted(value: object) -> str:
    r"""A word as a shell reads it, on one line; what no terminal shows as bash's `$'a\377'`."""
    word = str(value)
    raw = word.encode("utf-8", "surrogateescape")  # the bytes of a name; what is "ö" in one locale is no letter in C
    if raw.decode("utf-8", "surrogateescape").isprintable():
        return shlex.quote(word)
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in raw)
    return f"$'{''.join(shown)}'"


def python(code: str) -> str:
    """A line of Python as a command for a shell."""
    return f"python -c {quoted(code)}"


def text(value: object) -> str:
    """A path or a name as Python writes it, in the quotes that a shell leaves alone inside its own."""
    # After an apostrophe, and without a quote in it, `repr` puts a text between double quotes; these are cut off.
    inside = (repr("'" + piece)[2:-1] for piece in str(value).split('"'))
    return '"' + '\\"'.join(inside) + '"'
