"""Work on blocks of images, dealt out to all devices: of this machine, or of all nodes. The first process keeps it all.

Notable here:
- what a block gives depends on its rows alone: as many devices as there may be, the same bytes;
- the first process alone writes what all of them make, so that no file system has to agree on what several machines
  write; what was kept before a stop is not computed again;
- where a single process is there, it begins one for each device, forked from a server that has imported what it takes
  and used no device: a second look at images then begins at once, where importing takes ten seconds. A
  script that asks for several needs `if __name__ == "__main__":`;
- where they were started together (torchrun, srun, or by a training), each sends what its blocks give to the first one
  through a socket, whose address and key the first one leaves in the folder of the run, for this user alone;
- one that fails or is lost ends all.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import secrets
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Client, Connection, Listener, wait
from multiprocessing.context import AuthenticationError
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from semmae.cores import usable_cores
from semmae.data.token_file import Array
from semmae.errors import DiskError, UserError, listed, reason
from semmae.run.ranks import Present, deal, dealt, ended_elsewhere, is_first_alive, present, shared_folder
from semmae.run.signals import STOPPING, Stopped
from semmae.train.frozen import own_gpu, usual_device
from semmae.train.together import is_together

Made = dict[str, Array]  # what a block gives, by name; "rows" among it

_AHEAD = 4  # blocks of each other process that wait to be kept
_SILENCE = 1800.0  # seconds that a process may take for a block
_UNREACHED, _LOOK = 60.0, 0.2  # seconds


class Place(NamedTuple):
    """Where blocks are computed."""

    device: torch.device
    threads: int  # on a CPU
    sharing: int = 1  # processes of this machine that load images at once


class Work(Protocol):
    """Something to compute of every block of rows, the same wherever it is done; picklable."""

    def made(self, blocks: Sequence[int], place: Place) -> Iterator[tuple[Made, float]]:
        """What each of these blocks gives, in order, and the seconds it waited for images."""
        ...


def shared_out(name: str, work: Work, blocks: Sequence[int], devices: int) -> Iterator[tuple[Made, float]]:
    """What all devices make of these blocks, in any order, for the first process to keep.

    And the seconds that they waited for images, divided by their number. The other processes of the run, if some were
    started, `take_part` by this name; each process that is there has `devices` where no launcher has started them all.
    """
    here = present(devices, met=is_together())
    if len(here.ranks) == 1:
        if shared_folder() is not None:
            deal(name, {"ranks": [0]})  # for those that a training begins later
        yield from by_devices(work, blocks, devices)
    else:
        yield from _with_others(name, work, blocks, here)


def take_part(name: str, work: Callable[[], Work], devices: int) -> None:
    """Another process than the first: compute its share of what that deals out by this name, if it has one.

    `work` is asked for then: what it needs may have to be made before.
    """
    here = present(devices, met=is_together())
    found = _reached(name, here.own)
    if found is None:  # begun later, by a training
        return
    first, plan = found
    number, count = plan["ranks"].index(here.own), len(plan["ranks"])
    with first:
        try:
            first.send(number)
            for each in by_devices(work(), plan["blocks"][number::count], here.devices, here.beside):
                first.send(each)
            first.send(None)
        except (BrokenPipeError, ConnectionError) as error:
            raise ended_elsewhere() from error
        except (Exception, KeyboardInterrupt) as error:
            with contextlib.suppress(OSError):
                first.send(_sent(error, f"process {here.own}"))
            raise SystemExit(0) from error  # the first one says why


def _reached(name: str, own: int) -> tuple[Connection, dict[str, Any]] | None:
    """The connection with the first process, and what that deals out; None where this one has no share in it."""
    began = time.monotonic()
    while True:
        plan = dealt(name)
        if own not in plan["ranks"]:
            return None
        try:
            return Client((plan["host"], plan["port"]), "AF_INET", authkey=bytes.fromhex(plan["key"])), plan
        except (OSError, EOFError, AuthenticationError) as error:
            if not is_first_alive():
                raise ended_elsewhere() from error
            if time.monotonic() - began > _UNREACHED:  # before that it may be the plan of a start that was killed
                raise UserError(
                    f"process {own}: the first one is not reached at {plan['host']}:{plan['port']} ({reason(error)}); "
                    "give the name by which its machine is reached as MASTER_ADDR"
                ) from error
            time.sleep(_LOOK)


def by_devices(work: Work, blocks: Sequence[int], devices: int, beside: int = 1) -> Iterator[tuple[Made, float]]:
    """As `shared_out`, by devices of this process: in it, or in processes that it begins for them.

    `beside`: how many processes of this machine load images at once, if it begins none.
    """
    count = min(devices, len(blocks))
    if count > 1:
        yield from _by_children(work, blocks, count)
    elif count:
        yield from work.made(blocks, Place(usual_device(), torch.get_num_threads(), beside))


def _with_others(name: str, work: Work, blocks: Sequence[int], here: Present) -> Iterator[tuple[Made, float]]:
    """By the processes that are there; all come, also where there is nothing to do: nobody is left waiting."""
    count = len(here.ranks)
    own = [int(block) for block in blocks]
    with _Others(here.ranks[1:], on_one_machine=here.beside >= count) as others:
        address = {"host": others.host, "port": others.port, "key": others.key.hex()}
        deal(name, {"ranks": list(here.ranks), "blocks": own, **address})
        for made, waited in by_devices(work, own[::count], here.devices, here.beside):
            yield made, waited / count
            for made, waited in others.received():
                yield made, waited / count
        while others.left:
            for made, waited in others.received(_LOOK):
                yield made, waited / count


class _Others:
    """The first process's connections with all others, read by a thread: none waits while this one computes."""

    def __init__(self, ranks: Sequence[int], *, on_one_machine: bool) -> None:
        self.key = secrets.token_bytes(32)
        self.host = "127.0.0.1" if on_one_machine else os.environ.get("MASTER_ADDR") or socket.gethostname()
        self._door = Listener(
            ("127.0.0.1" if on_one_machine else "", 0), "AF_INET", backlog=len(ranks), authkey=self.key
        )
        self.port = self._door.address[1]
        self._ranks, self.left = ranks, dict.fromkeys(range(1, len(ranks) + 1), time.monotonic())
        self._got: queue.Queue[tuple[int, Any]] = queue.Queue(_AHEAD * len(ranks))
        self._ends: dict[Connection, int] = {}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._welcome, self._read)]

    def __enter__(self) -> "_Others":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The others find their connections closed, if they have not said that they are done."""
        self._over.set()
        with contextlib.suppress(OSError):  # out of `accept`, if it waits there
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        for thread in self._threads:
            thread.join(5)
        self._door.close()
        for end in self._ends:
            end.close()

    def received(self, seconds: float = 0) -> Iterator[tuple[Made, float]]:
        """What has come, after so many seconds at most; what another process failed with is raised."""
        with contextlib.suppress(queue.Empty):
            while True:
                number, message = self._got.get(timeout=seconds) if seconds else self._got.get_nowait()
                seconds = 0
                if message is None:
                    del self.left[number]
                    continue
                if isinstance(message, BaseException):
                    raise message
                self.left[number] = time.monotonic()
                yield message
        silent = [self._ranks[each - 1] for each, heard in self.left.items() if time.monotonic() - heard > _SILENCE]
        if silent:
            raise UserError(
                f"process {listed([str(rank) for rank in silent])}: nothing was heard of it for {_SILENCE / 60:.0f} "
                "minutes; see what it wrote, and start all processes again"
            )

    def _welcome(self) -> None:
        """Every process that comes says which one it is."""
        while not self._over.is_set():
            with contextlib.suppress(OSError, AuthenticationError, EOFError):  # strangers
                end = self._door.accept()
                if not self._over.is_set():
                    self._ends[end] = int(end.recv())

    def _read(self) -> None:
        done: set[Connection] = set()
        while not self._over.is_set():
            open_ends = [end for end in list(self._ends) if end not in done]
            if not open_ends:
                time.sleep(_LOOK)
                continue
            for end in wait(open_ends, _LOOK):
                assert isinstance(end, Connection)
                number = self._ends[end]
                try:
                    message = end.recv()
                except (EOFError, OSError):
                    message = UserError(
                        f"process {self._ranks[number - 1]} of this run was lost, as for want of memory; see what it "
                        "wrote, and give the same command again"
                    )
                if not isinstance(message, tuple):
                    done.add(end)
                self._put(number, message)

    def _put(self, number: int, message: Any) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                return self._got.put((number, message), timeout=_LOOK)


def _sent(error: BaseException, who: str) -> BaseException:
    """An error as another process raises it."""
    if isinstance(error, KeyboardInterrupt):
        return Stopped(getattr(error, "signum", signal.SIGINT))
    if isinstance(error, UserError | DiskError):
        return type(error)(str(error))
    return RuntimeError(f"{who} failed:\n{''.join(traceback.format_exception(error))}")


def _by_children(work: Work, blocks: Sequence[int], count: int) -> Iterator[tuple[Made, float]]:
    """By `count` processes that are begun for it: one a GPU, or so many on a CPU."""
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise UserError(f"--devices {count}: this machine has {torch.cuda.device_count()} GPUs; use at most so many")
    context, usual = multiprocessing.get_context("forkserver"), multiprocessing.get_start_method(allow_none=True)
    processes: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory(prefix="semmae-") as folder:  # nobody else can write there
        path = Path(folder) / "work.pt"
        _write(work, path, count)
        try:
            _begin_server(type(work).__module__)
            for number in range(count):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (path, blocks[number::count], number, count, _threads(count), sender)
                processes[receiver] = context.Process(target=_child, args=(dict(os.environ), usual, *arguments))
                processes[receiver].start()  # the first waits until the server has imported all, or for a signal
                sender.close()
            for made, waited in _results(processes):
                yield made, waited / count
        finally:
            begun = [process for process in processes.values() if process.pid is not None]
            for process in begun:
                process.kill()  # deaf to all else; nothing is lost by it
            for process in begun:
                process.join()


def _begin_server(of_work: str) -> None:
    """Begin what processes are forked from, once; it imports the module that has the work, `of_work`.

    It, and what is forked from it, never hear the signals that end a run, which all of them get: the first process
    ends them.
    """
    forkserver.set_forkserver_preload([__name__, of_work])  # counts before the first process only
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in STOPPING}
    try:
        forkserver.ensure_running()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _write(work: Work, path: Path, count: int) -> None:
    """Networks and all, in a file: sent they would pass through shared memory, of which containers have little."""
    try:
        torch.save(work, path, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"--devices {count}: encoder or images cannot be handed to other processes ({reason(error)}); use "
            "--devices 1, or save them and give their path"
        ) from error


def _results(processes: dict[Connection, BaseProcess]) -> Iterator[tuple[Made, float]]:
    """What the processes send, until the last one has ended."""
    open_ends = dict(processes)
    while open_ends:
        for end in wait(list(open_ends)):
            assert isinstance(end, Connection)
            try:
                result = end.recv()
            except EOFError:
                process = open_ends.pop(end)
                process.join()
                if process.exitcode:
                    raise UserError(
                        f"a process of --devices ended with exit code {process.exitcode}; where memory is short use "
                        "fewer --devices or a smaller --batch-size, and give the same command again"
                    ) from None
                continue
            if isinstance(result, Exception):
                raise result
            yield result


def _threads(count: int) -> int:
    """Threads of each process: the cores, shared out, but no more than this process may use."""
    return max(1, min(torch.get_num_threads(), usable_cores() // count))


def _child(
    environment: dict[str, str],
    usual: str | None,
    path: Path,
    blocks: Sequence[int],
    number: int,
    count: int,
    threads: int,
    results: Connection,
) -> None:
    """One process: send what blocks give; an error is sent too, for the first process to show.

    `usual`: how the first process begins those that load its images, and so does this one. By a server they would
    import everything once more.
    """
    multiprocessing.set_start_method(usual, force=True)
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    os.environ.clear()  # that of the server's start
    os.environ.update(environment)
    logging.getLogger("semmae").setLevel(logging.ERROR)  # the first process has said it all
    try:
        work = torch.load(path, map_location="cpu", weights_only=False)  # our own, of a moment ago
        device = own_gpu(number) if torch.cuda.is_available() else torch.device("cpu")
        for each in work.made(blocks, Place(device, threads, count)):
            results.send(each)
    except BrokenPipeError:
        pass  # the first process has been killed: the resumed run will do the rest
    except Exception as error:
        results.send(_sent(error, "a process of --devices"))
    finally:
        results.close()
