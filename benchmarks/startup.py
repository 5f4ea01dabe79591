"""How soon the command answers: help and mistakes, beside starting Python with tyro alone.

    python benchmarks/startup.py [--rounds 5]

Every command runs in a process of its own, and all take turns. Two bases: "import tyro" is `python -c "import tyro"`;
"tyro --help" is the help of a program of three options, drawn by tyro, which many command lines of this field use.

- "ratios": of each command, the median over rounds of its processor's time ("cpu") and its time by the clock ("wall")
  by those of each base in the same round; the processor's is disturbed less by other work on the machine;
- "milliseconds": the medians;
- "worst": the largest ratio of processor's time to "import tyro", and the command it is of.

The last printed line is one JSON object; the same, with command and machine, is in `benchmarks/results/startup.json`.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness import median_ratio, turned, write_results
from PIL import Image

from semmae.options import VERBS

TYRO_ALONE = '''
import dataclasses
import tyro

@dataclasses.dataclass(frozen=True)
class Options:
    """A program of three options."""

    data: str
    """Where the images are."""
    epochs: int = 100
    """Passes over them."""
    rate: float = 1e-3
    """Learning rate."""

tyro.cli(Options)
'''
BASES = {"import tyro": ["-c", "import tyro"], "tyro --help": ["-c", TYRO_ALONE, "--help"]}
HELPS = ["--help", *(f"{verb} --help" for verb in VERBS)]
MISTAKES = {
    "an unknown verb": "pretrian",
    "a typo": "pretrain --data photos --out new --epoch 3",
    "a wrong path": "pretrain --data nowhere --out new",
    "an occupied folder": "pretrain --data photos --out photos",
}


class Spent(NamedTuple):
    """Seconds of one process."""

    cpu: float
    wall: float


class Command(NamedTuple):
    """What Python is called with, and the exit code it has to end with."""

    arguments: list[str]
    code: int


def main() -> None:
    """Measure, write results/startup.json, print its figures as one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="measure the commands that contain these letters, such as knn")
    options = parser.parse_args()
    chosen = {name: command for name, command in commands().items() if not options.only or options.only in name}
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(commands())}")
    spent = measure({name: Command(arguments, 0) for name, arguments in BASES.items()} | chosen, options.rounds)
    ratios = {name: {base: ratios_to(spent[name], spent[base]) for base in BASES} for name in chosen}
    worst = max(ratios, key=lambda name: ratios[name]["import tyro"]["cpu"])
    write_results(
        "startup",
        {
            "rounds": options.rounds,
            "ratios": ratios,
            "milliseconds": {name: medians(rounds) for name, rounds in spent.items()},
            "worst": {"command": worst, "ratio": ratios[worst]["import tyro"]["cpu"]},
        },
    )


def commands() -> dict[str, Command]:
    """By what is shown: the helps by their command line, the mistakes by their kind."""
    helps = {f"semmae {line}": Command(["-m", "semmae", *line.split()], 0) for line in HELPS}
    mistakes = {name: Command(["-m", "semmae", *line.split()], 2) for name, line in MISTAKES.items()}
    return helps | mistakes


def measure(works: Mapping[str, Command], rounds: int) -> dict[str, list[Spent]]:
    """What each took in every round; a round before them fills the caches and does not count."""
    spent: dict[str, list[Spent]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        Image.new("RGB", (32, 32)).save(photos / "1.png")
        for turn in range(1 + rounds):
            for name in turned(list(works), turn):
                took = run(works[name], folder)
                if turn:
                    spent[name].append(took)
    return spent


def run(command: Command, folder: str) -> Spent:
    """One process, from its start to its end."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command.arguments], cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != command.code:
        sys.exit(f"python {' '.join(command.arguments)} ended with {done.returncode}: {done.stderr}")
    return Spent(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def ratios_to(of: list[Spent], base: list[Spent]) -> dict[str, float]:
    """The medians over rounds."""
    return {
        "cpu": median_ratio([took.cpu for took in of], [took.cpu for took in base]),
        "wall": median_ratio([took.wall for took in of], [took.wall for took in base]),
    }


def medians(rounds: list[Spent]) -> dict[str, float]:
    """Milliseconds."""
    return {
        "cpu": round(1000 * statistics.median(took.cpu for took in rounds), 1),
        "wall": round(1000 * statistics.median(took.wall for took in rounds), 1),
    }


if __name__ == "__main__":
    main()
