"""The pages on a telephone, 390 pixels wide: wide things scroll in their frame, the page itself does not."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

WIDTH = 390
PAGES = ("report.html", "parts/parts.html")


class Page(HTMLParser):
    """What lies in what: of each element its tag, its classes and those of everything around it."""

    OPEN = frozenset({"img", "meta", "br", "path", "line", "rect", "polyline", "circle", "hr", "link"})  # never closed

    def __init__(self, text: str) -> None:
        super().__init__()
        self.around: list[tuple[str, frozenset[str]]] = []
        self.found: list[tuple[str, frozenset[str], frozenset[str], str]] = []
        self.feed(text)
        assert self.around == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        own = frozenset((given.get("class") or "").split())
        outer = frozenset().union(*(classes for _, classes in self.around))
        self.found.append((tag, own, outer, given.get("style") or ""))
        if tag not in self.OPEN:
            self.around.append((tag, own))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.OPEN:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.OPEN:
            assert self.around.pop()[0] == tag


def rules(text: str) -> dict[str, str]:
    """Selector → declarations, of the style sheet outside of media queries."""
    (sheet,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    plain = re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL)
    plain = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", plain)
    found: dict[str, str] = {}
    for selector, declared in re.findall(r"([^{}]+)\{([^{}]*)\}", plain):
        found[selector.strip()] = found.get(selector.strip(), "") + declared
    return found


def too_wide(declared: str) -> bool:
    """Whether something is wider than the telephone whatever lies around it."""
    widths = re.findall(r"(?<![-\w])(?:min-)?width:\s*([\d.]+)(px|rem|em)", declared)
    return any(float(number) * (1 if unit == "px" else 16) > WIDTH for number, unit in widths)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_wide_lies_in_a_frame_that_scrolls(page: str, whole_run: Path) -> None:
    text = (whole_run / page).read_text()
    style, elements = rules(text), Page(text).found
    assert "overflow-x: auto" in style[".scroll"]
    assert 'name="viewport" content="width=device-width' in text
    assert {selector for selector, declared in style.items() if too_wide(declared)} <= {".picture img"}
    assert not any(too_wide(inline) for *_, inline in elements)
    assert all("scroll" in own for _, own, _, _ in elements if "picture" in own)
    tables = [outer for tag, _, outer, _ in elements if tag == "table"]
    assert tables and all("scroll" in outer for outer in tables)
    pictures = [outer for tag, _, outer, _ in elements if tag == "img"]
    assert pictures and (page != "report.html" or all("scroll" in outer for outer in pictures))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
@pytest.mark.parametrize("page", PAGES)
def test_in_a_browser_the_page_is_as_wide_as_the_telephone(page: str, whole_run: Path, tmp_path: Path) -> None:
    report = '<script>parent.postMessage(innerWidth + " " + document.documentElement.scrollWidth, "*")</script>'
    text = (whole_run / page).read_text()
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{report}</body>"))
    # In a frame: no window of the browser's is so narrow.
    (tmp_path / "frame.html").write_text(
        f'<body><iframe src="page.html" width="{WIDTH}" height="800" style="border:0"></iframe><script>'
        'addEventListener("message", event => document.body.setAttribute("data-size", event.data))</script></body>'
    )
    options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    command = ["chromium", "--headless=new", *options]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f'data-size="{WIDTH} {WIDTH}"' in output
