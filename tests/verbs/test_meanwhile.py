"""`pack` and `export` may write for hours: what others put in the place meanwhile, and two at once on one place."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from refusals import refused

import semmae
from semmae.cli import run
from semmae.data import packing
from semmae.files import PART
from semmae.verbs import export

Verb = tuple[Callable[..., Any], list[str], tuple[object, str]]


@pytest.fixture(params=["pack", "export"])
def verb(request: pytest.FixtureRequest, creatures: Path, encoder: Path) -> Verb:
    """A verb, the words of its command but for --out, and a function that it calls while it writes."""
    if request.param == "pack":
        return semmae.pack, ["pack", "--data", str(creatures / "images"), "--workers", "0"], (packing.Packing, "image")
    return semmae.export, ["export", "--encoder", str(encoder), "--to", "timm"], (export, "write_form")


@contextmanager
def meanwhile(place: tuple[object, str], act: Callable[[], object]) -> Iterator[None]:
    """Something is done once, while a verb writes."""
    left, real = [act], getattr(*place)

    def acting(*given: Any) -> Any:
        if left:
            left.pop()()
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, acting)
        yield


def put_in(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "mine.jpg").write_text("mine")


def nothing_beside(place: Path) -> bool:
    return list(place.rglob(f".*{PART}")) == [] and list(place.rglob(".semmae-lock")) == []


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "its own"])
def test_what_is_put_there_meanwhile_stays(
    verb: Verb, before: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, words, place = verb
    out = tmp_path / "out"
    words = [*words, "--out", str(out)]
    if before == "an empty folder":
        out.mkdir()
    if before == "its own":
        assert run(words) == 0
        words.append("--overwrite")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    capfd.readouterr()
    with meanwhile(place, lambda: put_in(out)):
        assert run(words) == 2
    said = capfd.readouterr()
    assert str(tmp_path / "out-new") in said.err and "made" not in said.out
    assert {path.name for path in out.iterdir()} == there | {"mine.jpg"} and (out / "mine.jpg").read_text() == "mine"
    assert nothing_beside(tmp_path)
    # What was made is whole: known again at the place where it lies.
    words = [*words[: words.index("--out")], "--out", str(tmp_path / "out-new")]
    assert run(words) == 0 and "already finished" in capfd.readouterr().out


def test_of_two_at_once_on_one_place_the_second_is_refused(
    verb: Verb, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, words, place = verb
    (tmp_path / "deep").mkdir()
    begun, go = tmp_path / "begun", tmp_path / "go"

    def wait() -> None:
        begun.touch()
        while not go.exists():
            time.sleep(0.01)

    def first() -> int:
        with meanwhile(place, wait):
            return run([*words, "--out", str(tmp_path / "deep" / "out")])

    child = Forked(first)
    try:
        while not begun.exists() and child.process.is_alive():
            time.sleep(0.01)
        (tmp_path / "link").symlink_to(tmp_path / "deep")
        capfd.readouterr()
        for out in (tmp_path / "deep" / "out", tmp_path / "link" / "out"):
            for more in ([], ["--overwrite"]):
                assert run([*words, "--out", str(out), *more]) == 2
                assert f"--out {out}: another process is at work there" in capfd.readouterr().err
    finally:
        go.touch()
        assert child.ended(60) == 0, child.output
    assert nothing_beside(tmp_path) and {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    assert run([*words, "--out", str(tmp_path / "deep" / "out")]) == 0  # nothing locks it any more


def test_a_refused_one_leaves_no_folder_behind(verb: Verb, tmp_path: Path) -> None:
    call, words, _ = verb
    data = {"data": tmp_path / "photos"} if words[0] == "pack" else {"encoder": tmp_path / "photos"}
    (tmp_path / "photos").mkdir()
    with refused(tmp_path / "photos"):
        call(out=tmp_path / "deep" / "er" / "out", **data, **({"to": "timm"} if words[0] == "export" else {}))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
