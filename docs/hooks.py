"""What the site has besides docs/: the changelog, the guide for contributors and the examples, which lie above it.

Links to them are written as they hold where the pages are read as files, `../examples/masks.py`, and become links of
the site here. Lists may follow a line of text at once, as they do in docstrings. In the reference the whole docstrings
take the place of the tables that `make reference` wrote for those who read the pages as files.
"""

import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINKS = {
    **{f"](../{above}": f"]({here}" for above, here in PAGES.items()},
    "](../README.md": "](index.md",
    "](../examples/": "](examples/",
}
_MODULE = re.compile(r"<!-- (semmae[\w.]*) -->\n.*?<!-- end -->", re.DOTALL)  # as tools/reference.py writes them
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
    for example in sorted(path for path in (ROOT / "examples").iterdir() if path.is_file()):
        files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files above docs/ into links of the site, and tables of modules into their docstrings."""
    for above, here in LINKS.items():
        markdown = markdown.replace(above, here)
    return _MODULE.sub(r"::: \1", markdown)
