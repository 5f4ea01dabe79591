"""Writes the tables of docs/api/: `make reference`.

The pages are to be read as files, too, where no program fills them. So the options of every verb stand in options.md,
and in the other pages, for each module, what it holds and the first sentence about it: all of it between a comment
`<!-- semmae.masking -->` and the next `<!-- end -->`. On the site docs/hooks.py puts the whole docstrings in place of
the tables of modules. tests/test_docs.py fails when a page no longer fits the code.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import griffe

from semmae.options import VERBS, kind_of
from semmae.options.fields import command_options, flag
from semmae.options.texts import help_of
from semmae.options.values import in_python

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
_SECTION = re.compile(r"<!-- (semmae[\w.]*|options) -->\n.*?<!-- end -->", re.DOTALL)


@functools.cache
def loaded() -> Any:
    """The whole package, read without importing it."""
    return griffe.load("semmae", search_paths=[ROOT / "src"])


def page(text: str) -> str:
    """A page with its tables made anew; what stands outside of them is left as it is."""
    package = loaded()

    def section(found: re.Match[str]) -> str:
        name = found[1]
        made = options() if name == "options" else module(package[name.removeprefix("semmae.")])
        return f"<!-- {name} -->\n{made}\n\n<!-- end -->"

    return _SECTION.sub(section, text)


def options() -> str:
    """A table for each verb: its own options, then those that it shares with others."""
    return "\n".join(
        f"\n## {verb}\n\n{row.help[0].upper()}{row.help[1:]}.\n\n{table(verb)}" for verb, row in VERBS.items()
    )


def table(verb: str) -> str:
    """The options of a verb: option, default, help."""
    kind = kind_of(verb)
    known_options = command_options(kind)
    texts, fields = (
        help_of(kind),
        {field.name: field for field in dataclasses.fields(kind) if field.name in known_options},
    )
    own = [name for name in fields if name in vars(kind)["__annotations__"]]
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for name in [*own, *(name for name in fields if name not in own)]:
        text = f"{texts[name]} {in_python(known_options[name])}".rstrip()
        known = ", ".join(f"`{choice}`" for choice in known_options[name].choices)
        words = f"{text} One of {known}." if known else text
        lines.append(f"| `{flag(name)}` | {default(fields[name])} | {cell(words)} |")
    return "\n".join(lines)


def default(field: "dataclasses.Field[Any]") -> str:
    """What holds where an option is not given."""
    if isinstance(field.default, bool):
        return f"on (off: `{flag(f'no_{field.name}')}`)" if field.default else "off"
    if isinstance(field.default, float):
        return f"`{field.default:.4g}`"
    if field.default is dataclasses.MISSING:
        return "**required**" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()}`"
    return "–" if field.default is None else f"`{field.default}`"


def module(found: Any) -> str:
    """A module's file, the first sentence about it, and a table of its public functions and classes."""
    file = found.filepath.relative_to(ROOT).as_posix()
    lines = [f"\n## {found.path}\n", f"{first_sentence(found)}\n", f"[{file}](../../{file})\n", "| name | what it is |"]
    lines.append("|---|---|")
    for name, member in found.members.items():
        if not name.startswith("_") and not member.is_alias and (member.is_function or member.is_class):
            lines.append(f"| `{name}({arguments(member)})` | {cell(first_sentence(member))} |")
    return "\n".join(lines)


def arguments(member: Any) -> str:
    """The names of what a function, or the making of a class, takes."""
    return ", ".join(parameter.name for parameter in member.parameters if parameter.name != "self")


def first_sentence(member: Any) -> str:
    """Of its docstring; of one that is missing nothing."""
    paragraph = " ".join(member.docstring.value.split("\n\n")[0].split()) if member.docstring else ""
    sentence = re.split(r"(?<=\.)\s(?=[A-Z`(])", paragraph)[0]
    return re.sub(r"(?<![.!?])$", ".", sentence.rstrip(":")) if sentence else ""


def cell(text: str) -> str:
    """Text as it stands in a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
