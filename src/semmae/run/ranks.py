"""Which of several processes this one is: only the first one of the first node writes.

`torchrun` and `srun` start every process and give it its rank. Without them the command is given once on each node,
with MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment, and starts the other processes of its node itself.
"""

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from semmae.errors import UserError
from semmae.files import make_folder, whole

SHARED = "shared"  # folder in that of a run

_INTERACTIVE = ("bash", "interactive")  # names of Slurm's jobs in which nothing was started by srun
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # on one node, or of torchrun; the first that is set counts
# What a launcher says of this very start, or a user who begins it on every node.
_START = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT",
         "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
_ALIVE, _DONE = "first.alive", ".made"  # a file while the first process is at work; ends of names of what it has made
_PAUSE, _SILENCE = 0.5, 600.0  # seconds

_OWN_START, _PARENT = "SEMMAE_START", "SEMMAE_PARENT"  # set by the process that begins the others of its machine

_shared: Path | None = None
_size = (1, 1)  # nodes, and devices of each, of the run that this process belongs to
_start, _blocks = "", 0
_told: list[Callable[[Exception], None]] = []
_watched = False  # whether this process ends with the one that has begun it


def check_processes(nodes: int, devices: int) -> None:
    """Refuse another number of processes than was started, and nodes of which nothing says which one this is."""
    starter, count = started()
    asked = f"--nodes {nodes} --devices {devices}"
    if starter is not None and count != nodes * devices:
        raise UserError(
            f"{asked}: {nodes * devices} processes, and {starter} has started {count}; --devices are those of each "
            "node, so give --nodes, --devices and as many processes as their product"
        )
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "not given")
    if starter == "srun" and count > 1 and tasks != str(devices):
        raise UserError(
            f"{asked}: tasks per node are {tasks} for Slurm; start the job with --ntasks-per-node={devices}"
        )
    if nodes > 1 and starter is None and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise UserError(
            f"--nodes {nodes}: nothing says which node this is; start it by torchrun or srun, or on every node with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment"
        )


def check_alone(devices: int) -> None:
    """Refuse processes that a launcher has started, of what begins its own."""
    starter, count = started()
    if count > 1:
        raise UserError(
            f"--devices {devices}: {starter} has started {count} processes, and this begins as many as it needs "
            "itself; give the command once"
        )


def take_rank(nodes: int, devices: int) -> None:
    """Know of how many processes this is one; where a user begins the nodes, nothing else says it before a training."""
    global _size
    _size = nodes, devices


def is_rank_zero() -> bool:
    """Whether this process writes what all processes share."""
    return _rank() == 0


def local_rank() -> int:
    """Number of this process among those of its machine that were started with it, from 0 on."""
    return int(os.environ.get("SLURM_LOCALID" if started()[0] == "srun" else "LOCAL_RANK", 0))


def _rank() -> int:
    """Number of this process among those of all nodes, from 0 on; of one that begins a node that of its first one."""
    nodes, devices = _size
    if nodes > 1 and started()[0] is None:  # on one node alone a cluster's number of it means nothing
        return int(os.environ.get("NODE_RANK", 0)) * devices + local_rank()
    if started()[0] == "srun":  # as Lightning has it; what else is set was for another launcher
        return int(os.environ.get("SLURM_PROCID", 0))
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))


def started() -> tuple[str | None, int]:
    """What has started this process among others, and how many they are; None where it was a user."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        return "srun", int(os.environ["SLURM_NTASKS"])
    return None, 1


def shared_folder() -> Path | None:
    """Where the first of several processes keeps what it makes for all of them; None where it is alone."""
    return _shared


class Present(NamedTuple):
    """The processes of a run that are there: numbers of all of them, the own one, and what one has to begin itself."""

    ranks: Sequence[int]
    own: int
    devices: int  # of each process
    beside: int  # processes of this machine that are there


def present(devices: int, *, met: bool) -> Present:
    """Who shares the work: all processes where these were started together, or have `met` in a training.

    Else one of each node, which has `devices` to work with.
    """
    if _shared is None:
        return Present([0], 0, devices, 1)
    (nodes, each), own = _size, _rank()
    if met or started()[0] is not None:
        return Present(range(nodes * each), own, 1, each)
    return Present(range(0, nodes * devices, devices), own, devices, 1)


def is_first_alive() -> bool:
    """Whether the first process is at work, as far as the folder of the run says."""
    return _shared is not None and _is_ours(_shared / _ALIVE)


def ended_elsewhere() -> BaseException:
    """What a process ends with after the first one has failed, which says why: of a launcher's without a word."""
    return SystemExit(0) if started()[0] else UserError("the first process has ended; its message says why")


