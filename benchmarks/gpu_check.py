"""What this project does on a GPU, in less than ten minutes: rates, losses, waits, feeding, an interrupted run.

    python benchmarks/gpu_check.py --out DIR [--seconds 560] [--only facts steps …] [--tiny]

It needs nothing but a checkout and what the package requires; peers that are not installed are left out. Images are
drawn. Without a GPU, or with `--tiny`, everything is tiny, and shows that the script works.

Each section has seconds of its own and runs in a process that is stopped when these are over; a fault ends a section,
not the rest. Those for which no time is left are skipped: `--only` runs them another time. Every figure is printed as
one line of JSON as soon as it is there, and is by then in `DIR/gpu_check.json` with all before it. The last lines are
goals: met, missed, or open where nothing was measured. It ends with 1 where a section failed.
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
from typing import Any

# In the order in which they run, what matters most first; and the most seconds of each.
SECTIONS = {
    "facts": 20,
    "products": 20,
    "losses": 45,
    "waits": 60,
    "steps": 170,
    "command": 170,
    "peers": 130,
    "profile": 40,
    "checkpointing": 50,
    "labelling": 30,
    "neighbours": 30,
    "loading": 60,
    "sharing": 100,
}
_LEAST = 10  # seconds left in which a section is still begun
IMAGES_PER_S, FASTER, FED = 4500, 1.5, 0.9  # of ViT-B/16 on one H100; than each peer; share with packed shards

Line = dict[str, Any]
Lines = dict[str, list[Line]]


def main() -> int:
    """Run all sections, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--seconds", type=float, default=560, help="of all sections")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS), help="sections to run")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that the script works, as without a GPU")
    options = parser.parse_args()
    _find_package()
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / "gpu_check.json")
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, Worker(options.tiny, Path(folder)) as worker:
        for name in options.only:
            left = end - time.monotonic()
            if left < _LEAST:
                report.add(name, {"state": "skipped: no time is left"})
                continue
            for line in worker.lines(name, SECTIONS[name], left):
                report.add(name, line)
    for goal in goals(report.lines, big=not worker.tiny):
        report.add("goals", goal)
    return int(report.failed)


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

    @property
    def failed(self) -> bool:
        """Whether a section ended in a fault."""
        return any("failed" in line.get("state", "") for lines in self.lines.values() for line in lines)


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

    def lines(self, section: str, seconds: float, left: float) -> Iterator[Line]:
        """What a section finds, and last its "state": in its `seconds`, which are no more than are `left` of all."""
        end = time.monotonic() + left
        try:
            if self._process is None:
                self._start()
                self.tiny = self._next(end)["tiny"]
            if not self.tiny:
                end = min(end, time.monotonic() + seconds)
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
        self._process = context.Process(target=_serve, args=(theirs, *self._given))
        self._process.start()
        theirs.close()

    def _stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended, or not yet begun
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, tiny: bool, folder: Path) -> None:
    os.setpgrp()  # whatever it starts ends with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import gpu_runs
    import gpu_steps

    sizes = gpu_steps.sizes_here(tiny)
    pipe.send({"tiny": sizes.tiny})
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            section = getattr(gpu_steps, name, None) or getattr(gpu_runs, name)
            for line in section(sizes, folder):
                pipe.send(line)
            pipe.send({"state": "done"})
        except Exception as error:
            traceback.print_exc()
            pipe.send({"state": f"failed: {type(error).__name__}: {error}"})


def goals(lines: Lines, big: bool) -> Iterator[Line]:
    """What was wanted of a GPU of the H100's class, what was found, and whether that is enough; open unless `big`."""

    def found(section: str) -> list[Line]:
        return [line for line in lines.get(section, []) if "state" not in line]

    base = [line for line in found("steps") if line["model"] == "vit_base" and line["compiled"]]
    steps = [line for line in base if not line.get("bf16_residual")]  # as it is by default
    best = max((line["images_per_s"] for line in steps), default=None)
    waits = [line["waits"] for line in found("waits") if line["task"].startswith("pretrain")]
    yield _goal("images/s of ViT-B/16, compiled", best, IMAGES_PER_S, big)
    counted = None if not waits or None in waits else sum(waits)
    yield _goal("waits for the device in steps of pretrain", counted, 0, big, most=True)
    ratios = {name: ratio for line in found("peers") if line.get("compiled") for name, ratio in line["ratios"].items()}
    for peer in ("transformers", "lightly"):
        yield _goal(f"times as fast as {peer}, both compiled", ratios.get(peer), FASTER, big)
    fed = next((line for line in found("command") if "images_per_s" in line), {})
    same = [line["images_per_s"] for line in steps if line["batch"] == fed.get("batch")]
    share = round(fed["images_per_s"] / same[0], 3) if same else None
    yield _goal("of these images/s by the command, from packed shards", share, FED, big)


def _goal(goal: str, found: float | None, wanted: float, big: bool, most: bool = False) -> Line:
    enough = found is not None and (found <= wanted if most else found >= wanted)
    verdict = "open" if found is None or not big else "met" if enough else "missed"
    return {"goal": goal, "found": found, "wanted": f"{'at most' if most else 'at least'} {wanted}", "verdict": verdict}


if __name__ == "__main__":
    sys.exit(main())
