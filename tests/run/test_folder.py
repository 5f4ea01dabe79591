"""The run folder: what is gone on with, what is refused, and what a killed run leaves."""

import dataclasses
import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from forked import Forked
from refusals import refused

from semmae.errors import UserError
from semmae.files import PART
from semmae.options.knn import KnnOptions
from semmae.options.teacher import TeacherOptions
from semmae.run import folder
from semmae.run.config import UNFINISHED
from semmae.run.folder import AtWork, claimed, locked, run_folder, turn


@pytest.fixture
def options(tmp_path: Path) -> TeacherOptions:
    return TeacherOptions(data="photos", out=tmp_path / "out")


def checked(options: Any) -> Any:
    """What a verb would run with, the folder let go at once."""
    with claimed(options) as own:
        return own


class Killed(BaseException):
    """Stands for a kill: neither an error that is handled nor the good end."""


def kill(options: TeacherOptions) -> None:
    """A run that writes something and is killed."""
    with pytest.raises(Killed), run_folder(options) as out:
        (out / "metrics.jsonl").write_text("")
        raise Killed


def test_the_same_command_goes_on_with_what_was_killed(
    options: TeacherOptions, caplog: pytest.LogCaptureFixture
) -> None:
    assert checked(options) == options
    kill(options)
    with caplog.at_level("INFO", "semmae"):
        assert checked(options) == dataclasses.replace(options, resume=True)
    (message,) = caplog.messages
    assert message.startswith(f"--out {options.out}: ")
    kill(checked(options))  # and again
    # What changes no result may differ: the next machine has other cores.
    assert checked(dataclasses.replace(options, workers=7)) == dataclasses.replace(options, workers=7, resume=True)
    with run_folder(checked(options)):
        pass
    with refused(options.out, "--resume", "--overwrite"):
        checked(options)  # finished
    assert checked(dataclasses.replace(options, resume=True)).resume


def test_another_command_is_refused(options: TeacherOptions, tmp_path: Path) -> None:
    kill(options)
    before = tiny.listing(options.out)
    other = dataclasses.replace(options, epochs=7)
    verb = KnnOptions(encoder="e", data="photos", out=options.out)
    for wrong in (other, verb):
        with refused(options.out, "--resume", "--overwrite"):
            checked(wrong)
    assert checked(dataclasses.replace(other, overwrite=True)).resume is False
    assert tiny.listing(options.out) == before


def test_foreign_files_are_refused_and_beginnings_are_not(options: TeacherOptions) -> None:
    options.out.mkdir()
    for name in (UNFINISHED, ".semmae-lock", f".config.yaml.7{PART}"):  # all that a run killed at once leaves
        (options.out / name).write_text("")
        assert checked(options) == options
    (options.out / "photo.jpg").write_text("")
    with refused(options.out, "not empty"):
        checked(options)
    with refused(options.out, "--overwrite"):
        checked(dataclasses.replace(options, overwrite=True))


def test_what_is_not_of_the_run_is_never_deleted(options: TeacherOptions) -> None:
    kill(options)
    (options.out / "half").write_text("")
    (options.out / "photos").mkdir()
    (options.out / "photos" / "a.jpg").write_text("mine")
    before = tiny.listing(options.out)
    with refused("half, photos"):
        checked(dataclasses.replace(options, overwrite=True))
    assert tiny.listing(options.out) == before


