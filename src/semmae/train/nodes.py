"""Slurm as Lightning is to see it."""

import warnings

from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]  # exported, not declared so
    SLURMEnvironment,
)

from semmae.run.ranks import started


def cluster() -> list[SLURMEnvironment]:
    """Slurm as it is wanted here: it ends a job by SIGTERM, which is answered as everywhere, with a checkpoint.

    Lightning's own answer would be another checkpoint in another place, and the same job put into the queue again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that srun exists and is not used is no fault
        # torchrun may itself be started by srun, and then it sets the ranks.
        return [SLURMEnvironment(auto_requeue=False)] if started()[0] == "srun" and SLURMEnvironment.detect() else []
