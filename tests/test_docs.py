"""README.md and docs/: links lead somewhere, commands and Python in them are ones that the program takes."""

import ast
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

import semmae
from semmae.cli.arguments import find_option, read_arguments
from semmae.options import VERBS, kind_of
from semmae.options.presets import presets_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# What docs/hooks.py makes of files above docs/.
GENERATED = {"changelog.md", "contributing.md"}

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'^```python title="(\w+)\.py"\n(.*?)^```', re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages; "" is no language."""
    return [code for _, language, code in _FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """Code within lines, joined where it goes over the end of a line."""
    return [" ".join(code.split()) for code in _SPAN.findall(prose(page))]


def command_lines(page: Path) -> Iterator[str]:
    for code in blocks(page, "", "sh", "bash", "console", "text"):
        for line in re.sub(r"\\\n\s*", "", code).splitlines():
            yield line.strip().removeprefix("$ ")


def arguments_of(command: str) -> list[str]:
    """The words after `semmae`; letters that stand for numbers are numbers."""
    words = itertools.takewhile(lambda word: word not in ("|", ">", "&&"), shlex.split(command, comments=True)[1:])
    return ["1" if re.fullmatch("[A-Z]", word) else word for word in words]


def slug(heading: str) -> str:
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\([^)]*\)", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


@every_page
def test_links_and_pictures_exist(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"https?://|mailto:", link):
            continue
        file = page.parent / target if target else page
        known = file.exists() or (page.parent == ROOT / "docs" and target in GENERATED)
        headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE) if anchor and file.suffix == ".md" else []
        if not known or (anchor and anchor not in map(slug, headings)):
            broken.append(link)
    assert broken == []


@every_page
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    """A line of one bare word in capitals keeps a place for a table or a figure."""
    assert re.findall(r"^[ \t]*[A-Z][A-Z_]+[ \t]*$", page.read_text(), re.MULTILINE) == []


@every_page
def test_commands_are_taken_as_they_stand(page: Path) -> None:
    """Each whole line of a block, from the verb to the last value; nothing is run."""
    for line in command_lines(page):
        if not re.match(r"semmae \w", line) or re.search(r"[\[…]|\.\.\.", line):
            continue
        verb, *arguments = arguments_of(line)
        assert verb in VERBS, line
        kind = kind_of(verb)
        if "--help" in arguments:
            assert arguments == ["--help"], line
        elif "--resume" in arguments or "--config" in arguments:  # read a folder that is not here
            read_arguments(kind, arguments)
        else:
            assert tiny.options_from(kind, arguments) is not None, line


@every_page
def test_commands_in_the_text_have_these_options(page: Path) -> None:
    for span in spans(page):
        words = arguments_of(span) if span.startswith("semmae ") else []
        if not words or words[0].startswith("-") or words[0] == "VERB":
            continue
        verb, *arguments = words
        assert verb in VERBS, span
        for word in arguments:
            if word.startswith("--") and word != "--help":
                find_option(kind_of(verb), word.split("=")[0])


@every_page
def test_options_named_in_the_text_exist(page: Path) -> None:
    assert [span for span in spans(page) if span.startswith("--") and option(span) not in known_options()] == []


def option(span: str) -> str:
    return re.split(r"[ =:]", span)[0]


def known_options() -> set[str]:
    """Of any verb; of the benchmarks, examples and Slurm's there; `--help` and `--version`."""
    fields = {name for verb in VERBS for name in kind_of(verb).__dataclass_fields__}
    dashed = {name.replace("_", "-") for name in fields}
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")]
    others = {name for script in scripts for name in re.findall(r'"(--[\w-]+)"', script.read_text())}
    others |= {name for job in ROOT.glob("examples/*.sh") for name in re.findall(r"--[\w-]+", job.read_text())}
    return {f"--{name}" for name in dashed} | {f"--no-{name}" for name in dashed} | others | {"--help", "--version"}


@every_page
def test_presets_make_targets_and_files_named_exist(page: Path) -> None:
    code = [*spans(page), *command_lines(page)]
    presets = {name for verb in VERBS for name in presets_of(verb)} | {"NAME"}
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in code for name in re.findall(r"--preset[ =]([\w-]+)", text)}
    made = {name for text in code for name in re.findall(r"^make (\w[\w-]*)", text)}
    files = {name for text in code for name in re.findall(r"\b(?:examples|benchmarks|docs|tests|src)/[\w./-]+", text)}
    assert (named - presets, made - targets) == (set(), set())
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


