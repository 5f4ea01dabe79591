"""The run folder: claimed, refused, resumed or begun anew, but never touched before all options are checked.

Notable here:
- a run claims its folder before it looks at its data, by a lock of the system's in `.semmae-lock`, which is free again
  with the process however that ends: of two that are started together one is refused;
- from its beginning to its good end a run keeps the file `.unfinished` in its folder. Where it is left, the run was
  killed: the same command resumes it;
- --overwrite deletes what a run writes, and nothing else: a folder that holds anything of the user's is refused.
"""

import dataclasses
import errno
import fcntl
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from semmae.errors import UserError, listed
from semmae.files import is_part, make_folder, name_beside, remove, sweep, write_text
from semmae.options import VERBS
from semmae.options.fields import flag, options_of, with_facts
from semmae.options.shared import NodeOptions, RunOptions
from semmae.options.values import check_values
from semmae.progress import held, logged
from semmae.run.config import CONFIG, UNFINISHED, began_alike, check_resumed, continues, to_yaml, what_became
from semmae.run.places import check_apart, check_place
from semmae.run.ranks import SHARED, is_rank_zero, take_rank

_LOCK = ".semmae-lock"
_TURNS = "turns"  # locks of tasks; not in what a start of several processes shares, which the next start removes
# What a run that was killed before its first file was whole leaves behind: as good as nothing.
_NOTHING = {UNFINISHED, _LOCK, SHARED, _TURNS}
# All that runs leave in their folder, which is what --overwrite may delete: patterns of files, those of every run and
# those of the verbs, folders of loggers with whatever lies in them, and runs within the run.
_FILES = {
    UNFINISHED, _LOCK, f"{_TURNS}/*/{_LOCK}", f"{SHARED}/*.np[yz]", f"{SHARED}/*.alive", f"{SHARED}/*.made",
    f"{SHARED}/*.json", CONFIG,
    "train.log", "summary.json", "skipped.csv", "metrics.jsonl", "report.html", "loggers.json",
    "checkpoints/last.ckpt", "checkpoints/last.ckpt/*",
    "tensorboard/events.*", "tensorboard/hparams.yaml", "csv/version_*/metrics.csv",
    "csv/version_*/hparams.yaml", *(pattern for row in VERBS.values() for pattern in row.leaves),
}  # fmt: skip
_LOGGERS = {"wandb", "mlruns"}
_RUNS = {name for row in VERBS.values() for name in row.runs}
_MANY = {row.many for row in VERBS.values() if row.many}
_NAMES = {pattern.partition("/")[0] for pattern in _FILES} | _LOGGERS
OptionsT = TypeVar("OptionsT", bound=RunOptions)

_log = logging.getLogger("semmae")
_WAIT = 1.0  # seconds between two looks at a folder in which another process is at work


class AtWork(UserError):
    """Another process is at work in a folder."""


# Folders that this process has locked, and the thread that has: the system's lock does not keep it from itself.
_held: dict[Path, int] = {}


@contextmanager
def claimed(options: OptionsT, makes: Path | None = None) -> Iterator[OptionsT]:
    """The options to run with, `out` locked: values checked, the folder looked at, --resume filled in.

    --resume is filled in too where `out` holds a run that was begun with just these options and did not
    come to its end: the same command again resumes it. Where the block fails, a folder that was only locked goes again.
    `makes`: a file outside the folder in which the work is to end.
    """
    check_claim(options)
    if isinstance(options, NodeOptions):
        take_rank(options.nodes, options.devices)
    check_inputs(options, makes)
    settled(options)  # a folder that is refused is not even locked
    with ExitStack() as stack:
        if is_rank_zero():
            stack.enter_context(held())
            stack.enter_context(locked(options.out, shared=options.shares_folder))
        own = settled(options)
        if own.resume and not continues(options) and is_rank_zero():
            _log.info("--out %s: this very run was begun there and not finished; resuming it", own.out)
        yield own


