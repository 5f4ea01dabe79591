"""What the processes of a training say to each other beside gradients: where they wait, and that one has failed.

Nothing of this goes by the device. Processes wait for each other by gloo, on the CPU: there the first one may label
images for hours, while a collective of the device that lasts ten minutes means that a process is lost. And a process
that fails leaves word in the store by which all of them met: each looks there every second, in a thread of its own, for
by then it may hang in a collective that the other will never join.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import PrefixStore, TCPStore

from semmae.errors import DiskError, UserError, message
from semmae.progress import write
from semmae.run.ranks import is_rank_zero, made, shared_folder, wait_for, when_failing
from semmae.run.signals import Interrupted

PATIENCE = timedelta(days=7)  # that processes wait for each other
TIMEOUT = timedelta(minutes=10)  # that a collective of the device may take
_KEY, _HEARD = "semmae/failed", "semmae/heard"
_LOOK, _GRACE, _GRACE_OF_FIRST = 1.0, 5.0, 30.0  # seconds
_KINDS: dict[str, type[Exception]] = {"user": UserError, "disk": DiskError, "other": RuntimeError}

_log = logging.getLogger("semmae")
_waiting: tuple[Any, distributed.ProcessGroup] | None = None  # the group of all, and that of gloo


def is_together() -> bool:
    """Whether the processes have met already: from the first training on."""
    return distributed.is_available() and distributed.is_initialized()


def waiting_group() -> distributed.ProcessGroup:
    """The group of all processes by which they wait for each other, on the CPU; all of them ask for it at once."""
    global _waiting
    if _waiting is None or _waiting[0] is not distributed.group.WORLD:
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, distributed.ProcessGroup)  # all processes are in it
        _waiting = distributed.group.WORLD, group
    return _waiting[1]


def barrier(name: str) -> None:
    """Wait until all processes of this run are at this place, named so; or, before they have met, the first one is."""
    if is_together():
        distributed.barrier(group=waiting_group())
    elif shared_folder() is not None:
        made(name) if is_rank_zero() else wait_for(name)


def check_alike(what: str, value: object) -> None:
    """Refuse to begin where the processes differ in this."""
    if not is_together():
        return
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value, group=waiting_group())
    others = [rank for rank, other in enumerate(found) if other != found[0]]
    if others:
        raise UserError(
            f"{what}: process {others[0]} has {found[others[0]]}, the first one {found[0]}; start all processes again, "
            "with the same images and options"
        )


def own_connection(store: Any) -> Any:
    """A store, by a connection on which nothing else waits for an answer: in one of theirs others may wait for long."""
    return store.clone() if hasattr(store, "clone") else connected_again(store)


def connected_again(store: Any) -> Any:
    """As `own_connection`, where stores have no `clone`: before torch 2.8. One that is no server needs none."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return store
    return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)


class Alarm:
    """Word that a process has failed: left by `tell`, found by a thread that looks for it.

    A process that finds it has some seconds to come to its end, by the error in which a lost neighbour ends a
    collective. After these it is ended: nothing but that gets it out of one.
    """

    def __init__(self, store: Any) -> None:
        self._store, self._lock = own_connection(store), threading.Lock()
        self._processes = distributed.get_world_size()
        self.on_device = _waits_on_device()  # asked for now: when collectives are ended, nothing knows it any more
        self.aborted = threading.Event()  # the collectives of the device are, with those of all other processes
        threading.Thread(target=self._look, daemon=True, name="semmae-alarm").start()

    def tell(self, error: Exception) -> None:
        """Leave word of this error, unless there is some already."""
        if isinstance(error, Interrupted) or self.word() is not None:
            return
        kind = next(kind for kind, own in _KINDS.items() if isinstance(error, own) or kind == "other")
        text = message(error) if kind != "other" else "".join(traceback.format_exception(error))
        word = {"rank": distributed.get_rank(), "kind": kind, "text": text}
        with self._lock, contextlib.suppress(RuntimeError):  # the first process, which holds the store, may be gone
            self._store.set(_KEY, json.dumps(word))

    def word(self) -> dict[str, Any] | None:
        """What a process that has failed says; None where none has."""
        with self._lock:
            try:
                found = json.loads(self._store.get(_KEY)) if self._store.check([_KEY]) else None
            except RuntimeError:
                return None
        return found if isinstance(found, dict) else None

    def _look(self) -> None:
        while (word := self.word()) is None:
            time.sleep(_LOOK)
        if self.on_device:
            self._abort_with_others()
        time.sleep(_GRACE_OF_FIRST if is_rank_zero() else _GRACE)
        if is_rank_zero():
            error = _error_of(word)
            write(sys.stderr, f"semmae: {error}\n")
            os._exit(2 if isinstance(error, UserError) else 1)
        os._exit(0)  # another code, and Lightning would kill the first process before that reports

    def _abort_with_others(self) -> None:
        """End the collectives of the device; without it all that asks for results would wait for the lost process.

        All processes do so at once: where one ends them alone, NCCL's watchdogs in the others take it for an error of
        the network and kill them, the first one before it has reported.
        """
        with self._lock, contextlib.suppress(RuntimeError):
            self._store.add(_HEARD, 1)
            end = time.monotonic() + _GRACE
            while self._store.add(_HEARD, 0) < self._processes and time.monotonic() < end:
                time.sleep(0.02)
        aborting = threading.Thread(target=_abort, daemon=True, name="semmae-abort")  # it hangs in some NCCL versions
        aborting.start()
        aborting.join(_GRACE)
        self.aborted.set()


def _waits_on_device() -> bool:
    return distributed.get_backend() == "nccl"


def _abort() -> None:
    with contextlib.suppress(Exception):
        distributed.distributed_c10d._abort_process_group()


_alarm: tuple[Any, Alarm] | None = None  # the group of all, and theirs


def listen() -> None:
    """From here on learn of the failure of any process; nothing where there is one alone."""
    global _alarm
    if is_together() and (_alarm is None or _alarm[0] is not distributed.group.WORLD):
        _alarm = distributed.group.WORLD, Alarm(distributed.distributed_c10d._get_default_store())
        when_failing(tell)


def tell(error: Exception) -> None:
    """Leave word for the other processes, if there are any, that this one has failed."""
    if _alarm is not None:
        _alarm[1].tell(error)


def explained(error: Exception) -> BaseException:
    """What this process is to end with for the error that it met: of all that fail, the first reports the first fault.

    An error of a collective is the failure of another process, which says its own: it is waited for a moment.
    """
    if _alarm is None or isinstance(error, Interrupted):
        return error
    tries = 10 if isinstance(error, RuntimeError) else 1
    for _ in range(tries):
        word = _alarm[1].word()
        if word is not None:
            break
        time.sleep(0.3)
    tell(error)
    if _alarm[1].on_device:
        # Its end would be an error of the network to the others; and the end of the first one that of the word, without
        # which they would hang in a collective.
        _alarm[1].aborted.wait(_LOOK + 2 * _GRACE)
    if not is_rank_zero():
        return SystemExit(0)
    return error if word is None or word["rank"] == 0 else _error_of(word)


def _error_of(word: dict[str, Any]) -> Exception:
    kind, text = _KINDS.get(str(word.get("kind")), RuntimeError), str(word.get("text"))
    return kind(text if kind is not RuntimeError else f"process {word.get('rank')} failed:\n{text}")
