"""What the site has besides docs/: the changelog, the guide for contributors and the examples, which lie above it.

Links to them are written as they hold where the pages are read as files, `../examples/masks.py`, and become links of
the site here. Lists may follow a line of text at once, as they do in docstrings. The tables of options are made from
their declarations.
"""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import griffe
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File, Files

from semmae import VERBS, load_verb
from semmae.commands.options import choices, flag

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINKS = {
    **{f"](../{above}": f"]({here}" for above, here in PAGES.items()},
    "](../README.md": "](index.md",
    "](../examples/": "](examples/",
}


_ITEM = re.compile(r"\s*(-|\d+\.) ")


class ListsAfterText(Preprocessor):
    """Python-Markdown begins a list after an empty line only; elsewhere, and in docstrings, none is needed."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines, with an empty one before each list that follows text."""
        spaced: list[str] = []
        for line in lines:
            before = spaced[-1] if spaced else ""
            # An indented line before is of the last item, or code.
            if _ITEM.match(line) and before.strip() and not before.startswith(" ") and not _ITEM.match(before):
                spaced.append("")
            spaced.append(line)
        return spaced


class Lists(Extension):
    """`ListsAfterText` as Python-Markdown takes it, after fenced code has been put aside."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register it."""
        md.preprocessors.register(ListsAfterText(md), "lists_after_text", 15)


def on_config(config: Any) -> Any:
    """Have pages and docstrings read by `Lists` too."""
    config.markdown_extensions.append(Lists())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and examples that lie above docs/."""
    for above, here in PAGES.items():
        content = (ROOT / above).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, here, content=content))
    for example in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files above docs/ into links of the site, and put the tables of options into their page."""
    for above, here in LINKS.items():
        markdown = markdown.replace(above, here)
    return markdown + options() if page.file.src_uri == "api/options.md" else markdown


def options() -> str:
    """A table for each verb: option, default, help, its own options before those it shares."""
    package = griffe.load("semmae", search_paths=[ROOT / "src"])
    return "".join(f"\n## {verb}\n\n{VERBS[verb].capitalize()}.\n\n{table(verb, package)}\n" for verb in VERBS)


def table(verb: str, package: Any) -> str:
    """The options of a verb as a table in Markdown."""
    kind, _ = load_verb(verb)
    hints = typing.get_type_hints(kind)
    declared = package[f"commands.{verb}.{kind.__name__}"]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    own = [name for name in fields if name in declared.members]
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for name in [*own, *(name for name in fields if name not in own)]:
        text = " ".join(declared.all_members[name].docstring.value.split())
        known = ", ".join(f"`{choice}`" for choice in choices(hints[name]))
        told = f"{text} One of {known}." if known else text
        switch = f", `{flag('no_' + name)}`" if hints[name] is bool else ""
        lines.append(f"| `{flag(name)}`{switch} | {default(fields[name])} | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def default(field: "dataclasses.Field[Any]") -> str:
    """What an option is when it is not given."""
    if field.default is dataclasses.MISSING:
        return "**required**" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()}`"
    return "–" if field.default is None else f"`{field.default}`"