def deal(name: str, plan: Mapping[str, Any]) -> None:
    """The first process says by this name how work is shared; only this user can read it."""
    assert _shared is not None, "there are others"
    with whole(_shared / f"{name}.json") as beside:
        beside.touch(0o600)
        beside.write_text(json.dumps(plan))
    made(name)


def dealt(name: str) -> dict[str, Any]:
    """What the first process has dealt by this name, when it has."""
    wait_for(name)
    assert _shared is not None, "there are others"
    return dict(json.loads((_shared / f"{name}.json").read_text()))


def when_failing(told: Callable[[Exception], None]) -> None:
    """Call this with the error by which the work of this process ends inside `sharing`."""
    if told not in _told:
        _told.append(told)


@contextmanager
def sharing(out: Path, nodes: int, devices: int) -> Iterator[None]:
    """What one of several processes makes for all lies in a folder in `out`, while the block lasts and after it.

    Where it fails, nothing is left there: the next start makes it again. The others are told (`when_failing`).
    """
    global _shared, _start
    take_rank(nodes, devices)
    if nodes * devices == 1:
        yield
        return
    _end_with_parent()
    _shared, _start = out / SHARED, _this_start(nodes)
    alive = _shared / _ALIVE
    try:
        if is_rank_zero():
            shutil.rmtree(_shared, ignore_errors=True)  # of a start that was killed, and may be known by the same name
            make_folder(_shared)
            alive.write_text(_start)
        yield
    except BaseException as error:
        if is_rank_zero():
            shutil.rmtree(_shared, ignore_errors=True)
        if isinstance(error, Exception):
            for told in _told:
                told(error)
        raise
    finally:
        if is_rank_zero():
            alive.unlink(missing_ok=True)
        _shared = None


def _end_with_parent() -> None:
    """A process that the command itself has begun does not outlive the one that did: nobody else would ever end it.

    While it looks for a first process that was killed before they have met, it hears no signal.
    """
    global _watched
    if started()[0] is not None:  # a launcher ends what it has started
        return
    if local_rank() == 0:
        os.environ[_PARENT] = str(os.getpid())
    parent = int(os.environ.get(_PARENT, os.getpid()))
    if parent != os.getpid() and not _watched:
        _watched = True
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="semmae-parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PAUSE)
    os._exit(0)


def made(name: str) -> None:
    """The first process has made for all what is known by this name."""
    assert _shared is not None, "there are others"
    (_shared / f"{name}{_DONE}").write_text(_start)


def wait_for(name: str) -> None:
    """Until the first process has `made` it; UserError where that has ended before, or never begins."""
    assert _shared is not None, "there are others"
    alive, done = _shared / _ALIVE, _shared / f"{name}{_DONE}"
    begun, seen = time.monotonic(), False
    while not _is_ours(done):
        ours = _is_ours(alive)
        if seen and not ours and not _is_ours(done):
            raise ended_elsewhere()
        if not seen and time.monotonic() - begun > _SILENCE:
            raise UserError(
                f"{_shared}: for {_SILENCE / 60:.0f} minutes nothing was heard of the first process; start all "
                "processes, with one --out that all of them see"
            )
        seen |= ours
        time.sleep(_PAUSE)


def _is_ours(mark: Path) -> bool:
    try:
        return mark.read_text() == _start
    except OSError:
        return False


def _this_start(nodes: int) -> str:
    """What all processes of one start have in common, and another start in the same folder has not."""
    global _blocks
    _blocks += 1  # a script may train several times: all processes run through the same ones
    if nodes == 1 and started()[0] is None:
        said = [os.environ.setdefault(_OWN_START, uuid.uuid4().hex)]  # processes begun later inherit it
    else:
        said = [os.environ.get(name, "") for name in _START]
    return "\n".join([*said, str(_blocks)])
