"""What one stage of a run is, as training and its reports have to know it besides task and data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semmae.train.batches import Training

LAST = "last.ckpt"


@dataclass(frozen=True)
class FitOptions:
    """How a stage is trained."""

    training: Training
    out: Path  # receives checkpoints/, metrics.jsonl and TensorBoard events
    stage: str  # name beside every metric
    epochs: int
    clip: float  # highest norm of the gradient; 0 = unlimited
    clip_each: bool = False  # of each parameter's, not of all together
    static: bool = False  # every step computes the same graph
    in_steps: bool = False  # what the line on the terminal counts: steps, where a pass over the loader is no epoch


@dataclass(frozen=True)
class Evaluation:
    """What to measure while training goes on: name → value, to stand among the metrics."""

    measure: Callable[[], dict[str, float]]
    every: int  # epochs; the last one is measured too, whichever it turns out to be
