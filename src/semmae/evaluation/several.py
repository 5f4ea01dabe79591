"""An encoder measured by several protocols, the figures of each kept as soon as it is finished."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from semmae.errors import UserError
from semmae.evaluation.protocols import PROTOCOLS
from semmae.evaluation.protocols.shape import Figures, Measured, Protocol
from semmae.files import Fields, make_folder, read_json, write_json
from semmae.formats.folders import digest
from semmae.models.vit import Encoder

_FIGURES = "figures.json"  # of one encoder, those of the protocols that are finished
# What they were found with, in words.
_WORDS = {
    "encoder_digest": "encoder weights",
    "class_images": "images of classes",
    "pixel_images": "images of annotations",
    "masks": "annotations (--masks)",
}


class Step(NamedTuple):
    """A protocol, and the data that it measures by."""

    protocol: Protocol[Any]
    data: Any


def measure_by(
    steps: Iterable[Step],
    encoder: Encoder,
    out: Path,
    digests: Mapping[str, Any],
    *,
    resume: bool,
    written: Callable[[Path, Measured], None],
) -> Figures:
    """Every figure, under a name that says its protocol.

    Each step brings the encoder to what it trains on. `out` holds figures.json, and what the protocols leave in
    folders of their own; with `resume` those whose figures lie there are left out. By `digests` of the data a stopped
    run knows that nothing has changed; `written` writes what lies behind the figures of a protocol that is finished.
    """
    make_folder(out)
    facts = {"encoder_digest": digest(encoder), **digests}
    kept = finished_figures(out, facts) if resume else {}
    earlier = _noted(out / _FIGURES, facts) if kept else {}  # of other protocols, which may measure by other data
    for protocol, data in steps:
        name = protocol.name
        if name not in kept:
            protocol.prepare(encoder)
            measured = protocol.run(encoder, data, out / name)
            assert measured is not None, "a single process measures"
            written(out / name, measured)
            kept[name] = {PROTOCOLS[name].prefix + each: value for each, value in measured.figures.items()}
            write_json(out / _FIGURES, {**earlier, **facts, "figures": kept})
    return {name: value for figures in kept.values() for name, value in figures.items()}


def finished_figures(out: Path, facts: Mapping[str, Any]) -> dict[str, Figures]:
    """By protocol, the figures that the run in `out` has found before it was stopped.

    Refused where `facts` differ, such as {"encoder_digest": …, "class_images": …}; those that no protocol has had
    before are new.
    """
    path = out / _FIGURES
    if not path.is_file():
        return {}
    earlier = _noted(path, facts)
    figures: dict[str, Figures] = Fields(path, earlier).need("figures", dict)
    for protocol in figures:
        of_protocol = Fields(path, Fields(path, figures).need(protocol, dict))
        if protocol in PROTOCOLS:
            for name in PROTOCOLS[protocol].summary:
                of_protocol.get(PROTOCOLS[protocol].prefix + name, (int, float, type(None)))
    changed = next((name for name in facts if name in earlier and earlier[name] != facts[name]), None)
    if changed:
        raise UserError(
            f"{path}: was found with other {_WORDS.get(changed, changed)}; restore what has changed, or use another "
            "--out"
        )
    return figures


def _noted(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What figures.json holds; images of classes and of pixels, once in one list, by names of their own."""
    earlier = read_json(path)
    images = Fields(path, earlier).get("images", list)
    if images is not None:
        del earlier["images"]
        of_classes = len(facts.get("class_images", ())) if "masks" in earlier else len(images)
        earlier |= {"class_images": images[:of_classes]} if of_classes else {}
        earlier |= {"pixel_images": images[of_classes:]} if "masks" in earlier else {}
    return earlier


def describe_by(steps: Iterable[Step], common: Mapping[str, Any]) -> dict[str, Any]:
    """How everything was measured, by protocol; what is the same for all of them stands before them."""
    described = {
        protocol.name: {key: value for key, value in protocol.describe(data).items() if key not in common}
        for protocol, data in steps
    }
    return {**common, **described}
