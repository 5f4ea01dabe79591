"""The verdict on a run in a sentence or two: what was measured, and what went wrong without an error.

`verdicts` reads the run's files; what it asks are plain functions of figures, each a sentence or None. The limits are
ours, beside what they were found with.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from semmae.data.part_store import PartStore
from semmae.evaluation.protocols import OWN, PROTOCOLS, RAW, UNTRAINED
from semmae.reporting.page import by_step, methods_of, quality, read_config, read_facts, read_records

# On 400 flat drawings, 8 epochs of `teacher --preset small-drawings` end at 0.989 of the uniform answer's loss, and an
# answer says 0.22 nats of its image, of 4.2 that it could; without KoLeo, whose k-NN stays at chance, 0.997 and 0.05.
_UNIFORM = 0.995  # of the loss of the uniform answer: above, the student has learned nothing
_CONSTANT = 0.1  # nats that an answer says of its image: below, all images get the same one
_LAST = 0.1  # share of the records, from the end, that are judged
_BLOCK = 65536  # rows of part labels that are counted together
_UNUSED = 0.005  # of all patches: a label below does not count as in use
_OTHERS = {UNTRAINED: "its untrained self", RAW: "raw pixels"}  # what the encoder is compared with, in words
# The figures by which encoders are compared, of a single protocol and of several, and what they are called.
_COMPARED = {row.summary[0]: row.words(row.summary[0]) for row in PROTOCOLS.values() if row.prefix} | {
    row.prefix + row.summary[0]: row.full_words(row.summary[0]) for row in PROTOCOLS.values() if row.prefix
}


def verdicts(run: Path) -> list[str]:
    """A sentence for whatever was measured and whatever went wrong without an error, the worst first.

    Of several rows it is the verdict on them that comes first: it is what the run was for.
    """
    results = read_facts(run / "results.json")
    asked = results.get("verdict")  # of several rows, see `reporting/comparison.py`
    wrong, found = [asked if isinstance(asked, str) else None], []
    for folder in (run, run / "teacher"):
        prototypes = read_config(folder).get("prototypes")
        if isinstance(prototypes, int):
            wrong.append(teacher_collapsed(by_step(read_records(folder / "metrics.jsonl")), prototypes))
    for folder in (run, run / "parts"):
        compared = quality(read_facts(folder / "quality.json"))
        found.append(compared[0] if compared else None)
        counts, names = _label_counts(folder)
        # One or two empty labels are usual, and better for the others than fewer labels (docs/parts-measured.md).
        place = found if 2 * len(_in_use(counts)) > len(counts) else wrong
        place.append(parts_unused(counts, names))
    wrong += [encoder_below(results, other) for other in _OTHERS]
    above = [encoder_above(results, other) for other in _OTHERS if other in results]
    found += above or [measured(results)]
    return [sentence for sentence in wrong + found if sentence]


def _label_counts(folder: Path) -> tuple[list[int], Sequence[str]]:
    """How many patches have each label, and what they are called; nothing without labels of all images."""
    if not ((folder / "parts.npy").is_file() and read_facts(folder / "parts.json").get("complete")):
        return [], []
    store = PartStore.open(folder)
    counts = np.zeros(store.num_labels, np.int64)
    for start in range(0, store.images, _BLOCK):
        counts += np.bincount(store.labels[start : start + _BLOCK].reshape(-1), minlength=store.num_labels)
    return counts.tolist(), store.label_names


def teacher_collapsed(records: Iterable[Mapping[str, Any]], prototypes: int) -> str | None:
    """Whether a teacher gives every image the same answer, or its student has learned nothing of it.

    `records` are those of metrics.jsonl, in their order; `prototypes` is K, the outputs of the head.
    """
    known = [record for record in records if {"loss_dino", "teacher_information"} <= record.keys()]
    if not known:
        return None
    last = known[-max(1, round(_LAST * len(known))) :]
    loss, information = (
        sum(float(record[name]) for record in last) / len(last) for name in ("loss_dino", "teacher_information")
    )
    uniform = math.log(prototypes)
    if loss >= _UNIFORM * uniform:
        fault = (
            f"its DINO loss ended at {loss:.2f}, no better than the uniform answer's (ln {prototypes} = {uniform:.2f})"
        )
    elif information < _CONSTANT:
        fault = f"it gives all images of a batch the same answer ({information:.3f} nats say which image it is)"
    else:
        return None
    return f"The teacher has collapsed or learned nothing: {fault}; raise --koleo or --epochs, or lower --momentum."


def encoder_below(results: Mapping[str, Any], other: str = UNTRAINED) -> str | None:
    """Which figures of results.json are below those of `other`, a key of `_OTHERS`; None where none is."""
    below = _compared(results, other, operator.lt)
    return f"The encoder is below {_OTHERS[other]}: {'; '.join(below)}." if below else None


def encoder_above(results: Mapping[str, Any], other: str = UNTRAINED) -> str | None:
    """Which figures are at or above those of `other`, a key of `_OTHERS`; None where none is."""
    above = _compared(results, other, operator.ge)
    return f"The encoder is at or above {_OTHERS[other]}: {'; '.join(above)}." if above else None


def _compared(results: Mapping[str, Any], other: str, holds: Callable[[float, float], bool]) -> list[str]:
    """In words, the figures of which this holds between the encoder and what it is compared with."""
    methods = methods_of(results)
    own, others = methods[OWN], methods.get(other, {})
    return [
        f"{words} {_figure(own, name)} against {_figure(others, name)}{_chance(own, others, name)}"
        for name, words in _measures(own, others)
        if holds(own[name], others[name])
    ]


def measured(results: Mapping[str, Any]) -> str | None:
    """The figures by themselves, where there is nothing to compare them with: each measure, and what guessing gives."""
    own = methods_of(results)[OWN]
    figures = "; ".join(f"{words} {_figure(own, name)}" for name, words in _measures(own, own))
    classes = own.get("classes", own.get("knn_classes", own.get("probe_classes")))
    guessing = f", where guessing among {classes} classes gives {100 / classes:.1f} %" if _is_number(classes) else ""
    return f"Measured: {figures}{guessing}." if figures else None


def parts_unused(counts: Sequence[int], names: Sequence[str]) -> str | None:
    """Which labels are in use, by how many patches have each; None where all are: 0.5 % of the patches or more."""
    assert len(counts) == len(names), "one count for each label"
    total, used = sum(counts), _in_use(counts)
    if not total or len(used) == len(counts):
        return None
    largest = sorted(used, key=lambda index: -counts[index])[:3]
    shares = ", ".join(f"{names[index]} {100 * counts[index] / total:.0f} %" for index in largest)
    return (
        f"Only {len(used)} of {len(counts)} labels are in use ({shares}{', …' if len(used) > 3 else ''}); each of the "
        f"others covers less than {100 * _UNUSED:g} % of the patches."
    )


def _in_use(counts: Sequence[int]) -> list[int]:
    """Which labels some patches have, 0.5 % or more."""
    return [index for index, count in enumerate(counts) if count >= _UNUSED * sum(counts)]


def _measures(own: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Names of the figures that both have and that are compared, and what they are called."""
    for name, words in _COMPARED.items():
        if _is_number(own.get(name)) and _is_number(other.get(name)):
            yield name, words.removesuffix(" %")


def _interval(figures: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return (low, high) if _is_number(low) and _is_number(high) else None


def _figure(figures: Mapping[str, Any], name: str) -> str:
    interval = _interval(figures, name)
    return f"{figures[name]:.1f} %" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")


def _chance(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """Whether the interval of a difference holds 0, in words; nothing where it does not, or there are no intervals.

    Of intervals that overlap a little it may not: it is made of both (Newcombe, Statistics in Medicine 17, 1998,
    method 10), as if each encoder had been measured on images of its own; the same images make it narrower still.
    """
    (low, below), (high, above) = sorted(
        ((each[name], _interval(each, name)) for each in (own, other)), key=lambda each: each[0]
    )
    if below is None or above is None:
        return ""
    return ", within chance" if high - low <= math.hypot(high - above[0], below[1] - low) else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
