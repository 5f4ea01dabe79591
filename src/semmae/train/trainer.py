"""The one place that builds a Lightning Trainer; what it reports while it runs is `semmae.train.meter`'s.

Notable here:
- `fit` runs a task to the end, or from its last checkpoint on; Lightning keeps loop, optimiser and
  schedule state, loaded with `weights_only=True`, so that a checkpoint executes nothing; when it is written
  `semmae.train.stopping` decides;
- a user's callback may end a training early: `fit` returns how far it came, and what is measured at the end is measured
  then.
"""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.data import DataLoader

from semmae.memory import keep_freed_memory
from semmae.run.ranks import is_rank_zero
from semmae.run.signals import Interrupted
from semmae.train.batches import Training
from semmae.train.checkpoints import CheckedCheckpointIO
from semmae.train.fsdp import ShardingStrategy
from semmae.train.hardware import accelerator, cluster
from semmae.train.loggers import open_loggers
from semmae.train.meter import Meter
from semmae.train.precision import resolve_precision
from semmae.train.stage import LAST, Evaluation, FitOptions
from semmae.train.stopping import Keeper
from semmae.train.summary import Trained
from semmae.train.together import TIMEOUT, explained

_LIGHTNING_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

_log = logging.getLogger("semmae")


def fit(
    task: pl.LightningModule,
    loader: DataLoader[dict[str, Any]],
    options: FitOptions,
    evaluation: Evaluation | None = None,
) -> Trained:
    """Train to the last epoch; a training that is resumed from `out/checkpoints/last.ckpt` on, if there is one.

    Returns how many of the steps were done: all of them, unless a callback has ended it.

    The user's callbacks come after ours: at the end of a step they find the metrics written and the state kept.
    Whether a resumed run ends as one that was never stopped is up to them too.

    Raises `Interrupted` after Ctrl-C or SIGTERM, when the step that was running is done and kept, unless Ctrl-C came
    twice; in processes other than the first one `SystemExit`, for the first one reports.
    """
    training, last = options.training, options.out / "checkpoints" / LAST
    resume, names = training.resume, training.loggers if is_rank_zero() else ()
    with _quiet(), open_loggers(names, options.out, options.stage, training.hyperparameters, resume) as loggers:
        meter = Meter(options, evaluation)
        trainer = _trainer(task, options, loggers, [meter, Keeper(last, loader, meter.check), *training.callbacks])
        previous = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(task, loader, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
        except (Interrupted, SystemExit) as stop:  # SystemExit: how Lightning answers Ctrl-C that does not wait
            if not is_rank_zero():
                raise SystemExit(0) from stop  # another code, and Lightning kills the first one as it reports
            raise Interrupted(getattr(stop, "signum", signal.SIGINT)) from stop
        except Exception as error:
            said = explained(error)
            if said is error:
                raise
            raise said from error
        finally:
            if threading.current_thread() is threading.main_thread():  # another one cannot, and has changed nothing
                signal.signal(signal.SIGINT, previous)
        if trainer.interrupted:
            raise Interrupted
    of_an_epoch = int(trainer.num_training_batches) // training.accumulate
    trained = Trained(trainer.global_step, options.epochs * of_an_epoch)
    if trained.stopped and is_rank_zero():
        whole = trained.steps % of_an_epoch == 0 and not options.in_steps
        unit, most = ("epoch", options.epochs) if whole else ("step", trained.planned)
        _log.warning("%s: stopped after %s %s of %d by a callback", options.stage, unit, trained.of(most), most)
    return trained


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on worker counts and log intervals is not the user's to act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.optim.lr_scheduler")
        for library in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(library).setLevel(logging.WARNING)
        yield


def _trainer(
    task: pl.LightningModule, options: FitOptions, loggers: list[Logger], callbacks: list[pl.Callback]
) -> pl.Trainer:
    training = options.training
    precision = resolve_precision(training.precision)
    stage, processes = options.stage, training.processes
    _log.debug("%s: %s, %d batches a step on %d devices", stage, precision, training.accumulate, processes)
    keep_freed_memory()
    trainer = pl.Trainer(
        accelerator=accelerator(training.devices),
        devices=training.devices,
        num_nodes=training.nodes,
        strategy=_strategy(training, static=options.static),
        precision=_LIGHTNING_PRECISION[precision],  # type: ignore[arg-type]
        max_epochs=options.epochs,
        accumulate_grad_batches=training.accumulate,
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[CheckedCheckpointIO(task.state_dict()), *cluster()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the sampler deals rows to ranks itself
    )
    # Of several processes it asks every device at every step whether a signal has come, and waits for the answer. Here
    # `Signals` and `Vote` know.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(training: Training, *, static: bool) -> Strategy | str:
    """How processes share the work; with `static`, every step computes the same graph, of all the same weights."""
    if training.strategy == "fsdp":
        return ShardingStrategy(data_parallel_size=training.processes, tensor_parallel_size=1, timeout=TIMEOUT)
    if training.processes == 1:
        return "auto"
    return DDPStrategy(
        timeout=TIMEOUT,
        gradient_as_bucket_view=True,  # no second copy of all gradients
        broadcast_buffers=False,  # those that change are statistics: of the first process, whose network is kept
        static_graph=static and training.accumulate == 1,  # torch cannot have it where some batches are not summed
        ddp_comm_hook=bf16_compress_hook if training.gradients == "bf16" else None,  # on GPUs
    )
