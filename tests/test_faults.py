"""What ends a command in one line with exit code 1 or 2; and streams that nobody reads, or that take no letters."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import semmae.cli
from semmae.cli import run
from semmae.cli.faults import machine_fault
from semmae.errors import DiskError, UserError, message
from semmae.progress import say

COMMAND = [sys.executable, "-m", "semmae"]


class Failing(Dataset[int]):
    """Raises in the process that loads."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> int:
        raise self.error


@pytest.mark.parametrize("kind", [UserError, DiskError])
def test_an_error_in_a_loaders_process_is_its_message(kind: type[Exception]) -> None:
    with pytest.raises(kind) as wrapped:
        next(iter(DataLoader(Failing(kind("photo: cannot be read;\n  restore it")), num_workers=1)))
    assert "Original Traceback" in str(wrapped.value)
    assert message(wrapped.value) == "photo: cannot be read; restore it"


FAULTS = [
    (UserError("value; remedy"), 2, ["value; remedy"]),
    (DiskError("out: the disk is full"), 1, ["out: the disk is full"]),
    (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 1, ["a.bin", "No space left"]),
    (OSError(errno.EROFS, "Read-only file system", "a.bin"), 1, ["a.bin", "Read-only"]),
    (RuntimeError("PytorchStreamWriter failed writing file data/3"), 1, ["PytorchStreamWriter"]),
    (MemoryError(), 1, ["out of memory", "--batch-size"]),
    (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), 1, ["out of memory", "--batch-size"]),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, ["out of memory"]),
    (RuntimeError("Gloo connectFullMesh failed with [pair.cc:144] no error"), 1, ["GLOO_SOCKET_IFNAME"]),
    # As PyTorch hands on what NCCL says, in part: a lost process, or a start that fails.
    (
        RuntimeError("NCCL error: remote process exited or there was a network error, NCCL version 2.27"),
        1,
        ["--resume"],
    ),
    (RuntimeError("NCCL communicator was aborted on rank 1."), 1, ["--resume"]),
    (
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage\nLast error:\nDuplicate GPU detected"),
        1,
        ["Duplicate GPU detected", "NCCL_DEBUG"],
    ),
    (RuntimeError("NCCL error\nLast error:\nBootstrap : no socket interface found"), 1, ["no socket interface found"]),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1, ["--workers"]),
]


@pytest.mark.parametrize(("error", "code", "named"), FAULTS, ids=[repr(error)[:60] for error, *_ in FAULTS])
def test_faults_end_in_one_line(
    error: Exception, code: int, named: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(error, monkeypatch) == code
    output = capsys.readouterr().err
    assert output.startswith("semmae: ") and output.count("\n") == 1
    assert [name for name in named if name not in output] == [], output


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), OSError(errno.ENOENT, "No such", "elsewhere")])
def test_our_own_faults_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_fault(error) is None
    with pytest.raises(type(error)):
        ended_by(error, monkeypatch)


def ended_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """How the command ends when its verb raises an error."""

    def verb(options: Any, given: Any) -> None:
        raise error

    monkeypatch.setattr("semmae.verbs.run_verb", verb)
    return run(["knn", "--encoder", "e", "--data", "d", "--out", "out"])


def test_a_result_is_shown_and_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "semmae"):
        say("a table\nof two lines \udcff")
    assert capsys.readouterr().out == "a table\nof two lines \\udcff\n"
    assert caplog.messages == ["a table\nof two lines \udcff"]


# A verb that says something, then writes a file; in place of one that loads networks first.
VERB = """
import logging, pathlib, sys
import semmae.cli
from semmae.progress import Progress, say
def verb(name, arguments):
    say("table " * 5000 + arguments[0])
    print("of a library")
    with Progress(1) as progress:
        progress._write("\\n")
    logging.getLogger("semmae").warning("note %s", arguments[0])
    pathlib.Path("done").write_bytes(b"end")
    return 0
semmae.cli._run_verb = verb
semmae.cli.main(["knn", sys.argv[-1]])
"""


@pytest.mark.parametrize(
    "redirected", ["| true", ">&-", ">/dev/full", "2>&-", "<&- >&- 2>&-", "2>&1 | true", "2>/dev/full"]
)
def test_what_nobody_reads_costs_no_file_and_no_exit_code(redirected: str, tmp_path: Path) -> None:
    # A pipe is read by who has ended: the verb waits for that.
    wait = "sleep 0.3;" if "|" in redirected else ""
    script = f'( {wait} "$@"; echo $? >code ) {redirected}'
    ended = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", VERB, "end"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (tmp_path / "done").read_bytes() == b"end", ended.stderr
    assert (tmp_path / "code").read_text() == "0\n", ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


def test_a_locale_without_letters_is_no_fault(tmp_path: Path) -> None:
    plain = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    plain.pop("PYTHONIOENCODING", None)
    odd = b"\xff\xc3\xa4"
    ended = subprocess.run([sys.executable, "-c", VERB, odd], cwd=tmp_path, capture_output=True, timeout=120, env=plain)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("\\xffä\nof a library\n".encode()), ended.stdout[-80:]
    assert "note \\xffä\n".encode() in ended.stderr
    refused = subprocess.run([*COMMAND, b"knn\xff"], cwd=tmp_path, capture_output=True, timeout=120, env=plain)
    assert refused.returncode == 2 and refused.stderr.startswith(b"semmae: unknown verb")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    output = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=120, check=True).stdout
    assert output == f"semmae {semmae.__version__}\n"
