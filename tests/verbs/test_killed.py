"""`kill -9` at any moment, then the same command again: it goes on, and the labels are those of a run never killed.

The processes are real, forked from the test's own: importing the libraries anew would take longer than all else.
"""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from forked import at_renaming_of, in_a_process, suicide

from semmae.cli import run
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.labels import tokens
from semmae.run.config import UNFINISHED
from semmae.train import meter
from semmae.verbs.parts import TOKENS


@pytest.fixture(scope="module", autouse=True)
def _several_rows() -> Iterator[None]:
    """Of labels that are made of tokens, in every process that is forked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "most_rows", lambda: 8)
        yield


@pytest.fixture(scope="module")
def command(creatures: Path, encoder: Path) -> list[str]:
    given = {"data": creatures / "images", "teacher": encoder, "steps": 8, "workers": 0, "batch-size": 8}
    return ["parts", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def never_killed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("never-killed") / "run"
    assert run([*command, "--out", str(out)]) == 0
    return out


def assert_as_never_killed(out: Path, never_killed: Path) -> None:
    for name in ("parts.npy", "attention.npy"):
        assert (out / name).read_bytes() == (never_killed / name).read_bytes()
    tiny.assert_same_weights(out / "learner", never_killed / "learner")
    steps, losses = zip(*((line["step"], line["loss"]) for line in tiny.metrics(out)), strict=True)
    assert (steps, losses) == tuple(zip(*((m["step"], m["loss"]) for m in tiny.metrics(never_killed)), strict=True))
    assert PartStore.open(out).complete
    assert json.loads((out / "summary.json").read_text())["finished"]
    assert sorted(tiny.listing(out / "learner")) == sorted(tiny.listing(never_killed / "learner"))
    left = [path.name for path in out.iterdir() if path.name in (UNFINISHED, TOKENS) or path.suffix == ".tmp"]
    assert left == []


def in_half_a_line_of_metrics() -> None:
    real = meter.Meter.on_train_epoch_end

    def dying(own: meter.Meter, *arguments: Any) -> None:
        real(own, *arguments)
        with (own.options.out / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "par')
            file.flush()
            suicide()

    meter.Meter.on_train_epoch_end = dying  # type: ignore[method-assign]


def in_the_second_write(store: type, function: str, part: Callable[[Any, Any, Any], None]) -> Callable[[], None]:
    """Dies after `part` of what a store should write when it is asked to a second time."""

    def prepare() -> None:
        real = getattr(store, function)
        calls = []

        def dying(self: Any, rows: Any, values: Any) -> None:
            calls.append(rows)
            if len(calls) < 2:
                return real(self, rows, values)
            part(self, rows, values)
            suicide()

        setattr(store, function, dying)

    return prepare


def half_a_row(column: str, cells: int) -> Callable[[Any, Any, Any], None]:
    """Writes one row of labels or attention, and some rows of cells of the next."""

    def write(store: PartStore, rows: Any, values: Any) -> None:
        array = getattr(store, column)
        array[int(rows[0])] = np.asarray(values[0])
        array[int(rows[1]), :cells] = np.asarray(values[1])[:cells]

    return write


def one_row_of_tokens(store: TokenStore, rows: Any, values: Any) -> None:
    store._file.write(int(rows[0]), {name: own[:1] for name, own in values.items()})


MOMENTS = [
    at_renaming_of("config.yaml", after=False),
    at_renaming_of("summary.json", after=True),
    at_renaming_of("reductions.safetensors", after=False),
    in_the_second_write(TokenStore, "write", one_row_of_tokens),
    in_half_a_line_of_metrics,
    at_renaming_of("last.ckpt", after=True),
    at_renaming_of("learner", after=False),
    at_renaming_of("parts.npy", after=True),
    at_renaming_of("attention.npy", after=True),
    in_the_second_write(PartStore, "write_attention", half_a_row("attention", cells=2)),
    in_the_second_write(PartStore, "write", half_a_row("labels", cells=9)),
    at_renaming_of("parts.json", after=False),
    at_renaming_of("parts.png", after=False),
    at_renaming_of("report.html", after=True),
]


def test_killed_at_every_stage_of_one_run(command: list[str], never_killed: Path, tmp_path: Path) -> None:
    arguments = [*command, "--out", str(tmp_path / "run")]
    for moment in MOMENTS:
        child = in_a_process(arguments, moment)
        assert child.ended(120) == -signal.SIGKILL, f"{moment}: {child.output}"
    assert run(arguments) == 0
    assert_as_never_killed(tmp_path / "run", never_killed)
    assert run(arguments) == 0  # finished: said, and nothing computed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(command: list[str], never_killed: Path, tmp_path: Path, seed: int) -> None:
    arguments, chance = [*command, "--out", str(tmp_path / "run")], random.Random(seed)
    patience = 1.0
    for _ in range(200):
        child = in_a_process(arguments)
        child.process.join(chance.uniform(0, patience))
        assert child.process.exitcode in (None, 0), child.output
        if child.process.exitcode == 0:
            break
        child.process.kill()
        child.process.join()
        patience *= 1.05  # an epoch lasts longer on a slow machine
        time.sleep(chance.choice((0, 0, 0.1)))
    assert child.process.exitcode == 0, child.output
    assert_as_never_killed(tmp_path / "run", never_killed)
