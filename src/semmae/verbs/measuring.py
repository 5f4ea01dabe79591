"""How an encoder is measured by one protocol, whichever the verb: opened, checked, measured, written.

Notable here:
- an encoder that cannot be measured is refused before data are read, and data before the folder is touched;
- what is said of an encoder is said of it as it was loaded, before it is resized or trained on.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from semmae.data.classes import TrainVal, open_sets, train_val
from semmae.data.manifest import ImageSet
from semmae.evaluation.features import View, encoder_facts, resolve_pooling
from semmae.evaluation.protocols import OWN, UNTRAINED
from semmae.evaluation.protocols.shape import DataT, Measured, Protocol, measure
from semmae.formats.folders import save_head
from semmae.models.vit import Encoder
from semmae.objects import described
from semmae.options.evaluate import EvaluateOptions
from semmae.options.fields import shared
from semmae.options.finetune import FinetuneOptions
from semmae.options.knn import KnnOptions
from semmae.options.probe import ProbeOptions
from semmae.options.shared import EncoderOptions
from semmae.reporting.results import write_measured
from semmae.reporting.run_page import write_report
from semmae.run.ranks import is_rank_zero
from semmae.verbs.channels import seen_by


def measure_encoder(
    folder: AbstractContextManager[Path],
    protocol: Protocol[DataT],
    encoder: Encoder,
    open_data: Callable[[], DataT],
    facts: Mapping[str, Any],
    *,
    untrained: bool,
) -> Path:
    """Measure an encoder in the folder of a run and, with `untrained`, the same with new weights.

    `facts` are those of `facts_of`; by their seed new weights are drawn.
    """
    protocol.check_encoder(encoder)
    protocol.prepare(encoder)
    with seen_by(encoder, facts["encoder"]):
        data = open_data()
    protocol.check(data)
    seed = facts["seed"] if untrained else None
    measured = functools.partial(measure, protocol, encoder, data, untrained_seed=seed)
    return write_figures(folder, measured, {**protocol.describe(data), **facts}, data.sets)


def write_figures(
    folder: AbstractContextManager[Path],
    measured: Callable[[Path], Mapping[str, Measured]],
    about: dict[str, Any],
    sets: Iterable[ImageSet],
) -> Path:
    """Measure in the folder of a run, and write the figures, what they are of, and what lies behind them."""
    with folder as out:
        methods = measured(out)
        if is_rank_zero():
            about = {**about, **_lengths(methods)}
            head = methods[OWN].head
            if head is not None:
                save_head(head, out / "head", about)
            write_measured(out, about, methods, sets)
            write_report(out)
    return out


def _lengths(methods: Mapping[str, Measured]) -> dict[str, float]:
    """For how many epochs or steps was trained; of the untrained encoder too, where it is another number."""
    own = methods[OWN].length
    other = methods[UNTRAINED].length if UNTRAINED in methods else own
    return {**own, **({} if other == own else {f"untrained_{name}": value for name, value in other.items()})}


def facts_of(options: EncoderOptions, encoder: Encoder) -> dict[str, Any]:
    """Whose the figures are, and on what: ask before the encoder is resized or trained on."""
    return {**encoder_facts(options.encoder, encoder), "data": described(options.data), "seed": options.seed}


def view_of(options: KnnOptions | ProbeOptions | EvaluateOptions, encoder: Encoder, **own: Any) -> View:
    """How a frozen encoder is shown images; `own` wins over the options."""
    size = options.image_size or encoder.spec.image_size
    return shared(View, options, image_size=size, pooling=resolve_pooling(options.pooling, encoder), **own)


def open_class_sets(options: EncoderOptions, channels: int) -> list[ImageSet]:
    """The images of --data, by splits where it has some, in the channels of the encoder."""
    return open_sets(
        options.data, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
        channels=channels,
    )  # fmt: skip


def divided(options: ProbeOptions | FinetuneOptions | EvaluateOptions, sets: Sequence[ImageSet]) -> TrainVal:
    """These sets of --data, to learn from and to measure on."""
    return train_val(options.data, sets, val_share=options.val_share, limit=options.limit, seed=options.seed)
