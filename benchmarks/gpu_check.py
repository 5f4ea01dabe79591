"""What this project does on a GPU, in less than ten minutes: rates, losses, waits, feeding, an interrupted run.

    python benchmarks/gpu_check.py --out DIR [--seconds 560] [--only facts steps …] [--tiny]

It needs nothing but a checkout and what the package requires; peers that are not installed are left out. Images are
drawn. Without a GPU, or with `--tiny`, everything is tiny, and shows that the script works.

Each section has a share of the seconds and runs in a process that is stopped when these are over; a fault ends a
section, not the rest. What a section leaves of its share goes to those after it: of the last ones, above all the peers,
that may be too little, and `--only peers --out OTHER` gives them all of it. Every figure is printed as one line of JSON
as soon as it is there, and is by then in `DIR/gpu_check.json` with all before it. Then come the goals: met, missed, or
open where nothing was measured.

The last line names what was missed, what stays open, and the sections that failed, were stopped or skipped; its code is
how the script ends: 0 all is done, and on a GPU every goal of these sections is met; 3 a goal is missed, something is
wrong or too slow; 1 no goal is missed, but not all was measured; 2 the arguments are wrong.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from gpu_goals import Line, Lines, ending, goals


class Section(NamedTuple):
    """What finds something, as a generator of lines."""

    function: str  # MODULE:NAME. Imported by the process that runs it: this one must not begin with the GPU
    seconds: int  # its share of 560; what it takes on an H100 or H200, as calculated, most of it for compiling


# In the order in which they run: what nothing but a GPU can show comes first. Of `steps` six are compiled, half a
# minute each; what later sections compile of the same shapes they find in torch's cache.
SECTIONS = {
    "facts": Section("gpu_steps:facts", 5),
    "products": Section("gpu_steps:products", 10),
    "losses": Section("gpu_steps:losses", 25),
    "waits": Section("gpu_waits:waits", 40),
    "steps": Section("gpu_steps:steps", 190),
    "sharing": Section("gpu_steps:sharing", 45),
    "command": Section("gpu_runs:command", 105),
    "loading": Section("gpu_runs:loading", 30),
    "checkpointing": Section("gpu_steps:checkpointing", 20),
    "profile": Section("gpu_steps:profile", 15),
    "neighbours": Section("gpu_runs:neighbours", 10),
    "labelling": Section("gpu_runs:labelling", 15),
    "peers": Section("gpu_steps:peers", 50),
}
# What the package and these sections import at once; an image with PyTorch in it may lack some.
_NEEDED = (
    "torch", "torchvision", "timm", "pytorch_lightning", "lightly", "segmentation_models_pytorch", "platformdirs",
)  # fmt: skip
_END = 20  # seconds in which a process that is killed ends; longer only where its driver hangs


def main() -> int:
    """Run all sections, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--seconds", type=float, default=560, help="of all sections")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS), help="sections to run")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that the script works, as without a GPU")
    options = parser.parse_args()
    path = options.out / "gpu_check.json"
    if not options.seconds > 0:
        parser.error(f"--seconds {options.seconds:g}: must be above 0")
    if path.exists():
        parser.error(f"--out {options.out}: holds gpu_check.json of an earlier run, which stays; give another folder")
    _find_package()
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        parser.error(f"{', '.join(missing)}: not installed, and most sections would fail; install what semmae requires")
    options.out.mkdir(parents=True, exist_ok=True)
    report, left = Report(path), list(dict.fromkeys(options.only))
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, Worker(options.tiny, Path(folder)) as worker:
        while left:
            share = SECTIONS[left[0]].seconds / sum(SECTIONS[name].seconds for name in left)
            name = left.pop(0)
            for line in worker.lines(name, end, share):
                report.add(name, line)
    for goal in goals(report.lines, big=not worker.tiny):
        report.add("goals", goal)
    last = ending(report.lines, big=not worker.tiny)
    report.add("ending", last)
    return int(last["code"])


def _find_package() -> None:
    """Where the package is not installed, its source beside this file is used, by processes that are started too."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    if find_spec("semmae") is None:
        sys.path.insert(0, source)
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])


class Report:
    """What was found, on the terminal and in a file that is whole after every line."""

    def __init__(self, path: Path) -> None:
        self.lines: Lines = {}
        self._path, self._began = path, time.monotonic()

    def add(self, section: str, line: Line) -> None:
        """Print a line and keep it."""
        self.lines.setdefault(section, []).append(line)
        print(json.dumps({"section": section, "at_s": round(time.monotonic() - self._began, 1), **line}), flush=True)
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps({"benchmark": "gpu_check", "sections": self.lines}, indent=1) + "\n")
        beside.replace(self._path)


class Worker:
    """A process that runs sections, one after the other; a new one where one was stopped or has failed."""

    def __init__(self, tiny: bool, folder: Path) -> None:
        self._given = tiny, folder
        self._process: Any = None
        self._pipe: Any = None
        self.tiny = True  # known when it has begun

    def __enter__(self) -> "Worker":
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # with its processes
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        signal.signal(signal.SIGTERM, self._before)

    def lines(self, section: str, end: float, share: float) -> Iterator[Line]:
        """What a section finds, and last its "state": in its share of the time until the end, once it can begin."""
        if time.monotonic() >= end:
            yield {"state": "skipped: no time is left"}
            return
        try:
            if self._process is None:
                self._start()
                self.tiny = self._next(end)["tiny"]
            if not self.tiny:
                now = time.monotonic()
                end = now + share * max(0.0, end - now)
            self._pipe.send(section)
            line: Line = {}
            while "state" not in line:
                line = self._next(end)
                if not self.tiny and line.get("state", "done") != "done":
                    self._stop()  # what is left of it on the GPU goes with it
                yield line
        except TimeoutError:
            self._stop()
            yield {"state": "stopped: its time is over"}
        except (EOFError, OSError):
            self._stop()
            yield {"state": "failed: its process ended"}

    def _next(self, end: float) -> Line:
        if not self._pipe.poll(max(0.0, end - time.monotonic())):
            raise TimeoutError
        line: Line = self._pipe.recv()
        return line

    def _start(self) -> None:
        # Forked, which a process that has not begun with the GPU may be.
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._pipe, theirs, *self._given))
        self._process.start()
        theirs.close()

    def _stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended, or not yet begun
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join(_END)
            self._process = None


def _serve(inherited: Connection, pipe: Connection, tiny: bool, folder: Path) -> None:
    os.setpgrp()  # whatever it starts ends with it
    inherited.close()  # or the pipe would stay open, and this process with the GPU, where the first one is killed
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import gpu_steps

    sizes = gpu_steps.sizes_here(tiny)
    pipe.send({"tiny": sizes.tiny})
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            for line in resolve_name(SECTIONS[name].function)(sizes, folder):
                pipe.send(line)
            gpu_steps.with_nothing()  # memory that torch keeps would lack the processes that the next one starts
            pipe.send({"state": "done"})
        except Exception as error:
            traceback.print_exc()
            pipe.send({"state": f"failed: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    sys.exit(main())