def check_claim(options: RunOptions) -> None:
    """What `claimed` refuses by the options and the folder alone; nothing is touched."""
    if options.overwrite and continues(options):
        named = next(flag(name) for name in with_facts(type(options), continues=True) if getattr(options, name))
        raise UserError(f"{named} and --overwrite exclude each other; give one of them")
    if continues(options):
        check_resumed(options)
    check_values(options)
    check_place("--out", options.out)


def check_inputs(options: Any, makes: Path | None = None) -> None:
    """Refuse an output of a verb's options that is, holds or lies in one of their inputs; `makes` is another output."""
    every = options_of(type(options))
    inputs = {
        option.flag: value
        for name, option in every.items()
        if option.facts.reads and isinstance(value := getattr(options, name), str | Path) and not option.is_word(value)
    }
    if continues(options):
        inputs.pop("--config", None)  # may be the run's own: nothing is deleted
    searched = [flag(name) for name in with_facts(type(options), reads="images")]
    outputs = [(flag(name), getattr(options, name)) for name in with_facts(type(options), writes=True)]
    check_apart([("--out", makes), *outputs], inputs, searched)


def settled(options: OptionsT) -> OptionsT:
    """Whether these options begin a run, or resume the one in `out`."""
    config = options.out / CONFIG
    interrupted = config.is_file() and (options.out / UNFINISHED).is_file() and not options.overwrite
    if continues(options) or (interrupted and began_alike(options)):
        return dataclasses.replace(options, resume=True, **what_became(options))
    # Ranks started by rank 0 find the folder already begun.
    if is_rank_zero():
        _refuse_occupied(options)
    return options


def _refuse_occupied(options: RunOptions) -> None:
    out = options.out
    names = {path.name for path in out.iterdir() if not is_part(path)} if out.is_dir() else set()
    if names <= _NOTHING:
        return
    if not options.overwrite:
        check_inputs(options)  # the folder of the images is not empty either
        raise UserError(
            f"--out {out}: not empty; use --resume to continue it, --overwrite to replace it, or another folder"
        )
    if CONFIG not in names:
        raise UserError(f"--out {out}: holds no run of semmae: --overwrite will not delete it; use another folder")
    foreign = [str(path.relative_to(out)) for path in foreign_files(out)]
    if foreign:
        raise UserError(
            f"--out {out}: holds {listed(foreign)} beside its run: --overwrite will not delete that; move it away, or "
            "use another folder"
        )


def foreign_files(run: Path) -> list[Path]:
    """What lies in a run's folder, at any depth, that no run writes: the user's."""
    found: list[Path] = []
    for path in sorted(run.iterdir()):
        if path.name in _RUNS and _is_folder(path):
            found += foreign_files(path)
        elif path.name in _MANY and _is_folder(path):
            for row in sorted(path.iterdir()):
                for inner in sorted(row.iterdir()) if _is_folder(row) else [row]:
                    found += foreign_files(inner) if _is_folder(inner) else [inner]
        elif path.name in _NAMES and _is_folder(path):
            files = (file for file in sorted(path.rglob("*")) if not _is_folder(file))
            found += [file for file in files if path.name not in _LOGGERS and not _is_ours(file.relative_to(run))]
        elif not (is_part(path) or _is_ours(path.relative_to(run))):
            found.append(path)
    return found


def _is_ours(file: Path) -> bool:
    """Whether a run may leave such a file, named from its folder."""
    return any(Path("/", file).match(f"/{pattern}") for pattern in _FILES)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@contextmanager
def turn(out: Path, task: str) -> Iterator[None]:
    """A task that the processes which share a run's folder do one after the other."""
    place, said = out / _TURNS / task, False
    with ExitStack() as stack:
        for folder in (place.parent, place):
            stack.callback(_remove_empty, folder)
        while True:
            try:
                stack.enter_context(locked(place))
                break
            except AtWork:
                if not said:
                    _log.info("%s: another process is at work for all (%s); waiting for it", out, task)
                said = True
                time.sleep(_WAIT)
        yield


