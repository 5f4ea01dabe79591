"""What the experiments share: comparisons in pieces that fit into minutes, and their rows in one file.

A comparison is `semmae compare`, which goes on where it was stopped; a piece is that command, interrupted when its
minutes are over. Rows are what each run wrote, one a run.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from semmae.files import write_text

RECORD = "comparison.json"  # of a run that is measured
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
_OTHERS = ("segment_miou", "upernet_miou", "parts_nmi")  # where they were measured
_KEPT = ("masking", "variant", "parts", "target", "seed", "knn_top1", "probe_top1", "finetune_top1")


class Minutes:
    """A budget of minutes, which the commands of a piece share."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def run(self, *command: str) -> bool:
        """Run a command of semmae until it ends or the minutes are over; whether it ended."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        # Masks of one's own, such as kept.py, lie beside the experiments.
        places = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": places}
        process = subprocess.Popen([sys.executable, "-m", "semmae", *command], env=environment)
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # the step that is running ends, and is kept
            process.wait()
            return False
        if code:
            raise SystemExit(code)
        return True


def made(minutes: Minutes, verb: str, out: Path, given: Sequence[str]) -> bool:
    """A run of a verb, begun or gone on with; whether it is there."""
    if (out / "report.html").is_file() and not (out / ".unfinished").exists():
        return True
    resume = ["--resume"] if (out / "config.yaml").is_file() else []
    return minutes.run(verb, *given, "--out", str(out), *resume)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every experiment is asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many, to go on in the next call")
    parser.add_argument("--part", help="which share of the runs to make, such as 2/2; the first call has none")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="of those to make in this --work; the ones before are made elsewhere"
    )
    return parser


def is_mine(asked: argparse.Namespace, number: int) -> bool:
    """Whether a run, by its number, is of this share."""
    index, count = map(int, (asked.part or "1/1").split("/"))
    return number % count == index - 1


def compare(
    asked: argparse.Namespace, minutes: Minutes, out: Path, rows: Sequence[Row], seeds: int, shared: Sequence[str]
) -> bool:
    """Train and measure rows with so many seeds, less those before the first; both may be more than in the call before.

    Whether all of them are there, those of other parts too.
    """
    first = asked.first_seed
    if first >= seeds:
        return True
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(list(rows), sort_keys=False)
    # Named by what is in it: another process may be at another step.
    grid = out.with_name(f"rows-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml")
    grid.write_text(text)
    own = ["--resume"] if (out / "config.yaml").is_file() else []
    own += ["--part", asked.part] if asked.part else []
    own += ["--seed", str(first), "--seeds", str(seeds - first)]
    ended = minutes.run("compare", *shared, "--grid", str(grid), "--out", str(out), *own)
    runs = [out / "runs" / row["name"] / f"seed-{seed}" for row in rows for seed in range(first, seeds)]
    return ended and all((run / RECORD).is_file() for run in runs)


def found(out: Path) -> list[Row]:
    """What the finished runs of a comparison wrote, the rows of all calls together."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"runs/*/seed-*/{RECORD}"))]


def mean(rows: Iterable[Row], name: str, figure: str) -> float:
    """The mean of a figure over the seeds of the row with that name."""
    values = [row[figure] for row in rows if row["name"] == name]
    return float(sum(values) / len(values))


def write(name: str, rows: Iterable[Row], asked: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """results/NAME.json: the command that made it, but for what a piece is, and a line a run.

    Lines of other runs, of another folder, stay as they are.
    """
    given = {key: value for key, value in vars(asked).items() if value != parser.get_default(key)}
    words = [
        f"--{key} {value}" if value is not True else f"--{key}"
        for key, value in given.items()
        if key not in ("minutes", "part", "first_seed")
    ]
    command = " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *words])
    kept = [
        {"name": row["name"], **{key: row.get(key) for key in _KEPT},
         **{key: row[key] for key in _OTHERS if key in row}, "minutes": row["minutes"]["total"],
         "stages": row["minutes"], "command": _placeless(row["command"], asked.work), "machine": row["machine"]}
        for row in rows
    ]  # fmt: skip
    runs = {(row["name"], row["seed"]): row for row in [*written(name), *kept]}
    lines = ",\n".join(f"  {json.dumps(runs[run])}" for run in sorted(runs))
    RESULTS.mkdir(exist_ok=True)
    write_text(  # whole or not at all: lines of other machines are in it
        RESULTS / f"{name}.json",
        f'{{\n "command": {json.dumps(_placeless(command, asked.work))},\n "rows": [\n{lines}\n ]\n}}\n',
    )


def written(name: str) -> list[Row]:
    """The lines of results/NAME.json."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def _placeless(command: str, work: Path) -> str:
    """A command without the places of one machine: those in the folder of the runs begin with WORK."""
    words = [
        f"WORK/{Path(word).relative_to(work)}".removesuffix("/.")
        if Path(word).is_relative_to(work)
        else Path(word).name if Path(word).is_absolute() else word
        for word in shlex.split(command)
    ]  # fmt: skip
    return shlex.join(words)