def test_a_replacement_that_was_killed_is_begun_again(options: TeacherOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was removed first: it is not gone on with, and --overwrite may be said again."""
    with pytest.raises(Killed), run_folder(options) as out:
        (out / "checkpoints").mkdir()
        (out / "metrics.jsonl").write_text("")
        raise Killed
    anew = dataclasses.replace(options, overwrite=True)
    for _ in range(len(tiny.listing(options.out)) - 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            removed = 0

            def once(entry: Path) -> None:
                nonlocal removed
                if not entry.exists():
                    return
                if removed:
                    raise Killed
                removed += 1
                entry.rmdir() if entry.is_dir() else entry.unlink()

            patch.setattr("semmae.run.folder.remove", once)
            patch.setattr("semmae.run.folder.write_text", lambda *_: (_ for _ in ()).throw(Killed))
            with run_folder(checked(anew)):
                pass
        if tiny.listing(options.out).keys() - {UNFINISHED}:
            with refused(options.out, "not empty"):
                checked(options)
    assert not checked(anew).resume


def test_leftovers_are_swept_when_it_goes_on_and_nothing_of_the_users(options: TeacherOptions) -> None:
    kill(options)
    mine = ["notes.tmp", ".notes.tmp", "untrained/.encoder-mine", "parts.npy.tmp"]
    for name in (f".encoder.7{PART}", f"untrained/.segmenter.8{PART}"):
        (options.out / name / "fresh").mkdir(parents=True)
    for name in (f".summary.json.7{PART}", *mine):
        (options.out / name).write_text("")
    with run_folder(checked(options)) as out:
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        assert found == sorted([UNFINISHED, ".semmae-lock", "config.yaml", "metrics.jsonl", "train.log", *mine])
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
    assert locked.wait(60), child.output
    yield
    done.set()
    assert child.ended(60) == 0, child.output


def test_a_run_at_work_is_left_alone(options: TeacherOptions) -> None:
    kill(options)
    (options.out / ".semmae-lock").touch()
    with held(options.out / ".semmae-lock"):
        for change in ({}, {"resume": True}, {"overwrite": True}):
            with refused(options.out, "another process"):
                checked(dataclasses.replace(options, **change))
    assert checked(options).resume


def test_of_processes_started_together_one_runs(options: TeacherOptions) -> None:
    """The folder is one's own before the first look at the data, as long as that takes."""
    context = multiprocessing.get_context("fork")
    start, done = context.Event(), context.Event()

    def race() -> int:
        start.wait(60)
        try:
            with claimed(options):
                done.wait(60)
        except UserError:
            return 3
        return 0

    children = [Forked(race) for _ in range(4)]
    start.set()
    deadline = time.monotonic() + 60
    while sum(child.process.exitcode == 3 for child in children) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    assert sorted(child.ended(60) for child in children) == [0, 3, 3, 3], [child.output for child in children]
    # Nothing was written. An empty folder may be left, where another made it than the one that locked it.
    assert not options.out.exists() or list(options.out.iterdir()) == []


def test_a_claim_that_fails_leaves_no_folder(options: TeacherOptions) -> None:
    deep = dataclasses.replace(options, out=options.out / "a" / "b")
    with pytest.raises(UserError), claimed(deep):
        assert (deep.out / ".semmae-lock").exists()
        raise UserError("the data is at fault")
    assert not options.out.exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_lock_that_is_none_is_one_line(make: Any, options: TeacherOptions) -> None:
    options.out.mkdir()
    make(options.out / ".semmae-lock")
    with refused("semmae-lock"):
        checked(options)


def test_two_threads_are_two_runs(options: TeacherOptions) -> None:
    found: list[str] = []

    def second() -> None:
        with refused(options.out) as raised:
            checked(options)
        found.append(str(raised.value))

    with claimed(options), claimed(options):  # a stage of a run is its own
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1


def outcome(out: Path, **how: bool) -> int:
    """Of another process that asks for a folder: 0, it had it, or 1, others are at work."""

    def work() -> int:
        folder._held.clear()
        try:
            with locked(out, **how):
                return 0
        except AtWork:
            return 1

    child = Forked(work)
    code = child.ended(60)
    assert code in (0, 1), child.output
    return code


def test_processes_that_share_a_folder_keep_all_others_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out, shared=True):
        assert (outcome(out, shared=True), outcome(out)) == (0, 1)
        assert (outcome(out, shared=True), outcome(out)) == (0, 1)  # the first of them to leave opens no door
    with locked(out):
        assert (outcome(out, shared=True), outcome(out)) == (1, 1)
    assert (outcome(out, shared=True), outcome(out)) == (0, 0)


def test_a_turn_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_WAIT", 0.01)

    def work() -> int:
        folder._held.clear()
        with turn(tmp_path / "out", "task"):
            (tmp_path / "second").touch()
        return 0

    with turn(tmp_path / "out", "task"):
        child = Forked(work)
        time.sleep(0.3)
        assert not (tmp_path / "second").exists()
    assert child.ended(60) == 0, child.output
    assert (tmp_path / "second").exists()


def test_a_run_of_which_others_have_a_share_is_not_finished(options: TeacherOptions) -> None:
    with claimed(options) as own, run_folder(own, lambda: False):
        pass
    assert (options.out / UNFINISHED).is_file() and checked(options).resume
    with claimed(options) as own, run_folder(own, lambda: True):
        pass
    assert not (options.out / UNFINISHED).exists()
