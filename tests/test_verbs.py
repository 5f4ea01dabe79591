"""Every verb is complete: its row, its options, its function, its call, its result, and what it leaves is known."""

import inspect
import runpy
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import semmae
from semmae import calls
from semmae.cli import run
from semmae.options import VERBS, kind_of
from semmae.options.fields import verb_of
from semmae.run.folder import foreign_files

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "golden.py"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_complete(verb: str) -> None:
    kind, row = kind_of(verb), VERBS[verb]
    assert verb_of(kind) == verb and row.help and (kind.__doc__ or "").strip()
    function = getattr(import_module(f"semmae.verbs.{verb}"), verb)
    assert inspect.signature(function).parameters["options"].annotation is kind
    assert inspect.signature(function).return_annotation is Path
    assert getattr(semmae, verb) is getattr(calls, verb)
    assert issubclass(calls.RESULTS[verb], semmae.results.Result)
    assert set(row.runs) <= {*VERBS, "untrained", "measured", "run"}
    assert row.deed.format(encoder="An encoder", masking="").startswith(("An ", "Semantic ", "The "))


def test_there_are_no_others() -> None:
    assert calls.RESULTS.keys() == VERBS.keys()
    for folder in ("options", "verbs"):
        names = {path.stem for path in (Path(semmae.__file__).parent / folder).glob("*.py")}
        assert names >= VERBS.keys()


@pytest.mark.slow  # every verb that computes, minutes
def test_all_that_verbs_leave_is_known(tmp_path: Path) -> None:
    GOLDEN["draw"](tmp_path / "data")
    places = {"data": str(tmp_path / "data")}
    for name, line in GOLDEN["RUNS"].items():
        out = tmp_path / name
        places[name] = places["out"] = str(out)
        assert run(shlex.split((line if "--out" in line else f"{line} --out {{out}}").format_map(places))) == 0
        assert not (out / "config.yaml").is_file() or foreign_files(out) == [], line
