"""`examples/slurm.sh` with commands of Slurm that do as they are told: which ends put the job into the queue again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/slurm.sh"
# srun ends when the tasks are told, and scancel when srun has ended.
COMMANDS = {
    "srun": "trap 'touch ended' EXIT; touch begun; {wait}exit {code}",
    "scancel": "touch told; until [ -e ended ]; do sleep 0.02; done; sleep 0.2",
    "scontrol": 'if [ "$1" = requeue ]; then touch queued; else echo localhost; fi',
}


@pytest.mark.parametrize(
    ("told", "code", "again"),
    [(True, 0, False), (True, 2, False), (True, 138, True), (True, 137, True), (False, 138, True), (False, 137, False)],
)
def test_a_job_is_queued_again_by_the_code_of_its_tasks(told: bool, code: int, again: bool, tmp_path: Path) -> None:
    """Also where they end while the script still tells them."""
    wait = "until [ -e told ]; do sleep 0.02; done; " if told else ""
    for name, text in COMMANDS.items():
        (command := tmp_path / name).write_text("#!/bin/bash\n" + text.replace("{wait}", wait).format(code=code))
        command.chmod(0o755)
    names = {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", SCRIPT, "pretrain"], cwd=tmp_path, env={**os.environ, **names, "PATH": path})
    while told and not (tmp_path / "begun").exists():
        time.sleep(0.02)
    if told:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == code
    assert (tmp_path / "queued").exists() == again
