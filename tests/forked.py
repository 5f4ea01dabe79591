"""A process forked from the test's own, and what it says.

Forked, and not new: importing the libraries would take longer than all else.
"""

import faulthandler
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semmae.cli import main, run
from semmae.run import ranks


class Forked:
    """Does some work in a forked process.

    What it writes is kept, not shown, so that an assertion about its end can say why:
    `assert child.ended(60) == 0, child.output`.

    Args:
        work: what to do; what it returns is the exit code, None is 0.
    """

    def __init__(self, work: Callable[[], int | None]) -> None:
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - open as long as this object
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(work,))
        self.process.start()

    def _run(self, work: Callable[[], int | None]) -> None:
        for stream in (1, 2):
            os.dup2(self._file.fileno(), stream)
        sys.stdout = sys.stderr = os.fdopen(os.dup(2), "w", 1, encoding="utf-8", errors="replace")
        faulthandler.disable()  # a library may have taken its signals since it was enabled
        faulthandler.enable(sys.stderr)
        code = work()
        sys.stderr.flush()
        os._exit(code or 0)  # none of the test's own leaving

    def ended(self, seconds: float) -> int | None:
        """The exit code, negative that of a signal; one that takes longer is made to say where it is, and die."""
        self.process.join(seconds)
        if self.process.is_alive():
            os.kill(self.process.pid or 0, signal.SIGABRT)
            self.process.join()
        return self.process.exitcode

    @property
    def output(self) -> str:
        """All that it wrote, and where it was when it was made to die."""
        self._file.seek(0)
        return f"exit code {self.process.exitcode}\n" + self._file.read().decode("utf-8", "replace")


def in_a_process(arguments: list[str], prepare: Callable[[], object] = lambda: None) -> Forked:
    """A command, after something that is done in its process first."""

    def work() -> int:
        prepare()
        return run(arguments)

    return Forked(work)


def as_command(arguments: list[str]) -> Forked:
    """`semmae ARGUMENTS`, but for the imports."""

    def work() -> None:
        _as_begun()
        main(arguments)

    return Forked(work)


def as_script(script: Path, arguments: list[str], **environment: str) -> Forked:
    """`python SCRIPT ARGUMENTS`, but for the imports; processes that it begins by its own command are new ones."""

    def work() -> int:
        os.environ.update({"OMP_NUM_THREADS": "1", **environment})
        _as_begun()
        sys.argv = [str(script), *arguments]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            assert ended.code is None or isinstance(ended.code, int)
            return ended.code or 0
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    return Forked(work)


def _as_begun() -> None:
    """Without what pytest has of the process, and heeding Ctrl-C, which a shell's background jobs do not."""
    logging.getLogger().handlers.clear()
    ranks._blocks = 0  # of the runs that several processes have shared, which one that is begun anew counts too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def suicide(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_renaming_of(name: str, after: bool) -> Callable[[], None]:
    """Dies where a file is moved into its place, before or after that."""

    def prepare() -> None:
        for function in ("replace", "rename"):
            real = getattr(os, function)

            def dying(source: Any, target: Any, real: Any = real) -> None:
                if Path(target).name != name:
                    return real(source, target)
                if after:
                    real(source, target)
                suicide()

            setattr(os, function, dying)

    return prepare
