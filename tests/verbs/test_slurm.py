"""Slurm's own daemons on this machine, of one node with two GPUs that are not there, and the script of examples/."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

DAEMONS = ("slurmctld", "slurmd")
SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, (*DAEMONS, "sbatch"))), reason="needs slurmctld, slurmd and root"
    ),
]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# Its second step takes until Slurm has told the script, and that all tasks, in the first start of the job; each says
# what it sees. The second task takes longer to end than the first, whose code makes srun end what is left.
STEPS = """
import atexit, os, subprocess, sys, time
from semmae.cli import main
from semmae.run.signals import STOPPING
from semmae.train.meter import Meter
from semmae.train.stopping import Signals

real, received = Meter.on_train_batch_start, Signals._receive
seen = []

def receive(signals, signum, frame):
    seen.append(signum)
    received(signals, signum, frame)

def start(meter, trainer, *rest):
    real(meter, trainer, *rest)
    if trainer.global_step == 1 and "SLURM_RESTART_COUNT" not in os.environ and not seen:
        if trainer.global_rank == 0:
            subprocess.run(["scancel", "--batch", "--signal=USR1", os.environ["SLURM_JOB_ID"]], check=True)
        while not seen:
            time.sleep(0.05)

Signals._receive, Meter.on_train_batch_start = receive, start
if os.environ["SLURM_PROCID"] == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    atexit.register(time.sleep, 60)
print("task", os.environ["SLURM_PROCID"], "sees", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
main()
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in whose slurm.conf the two daemons run."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, control=tiny.free_port(), node=tiny.free_port()))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[0-1]\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    os.environ["SLURM_CONF"] = str(conf)
    daemons = []
    for name in DAEMONS:
        with (folder / f"{name}.out").open("w") as file:
            daemons.append(subprocess.Popen([name, "-D", "-f", conf], stdout=file, stderr=file))
    try:
        until(lambda: "idle" in said("sinfo", "--noheader"), 60)
        yield folder
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(30)
        del os.environ["SLURM_CONF"]


def said(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout


def until(holds: object, seconds: float) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, said("sinfo") + said("scontrol", "show", "jobs")
        time.sleep(0.5)


def submitted(slurm: Path, program: str, arguments: list[str], log: Path) -> str:
    """What a job of the script has written, when it is over; `semmae` is that Python program."""
    bin_, script = slurm / "bin", slurm / "program.py"
    bin_.mkdir(exist_ok=True)
    script.write_text(program)
    (bin_ / "semmae").write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    (bin_ / "semmae").chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={log}"]
    command = ["sbatch", *options, str(SCRIPT), *arguments]
    job = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()

    def is_over() -> bool:
        found = said("scontrol", "show", "job", job)
        if "Reason=BeginTime" in found:  # what is queued again waits for two minutes
            time.sleep(5)  # in the second in which its first start was ended, a node refuses to start it
            said("scontrol", "update", f"JobId={job}", "StartTime=now")
        return any(f"JobState={end}" in found for end in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))

    until(is_over, 500)
    return log.read_text()


def test_a_job_whose_time_is_over_is_queued_again_and_resumes(slurm: Path, creatures: Path, tmp_path: Path) -> None:
    """With the losses of a run of two devices that was never stopped; each task sees one GPU."""
    given = ["--data", str(creatures / "images"), "--masking", "random", "--epochs", "2", "--precision", "float32"]
    command = ["pretrain", *given, *tiny.SMALL]
    log = submitted(slurm, STEPS, [*command, "--out", str(tmp_path / "run")], tmp_path / "log")
    assert {line for line in log.splitlines() if "sees" in line} == {"task 0 sees 0", "task 1 sees 1"}, log
    assert log.count("semmae: stopped; ") == 1 and log.count("resuming it") == 1, log
    assert "Traceback" not in log, log
    program = Path(sys.executable).with_name("semmae")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([program, *command, "--devices", "2", "--out", tmp_path / "two"], check=True, timeout=300, env=alone)
    tiny.assert_same_weights(tmp_path / "run" / "encoder", tmp_path / "two" / "encoder")


def test_a_task_that_is_lost_ends_the_job(slurm: Path, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """As it embeds images; nothing is left waiting, and the same command again gives the bytes of one process."""
    fault = """
import os, signal
from semmae.cli import main
from semmae.evaluation import features

if os.environ["SLURM_PROCID"] == "1" and "FAULT" in os.environ:
    features.through_encoder = lambda *_, **named: os.kill(os.getpid(), signal.SIGKILL)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
main()
"""
    given = ["--data", str(creatures / "images"), "--encoder", str(encoder), "--workers", "0", "--batch-size", "5"]
    command = ["embed", *given, "--out", str(tmp_path / "two.npz")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULT", "1")
        log = submitted(slurm, fault, command, tmp_path / "log")
    assert not (tmp_path / "two.npz").exists() and "Killed" in log, log
    log = submitted(slurm, fault, command, tmp_path / "log")
    program = Path(sys.executable).with_name("semmae")
    subprocess.run([program, "embed", *given, "--out", tmp_path / "one.npz"], check=True, timeout=300)
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes(), log
