"""The run folder: what is gone on with, what is refused, and what a killed run leaves."""

import dataclasses
import fcntl
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from forked import Forked

from semmae.commands.knn import KnnOptions
from semmae.commands.run import UNFINISHED, checked, run_folder, write_text
from semmae.commands.teacher import TeacherOptions
from semmae.errors import UserError


@pytest.fixture
def options(tmp_path: Path) -> TeacherOptions:
    return TeacherOptions(data="photos", out=tmp_path / "out")


class Killed(BaseException):
    """Stands for a kill: neither an error that is handled nor the good end."""


def kill(options: TeacherOptions) -> None:
    """A run that writes something and is killed."""
    with pytest.raises(Killed), run_folder(options) as out:
        (out / "half").write_text("")
        raise Killed


def test_the_same_command_goes_on_with_what_was_killed(
    options: TeacherOptions, caplog: pytest.LogCaptureFixture
) -> None:
    assert checked(options) == options
    kill(options)
    with caplog.at_level("INFO", "semmae"):
        assert checked(options) == dataclasses.replace(options, resume=True)
    assert caplog.messages == [f"--out {options.out}: this very run was begun there and not finished; going on with it"]
    kill(checked(options))  # and again
    # What changes no result may differ: the next machine has other cores.
    assert checked(dataclasses.replace(options, workers=7)) == dataclasses.replace(options, workers=7, resume=True)
    with run_folder(checked(options)):
        pass
    with pytest.raises(UserError, match="not empty; use --resume to go on, --overwrite"):
        checked(options)  # finished
    assert checked(dataclasses.replace(options, resume=True)).resume


def test_another_command_is_refused(options: TeacherOptions, tmp_path: Path) -> None:
    kill(options)
    before = tiny.listing(options.out)
    other = dataclasses.replace(options, epochs=7)
    verb = KnnOptions(encoder="e", data="photos", out=options.out)
    for refused in (other, verb):
        with pytest.raises(UserError, match="not empty; use --resume to go on, --overwrite"):
            checked(refused)
    assert checked(dataclasses.replace(other, overwrite=True)).resume is False
    assert tiny.listing(options.out) == before


def test_foreign_files_are_refused_and_beginnings_are_not(options: TeacherOptions) -> None:
    options.out.mkdir()
    for name in (UNFINISHED, ".config.yaml.tmp"):  # all that a run killed at once leaves
        (options.out / name).write_text("")
        assert checked(options) == options
    (options.out / "photo.jpg").write_text("")
    with pytest.raises(UserError, match="not empty"):
        checked(options)
    with pytest.raises(UserError, match="holds no run of semmae"):
        checked(dataclasses.replace(options, overwrite=True))


def test_a_replacement_that_was_killed_is_begun_again(options: TeacherOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was removed first: it is not gone on with, and --overwrite may be said again."""
    kill(options)
    (options.out / "checkpoints").mkdir()
    anew = dataclasses.replace(options, overwrite=True)
    for _ in range(len(tiny.listing(options.out)) - 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            removed = 0

            def once(entry: Path) -> None:
                nonlocal removed
                if removed:
                    raise Killed
                removed += 1
                entry.rmdir() if entry.is_dir() else entry.unlink()

            patch.setattr("semmae.commands.run._remove", once)
            patch.setattr("semmae.commands.run.write_text", lambda *_: (_ for _ in ()).throw(Killed))
            with run_folder(checked(anew)):
                pass
        if tiny.listing(options.out).keys() - {UNFINISHED}:
            with pytest.raises(UserError, match="not empty"):
                checked(options)
    assert not checked(anew).resume


def test_leftovers_are_swept_when_it_goes_on(options: TeacherOptions) -> None:
    kill(options)
    for name in (".encoder-x1", ".head-x1", ".segmenter-x1"):
        (options.out / name / "fresh").mkdir(parents=True)
    (options.out / "untrained" / ".segmenter-x2" / "fresh").mkdir(parents=True)
    for name in (".summary.json.tmp", "parts.npy.tmp", "notes.txt"):
        (options.out / name).write_text("")
    with run_folder(checked(options)) as out:
        assert sorted(path.name for path in out.iterdir()) == [
            UNFINISHED, "config.yaml", "half", "notes.txt", "train.log", "untrained",
        ]  # fmt: skip
        assert not list((out / "untrained").iterdir())
    assert not (options.out / UNFINISHED).exists()


@contextmanager
def held(marker: Path) -> Iterator[None]:
    """Another process is at work on a run."""
    context = multiprocessing.get_context("fork")
    locked, done = context.Event(), context.Event()

    def hold() -> None:
        with open(marker, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            locked.set()
            done.wait(60)

    child = Forked(hold)
    assert locked.wait(60), child.told
    yield
    done.set()
    assert child.ended(60) == 0, child.told


def test_a_run_at_work_is_left_alone(options: TeacherOptions) -> None:
    kill(options)
    with held(options.out / UNFINISHED):
        for change in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another process is at work there; wait for it"):
                checked(dataclasses.replace(options, **change))
    assert checked(options).resume


def test_a_reader_sees_the_old_text_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(Killed))
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