def _remove_empty(folder: Path) -> None:
    """One that a killed process has made is nobody's to remove but the next one's."""
    with suppress(OSError):  # it is not empty
        folder.rmdir()


@contextmanager
def locked_beside(out: Path) -> Iterator[None]:
    """The place of a folder that is written beside it, and moved there whole, is this process's alone; what locks it
    lies beside it too, and goes again.
    """
    place = name_beside(out.resolve(), "lock")
    with ExitStack() as stack:
        stack.callback(_remove_empty, place)
        try:
            stack.enter_context(locked(place))
        except AtWork:
            raise _at_work(out) from None
        yield


@contextmanager
def locked(out: Path, *, shared: bool = False) -> Iterator[None]:
    """The folder is this process's alone, or with `shared` that of others who share it; it is made, and goes again
    where nothing was written to it.
    """
    place = out.resolve()
    if _held.get(place, threading.get_ident()) != threading.get_ident():
        raise _at_work(out)
    if place in _held:  # a stage of a run, whose folder it has locked itself
        yield
        return
    made = [folder for folder in (out, *out.absolute().parents) if not folder.exists()]
    make_folder(out)
    path = out / _LOCK
    with _open_locked(path, shared=shared) as descriptor:
        _held[place] = threading.get_ident()
        try:
            yield
        finally:
            _held.pop(place, None)
            # Not another run's, which has taken the place of a removed folder.
            if (not shared or _is_last(descriptor)) and _is_at(descriptor, path):
                path.unlink()  # before it is let go: nobody waits for it
            with suppress(OSError):  # something was written
                for folder in made:
                    folder.rmdir()


@contextmanager
def _open_locked(path: Path, *, shared: bool) -> Iterator[int]:
    """The descriptor of the file, made and locked; of the kind that processes which load images do not inherit: they
    outlive a killed run a little.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its last owner has removed the folder between the two
            make_folder(path.parent)
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror}); remove it, or use another folder") from error
        with open(descriptor, "a") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: is no regular file; remove it, or use another folder")
            try:
                fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _at_work(path.parent) from None
                _log.debug("%s: not locked (%s)", path, error)  # a file system without locks: nobody can know
            if _is_at(file.fileno(), path):
                yield file.fileno()
                return
        # Else its last owner has removed it between the two: it is nobody's lock.


def _is_last(descriptor: int) -> bool:
    """Whether no other process shares the lock any more."""
    with suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _at_work(out: Path) -> AtWork:
    return AtWork(f"--out {out}: another process is at work there; wait for it, or use another folder")


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextmanager
def run_folder(options: RunOptions, is_whole: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """Begin the run in `options.out`: clear it when asked to, write config.yaml, log to train.log.

    At the end of the block it is marked as finished, if `is_whole` says so: others may have a share of it to do.
    """
    out = options.out
    with ExitStack() as stack:
        if is_rank_zero():
            stack.enter_context(locked(out, shared=options.shares_folder))
            if options.overwrite:
                _clear(out)
            (out / UNFINISHED).touch()
            if options.resume and not options.shares_folder:  # others may be writing
                sweep(out)
            write_text(out / CONFIG, to_yaml(options))
        # A run within a run begins in all processes at once: its folder may not be there yet.
        make_folder(out)
        stack.enter_context(logged(out / "train.log"))
        _log.debug("semmae started: %s", " ".join(sys.argv))
        try:
            yield out
        except BaseException as error:  # Ctrl-C too
            _log.debug("stopped: %s: %s", type(error).__name__, error)
            raise
        if is_rank_zero() and is_whole():
            (out / UNFINISHED).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove the run in a folder, so that one killed meanwhile is neither resumed nor taken for no run."""
    sweep(folder)
    (folder / UNFINISHED).unlink(missing_ok=True)
    for name in sorted((_NAMES | _RUNS | _MANY) - {CONFIG, _LOCK, SHARED}):
        remove(folder / name)
    (folder / CONFIG).unlink(missing_ok=True)
