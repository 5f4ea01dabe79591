"""Labelling by several processes: one a GPU, or so many on a CPU, each with every n-th block.

They are started here and not by Lightning, so that a new run, a resumed one and one without training share
the work alike. A script that asks for several devices needs `if __name__ == "__main__":`, as ever with spawn.
"""

import logging
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from semmae.cores import usable_cores
from semmae.errors import UserError
from semmae.formats.folders import LEARNER, digest, read_learner
from semmae.formats.open import load_encoder
from semmae.labels.blocks import Job, label_blocks
from semmae.names import short

# Encoder, its heads, and the run that holds the learner: what every process loads itself. Weights handed
# over by the first one would pass through shared memory, of which containers have little.
Networks = tuple[str, int | None, Path]


def label_in_processes(job: Job, blocks: Sequence[int], count: int, networks: Networks) -> Iterator[tuple[int, float]]:
    """As `label_blocks`, by `count` processes; the seconds are those of all, divided by their number."""
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise UserError(f"--devices {count}: this machine has {torch.cuda.device_count()} GPUs; use at most so many")
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    try:
        with _deaf_to_ctrl_c():
            for rank in range(count):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (job, blocks[rank::count], rank, _threads(count), networks, sender)
                processes[receiver] = context.Process(target=_work, args=arguments)
                processes[receiver].start()
                sender.close()
        for rows, waited in _results(processes):
            yield rows, waited / count
    finally:  # nothing is lost by ending them: what a row lacks is seen by the next run
        for process in processes.values():
            if process.is_alive():
                process.terminate()
        for process in processes.values():
            process.join()


def _results(processes: dict[Connection, SpawnProcess]) -> Iterator[tuple[int, float]]:
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
                        f"a labelling process ended with exit code {process.exitcode}; where memory is short use "
                        "fewer --devices or a smaller --batch-size, and --resume"
                    ) from None
                continue
            if isinstance(result, Exception):
                raise result
            yield result


def _threads(count: int) -> int:
    """Threads of each process: the cores, shared out, but no more than this process may use."""
    return max(1, min(torch.get_num_threads(), usable_cores() // count))


def _work(job: Job, blocks: Sequence[int], rank: int, threads: int, networks: Networks, results: Connection) -> None:
    """One process: label blocks and send word of each; an error is sent too, for the first process to show."""
    logging.getLogger("semmae").setLevel(logging.ERROR)  # the first process has said it all
    try:
        _label_blocks(job, blocks, rank, threads, networks, results)
    except BrokenPipeError:
        pass  # the first process has been killed
    except UserError as error:
        results.send(UserError(str(error)))
    except Exception:
        results.send(RuntimeError(f"a labelling process failed:\n{traceback.format_exc()}"))
    finally:
        results.close()


def _label_blocks(
    job: Job, blocks: Sequence[int], rank: int, threads: int, networks: Networks, results: Connection
) -> None:
    teacher, num_heads, run = networks
    encoder, learner = load_encoder(teacher, num_heads=num_heads), read_learner(run / LEARNER)
    found, wanted = digest(encoder), job.store.teacher_digest
    if found != wanted:
        raise UserError(
            f"{teacher}: changed while it was read, from {short(wanted)} to {short(found)}; restore it and --resume"
        )
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    parent = multiprocessing.parent_process()
    for message in label_blocks(job, blocks, encoder, learner, threads=threads, device=device):
        if parent is not None and not parent.is_alive():
            return  # killed: the resumed run will do the rest
        results.send(message)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which a terminal sends to all: the first one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