@every_page
def test_python_in_the_pages_finds_its_names(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("semmae"):
                module = __import__(str(node.module), fromlist=["*"])
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "semmae":
                assert hasattr(semmae, node.attr), f"semmae.{node.attr}"


SLOW = {"docs/finetune.md", "docs/segment.md"}  # they need runs of their own
WITH_PYTHON = [
    pytest.param(page, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for page, name in zip(PAGES, NAMES, strict=True)
    if blocks(page, "python")
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_in_the_pages_runs(
    page: Path, creatures: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader would: the blocks of a page one after the other, in a folder with photos and finished runs.

    A block with a title is a file of that name.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("photos", "clothing"):
        Path(name).symlink_to(creatures / "images")
    Path("drawn").symlink_to(creatures)
    Path("runs").mkdir()
    for run in ("a", "first"):
        Path("runs", run).symlink_to(whole_run)
    READY.get(page.name, lambda: None)()
    files = dict(_FILE.findall(page.read_text()))
    for name, code in files.items():
        monkeypatch.delitem(sys.modules, name, raising=False)
        Path(f"{name}.py").write_text(code)
    Path("page.py").write_text("\n".join(code for code in blocks(page, "python") if code not in files.values()))
    given = {"images": torch.zeros(2, 3, 32, 32)} if page.name in WITH_IMAGES else {}
    runpy.run_path("page.py", init_globals=given, run_name="__main__")


def embedded() -> None:
    """What the command of docs/embed.md writes, in all three forms."""
    Path("f").mkdir()
    for kind in ("parquet", "npz", "safetensors"):
        out = Path("f", f"a.{kind}")
        tokens = "cls,mean,patch,parts"
        semmae.embed(encoder="runs/a", data="clothing", out=out, tokens=tokens, parts="runs/a", workers=0)


def probed() -> None:
    semmae.probe(encoder="runs/a", data="photos", out="runs/a-probe", epochs=1, workers=0)


def finetuned() -> None:
    semmae.finetune(encoder="runs/a", data="photos", out="runs/a-fine", epochs=1, batch_size=8, workers=0)


def segmented() -> None:
    small = {"head": "linear", "steps": 2, "batch_size": 8, "workers": 0}
    semmae.segment(encoder="runs/a", data="drawn", out="runs/a-segment", **small)


READY = {"embed.md": embedded, "probe.md": probed, "finetune.md": finetuned, "segment.md": segmented}
WITH_IMAGES = {"probe.md", "segment.md"}  # their comments say where `images` come from


def test_every_verb_has_a_page_with_a_command_and_every_page_a_place() -> None:
    for verb in VERBS:
        page = ROOT / "docs" / f"{'report' if verb == 'demo' else verb}.md"
        assert any(line.startswith(f"semmae {verb} ") for line in command_lines(page)), page
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(leaves(nav)) == there | GENERATED


def leaves(nav: Any) -> Iterator[str]:
    for entry in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(entry, str):
            yield entry
        else:
            yield from leaves(entry)


def test_the_reference_has_every_building_block() -> None:
    reference = (ROOT / "docs" / "api" / "index.md").read_text()
    assert [name for name in semmae._blocks() if f"`{name}`" not in reference] == []
    shown = {
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall("^<!-- (semmae.+) -->$", page.read_text(), re.M)
    }
    modules = {module for module, _ in semmae._blocks().values() if module != "semmae"}
    assert [module for module in modules - shown if not module.startswith("semmae.options.")] == []


def test_the_tables_of_the_reference_are_those_of_the_code() -> None:
    pytest.importorskip("griffe")
    made = runpy.run_path(str(ROOT / "tools" / "reference.py"))
    stale = [path.name for path in made["PAGES"] if path.read_text() != made["page"](path.read_text())]
    assert stale == [], "options or docstrings changed: make reference"


class Assets(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") == "canonical":
            return
        names = ("src", "srcset", "href", "data") if tag != "a" else ()
        self.found += [value for name in names if (value := given.get(name))]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        assets = Assets()
        assets.feed(page.read_text())
        assert [name for name in assets.found if re.match(r"(https?:)?//", name)] == [], page
    for style in tmp_path.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()) == [], style
