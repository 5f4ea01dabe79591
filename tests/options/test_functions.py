"""Functions by name: text and function are each other's, and what cannot be found is named in one line."""

import functools
import importlib
import sys
from pathlib import Path

import pytest
from refusals import refused

from semmae.errors import UserError
from semmae.masking import random_mask
from semmae.options.functions import foreign, function_at, text_of

SOURCE = """
def corners(context):
    return context

def edges(context):
    return context

class Shapes:
    @staticmethod
    def ring(context):
        return context

threshold = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, which no path of Python's names."""
    name = f"own_masks_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return name


@pytest.mark.parametrize("name", ["corners", "Shapes.ring"])
def test_text_and_function_are_each_others(own_module: str, name: str) -> None:
    function = function_at(f"{own_module}:{name}", "--masking")

    assert function("context") == "context"
    assert text_of(function, "--masking") == f"{own_module}:{name}"


def test_a_function_of_an_installed_package_needs_no_folder() -> None:
    assert function_at("semmae.masking:random_mask", "--masking") is random_mask
    assert text_of(random_mask, "--masking") == "semmae.masking:random_mask"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}:cornres", ["'cornres'", '"corners"']),
        ("{}:threshold", ["int"]),
        ("{}:", ["package.module:name"]),
        (":corners", ["package.module:name"]),
        (".{}:corners", ["package.module:name"]),
        ("{}.py:corners", ["package.module:name", ".py"]),
        ("no_such_package.masks:corners", ["'no_such_package'"]),
        ("semmae.no_such:corners", ["'semmae.no_such'"]),
    ],
)
def test_what_is_not_found_is_named(own_module: str, text: str, words: list[str]) -> None:
    with refused("--masking", *words):
        function_at(text.format(own_module), "--masking")


FAULTS = [  # a line of one's own code, and what is said of it
    ("return = 1", ["SyntaxError"]),
    ("import no_such_package", ["ModuleNotFoundError", "no_such_package"]),
    ("from semmae.masking import no_such_mask", ["ImportError", "no_such_mask"]),
    ("raise RuntimeError('two\\nlines')", ["RuntimeError: two lines"]),
    ("raise StopIteration", ["StopIteration"]),
    ("import sys; sys.exit(4)", ["SystemExit: 4"]),
    ("import json; json.loads('{')", ["JSONDecodeError"]),  # raised deep in a library, the fault of this line
]


@pytest.mark.parametrize(("line", "words"), FAULTS)
def test_what_ones_own_code_raises_is_named_by_its_line(
    line: str, words: list[str], own_module: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is imported, in a module that it imports, and as it is called; the log has the traceback."""
    Path(f"{own_module}.py").write_text(f"'Masks.'\n{line}\n")
    Path("imports.py").write_text(f"import {own_module}\n")
    sys.modules.pop("imports", None)
    for module in (own_module, "imports"):
        with refused(f"--masking {module}:corners", f"{own_module}.py, line 2", *words):
            function_at(f"{module}:corners", "--masking")

    if "SyntaxError" in words:
        return
    Path(f"{own_module}.py").write_text(f"def corners(context):\n    {line}\n")
    importlib.invalidate_caches()
    called = function_at(f"{own_module}:corners", "--masking")
    with caplog.at_level("DEBUG", "semmae"), refused("own", f"{own_module}.py, line 2", *words), foreign("own"):
        called("context")
    assert "Traceback" in caplog.text and line in caplog.text


def test_ctrl_c_in_ones_own_code_is_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), foreign("own"):
        raise KeyboardInterrupt


def test_a_refusal_in_ones_own_code_stays_as_it_is() -> None:
    with refused("--mask-ratio 2"), foreign("own"):
        raise UserError("--mask-ratio 2: must be from 0 to 1")


def test_functions_that_no_text_finds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def inner() -> None:
        pass

    def of_a_script() -> None:
        pass

    of_a_script.__module__ = "__main__"
    for function in (inner, lambda: None, of_a_script):
        with refused("--masking", "top level"):
            text_of(function, "--masking")
    with refused("--masking", "package.module:name"):
        text_of(functools.partial(random_mask, ratio=0.5), "--masking")


def test_a_function_that_its_name_no_longer_means_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semmae.masking.random_mask", lambda noise, ratio: noise)

    with refused("--masking", "semmae.masking:random_mask"):
        text_of(random_mask, "--masking")
