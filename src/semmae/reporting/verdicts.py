"""What figures say when a run went wrong without an error: one sentence, or None where nothing did.

Plain functions of figures as the files of a run hold them, so that verbs and pages judge alike. The limits are ours,
beside what they were found with.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from semmae.evaluation.protocols import PROTOCOLS

# On 400 flat drawings, 8 epochs of `teacher --preset small-drawings` end at 0.989 of the uniform answer's loss, and an
# answer says 0.22 nats of its image, of 4.2 that it could; without KoLeo, whose k-NN stays at chance, 0.997 and 0.05.
_UNIFORM = 0.995  # of the loss of the uniform answer: above, the student has learned nothing
_CONSTANT = 0.1  # nats that an answer says of its image: below, all images get the same one
_LAST = 0.1  # share of the records, from the end, that are judged
_UNUSED = 0.005  # of all patches: a label below does not count as in use
# The figures by which encoders are compared, of a single protocol and of several, and what they are called.
_COMPARED = {row.summary[0]: row.words(row.summary[0]) for row in PROTOCOLS.values() if row.prefix} | {
    row.prefix + row.summary[0]: row.full_words(row.summary[0]) for row in PROTOCOLS.values() if row.prefix
}


def teacher_collapsed(records: Iterable[Mapping[str, Any]], prototypes: int) -> str | None:
    """Whether a teacher gives every image the same answer, or its student has learned nothing of it.

    Args:
        records: of metrics.jsonl, in their order; those without "loss_dino" and "teacher_information" do not count.
        prototypes: outputs of the head, K.

    Returns:
        A sentence, None where neither is so or nothing was recorded.
    """
    known = [record for record in records if {"loss_dino", "teacher_information"} <= record.keys()]
    if not known:
        return None
    last = known[-max(1, round(_LAST * len(known))) :]
    loss, information = (_mean(last, name) for name in ("loss_dino", "teacher_information"))
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


def encoder_below_untrained(results: Mapping[str, Any]) -> str | None:
    """Whether an encoder is measured below the same encoder with new weights.

    Args:
        results: of results.json: figures of the encoder at the top or under "this encoder", those of its untrained
            self under "untrained"; top-1 and mIoU are compared, each beside its 95 % interval where it has one.

    Returns:
        A sentence that names every such figure; None where there is none, or nothing to compare with.
    """
    below = _compared(results, operator.lt)
    return f"The encoder is below its untrained self: {'; '.join(below)}." if below else None


def encoder_above_untrained(results: Mapping[str, Any]) -> str | None:
    """Whether an encoder is measured at or above the same encoder with new weights; arguments and return as above."""
    above = _compared(results, operator.ge)
    return f"The encoder is at or above its untrained self: {'; '.join(above)}." if above else None


def _compared(results: Mapping[str, Any], holds: Callable[[float, float], bool]) -> list[str]:
    """In words, the figures of which this holds between the encoder and its untrained self."""
    own, untrained = results.get("this encoder", results), results.get("untrained")
    if not isinstance(own, Mapping) or not isinstance(untrained, Mapping):
        return []
    return [
        f"{words} {_figure(own, name)} against {_figure(untrained, name)}{_chance(own, untrained, name)}"
        for name, words in _measures(own, untrained)
        if holds(own[name], untrained[name])
    ]


def measured(results: Mapping[str, Any]) -> str | None:
    """The figures by themselves, where there is nothing to compare them with: each measure, and what guessing gives.

    Args:
        results: as for `encoder_below_untrained`.

    Returns:
        A sentence; None where none of the measures is among the figures.
    """
    own = results.get("this encoder", results)
    if not isinstance(own, Mapping):
        return None
    figures = "; ".join(f"{words} {_figure(own, name)}" for name, words in _measures(own, own))
    classes = own.get("classes", own.get("knn_classes", own.get("probe_classes")))
    guessing = f", where guessing among {classes} classes gives {100 / classes:.1f} %" if _is_number(classes) else ""
    return f"Measured: {figures}{guessing}." if figures else None


def parts_unused(counts: Sequence[int], names: Sequence[str]) -> str | None:
    """Whether some labels are hardly given to any patch.

    Args:
        counts: patches of all images that have each label.
        names: of the labels.

    Returns:
        A sentence with the labels in use; None where all are, that is cover at least 0.5 % of the patches each.
    """
    assert len(counts) == len(names), "one count for each label"
    total = sum(counts)
    used = [index for index, count in enumerate(counts) if count >= _UNUSED * total]
    if not total or len(used) == len(counts):
        return None
    largest = sorted(used, key=lambda index: -counts[index])[:3]
    shares = ", ".join(f"{names[index]} {100 * counts[index] / total:.0f} %" for index in largest)
    return (
        f"Only {len(used)} of {len(counts)} labels are in use ({shares}{', …' if len(used) > 3 else ''}); each of the "
        f"others covers less than {100 * _UNUSED:g} % of the patches."
    )


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
    """What overlapping intervals mean of a difference; nothing where they do not, or there are none."""
    first, second = _interval(own, name), _interval(other, name)
    return ", within chance" if first and second and first[1] >= second[0] else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(record[name]) for record in records) / len(records)
