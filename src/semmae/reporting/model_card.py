"""The model card of an export: what the weights are, where they come from, what was measured, how to load them.

Everything is read from the run: `config.yaml`, `summary.json`, and `results.json` of whatever measured it; what is not
stated there is not stated here. Paths are shortened to their last name, which is all that others can use.
"""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from semmae import files
from semmae.errors import UserError
from semmae.evaluation.protocols import OWN
from semmae.formats import folders as checkpoint
from semmae.formats.form import Model, encoder_of
from semmae.formats.table import WRITINGS
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.names import user_path
from semmae.options import VERBS, kind_of
from semmae.options.fields import options_of
from semmae.reporting.page import figure_rows, flat, methods_of, read_facts
from semmae.reporting.results import markdown_table, protocol_lines
from semmae.reporting.teachers import in_words, parts_teacher, tokens_sentence, tokens_teacher
from semmae.run.config import CONFIG, readable_value, saved_options
from semmae.sizes import around, size_shown, size_text

RESULTS = "results.json"
# What a run trains on from an encoder: its own figures are of these, and name the encoder as it was before.
_TRAINED = (checkpoint.CLASSIFIER, checkpoint.SEGMENTER)

_LICENCE = (
    "Not stated. The data, and weights that the training began with or learned from, may bind what these may be "
    "used for; whoever publishes them should state a licence here and in the header."
)

_LOG = logging.getLogger("semmae")


@dataclass(frozen=True)
class Run:
    """A run whose weights are exported."""

    name: str
    options: Mapping[str, Any]  # config.yaml
    summary: Mapping[str, Any]  # summary.json; empty where there is none
    results: Mapping[str, Mapping[str, Any]]  # content of results.json files, by where they lay
    own: str | None = None  # which of them is of what the run itself trained, where that has a head
    parts_teacher: str | None = None  # what its parts were learned from, where it has made some
    tokens_teacher: str | None = None  # whose tokens its encoder has learned, where it has


@dataclass(frozen=True)
class Card:
    """What a card is written of."""

    title: str  # of a folder, or OWNER/NAME on the hub
    form: str
    model: Model
    source: str  # the --encoder that was exported
    run: Run | None
    results: Mapping[str, Mapping[str, Any]]  # beyond those of the run
    digest: str = ""  # of the encoder, before its positions are resampled
    classes: Sequence[str] = ()  # of a classifier
    crop_pct: float = 1.0  # share of the short side that the model was measured on

    @property
    def encoder(self) -> Encoder:
        """The encoder, of a masked autoencoder or a classifier too."""
        return encoder_of(self.model)


def find_run(spec: object) -> Run | None:
    """The run of ours that a SPEC points to, or into; None where it is none. An object may have been changed since."""
    if not isinstance(spec, str | PathLike):
        return None
    path = user_path(spec)
    folder = path.parent if path.is_file() else path
    if folder.name in (checkpoint.ENCODER, checkpoint.AUTOENCODER, *_TRAINED):
        folder = folder.parent
    elif path.is_file():
        return None
    config = folder / CONFIG
    if not config.is_file():
        return None
    options = {name: readable_value(value) for name, value in saved_options(folder).items()}
    ratio = files.Fields(config, options).get("mask_ratio", (int, float), 0.5)
    if not 0 <= ratio < 1:
        raise UserError(f"{config}: mask_ratio is {ratio}, must be from 0 to less than 1; restore it")
    found = sorted([*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")])
    return Run(
        folder.resolve().name,
        options,
        read_facts(folder / "summary.json"),
        {path.parent.name: read_facts(path) for path in found},
        folder.name if any((folder / name).is_dir() for name in _TRAINED) else None,
        parts_teacher(folder / "parts"),
        tokens_teacher(folder, options),
    )


def write_card(card: Card) -> str:
    """The text of README.md, with the header that the hub reads."""
    code = WRITINGS[card.form].use(card.title, card.model, bool(card.classes))
    sections = [
        ("", _what(card)),
        ("Training", _training(card)),
        ("Figures", _figures(card)),
        ("Images", _images(card)),
        ("Use", ["```python", *code, "```", ""]),
        ("Licence", [_LICENCE, ""]),
    ]
    body = [line for title, lines in sections for line in ([f"## {title}", "", *lines] if title else lines)]
    return "\n".join([*_header(card), f"# {card.title}", "", *body]).rstrip() + "\n"


def _header(card: Card) -> list[str]:
    task = "image-classification" if card.classes else "image-feature-extraction"
    kind = "masked-image-modeling" if isinstance(card.model, MaskedAutoencoder) else task
    return [
        "---",
        f"library_name: {WRITINGS[card.form].library}",
        "license: unknown",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in ("semmae", kind, "vision-transformer")),
        "---",
    ]


def _what(card: Card) -> list[str]:
    spec = card.encoder.spec
    count = sum(tensor.numel() for tensor in card.model.parameters()) / 1e6
    decoder = f" with a head of {len(card.classes)} classes" if card.classes else ""
    if isinstance(card.model, MaskedAutoencoder):
        sizes = card.model.decoder
        kind = "normalised pixels" if card.model.norm_pix_loss else "pixels"
        decoder = (
            f" with its decoder (width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads), a masked "
            f"autoencoder that predicts {kind}"
        )
    origin = f"the run `{card.run.name}`" if card.run else f"`{_public('encoder', card.source)}`"
    return [
        f"A Vision Transformer (width {spec.width}, depth {spec.depth}, {spec.num_heads} heads, patches of "
        f"{spec.patch_size} pixels, images of {size_text(spec.image_size)}){decoder}: {count:.1f} million parameters. "
        f"Exported by semmae {version('semmae')} from {origin}.",
        "",
    ]


def _training(card: Card) -> list[str]:
    if card.run is None:
        return ["Nothing is known of it: weights were exported, and no run of semmae.", ""]
    options, summary = card.run.options, card.run.summary
    facts = [f"Stage: {summary['stage']}."] if "stage" in summary else []
    if "data" in options:
        count = f", {summary['images']} images" if "images" in summary else ""
        facts.append(f"Data: `{_public('data', options['data'])}`{count}.")
    if "minutes" in summary:
        state = "" if summary.get("finished", True) else "; it had not come to its end"
        facts.append(f"Time: {summary['minutes']:.1f} minutes{state}.")
    if card.run.parts_teacher is not None:
        facts.append(f"Parts: learned from {in_words(_public('teacher', card.run.parts_teacher), '`')}.")
    if card.run.tokens_teacher is not None:
        facts.append(tokens_sentence(_public("teacher", card.run.tokens_teacher), "`"))
    for length in ("epochs", "steps"):
        if f"{length}_planned" in summary:
            facts.append(f"Stopped by a callback after {summary[length]} of {summary[f'{length}_planned']} {length}.")
    recipe = protocol_lines({name: _public(name, value) for name, value in options.items() if name in _recipe(options)})
    return [*([" ".join(facts), ""] if facts else []), "Recipe:", "", *recipe, ""]


def _recipe(options: Mapping[str, Any]) -> set[str]:
    """The options that shape the weights, but for the images, which have a sentence of their own."""
    declared = options_of(kind_of(options["verb"])).values() if options.get("verb") in VERBS else ()
    shaping = [each for each in declared if each.facts.on_resume == "same" and not each.facts.control]
    # Of what a run finds or makes by itself the sentences say what it was.
    words = {each.name for each in shaping if each.is_word(options.get(each.name))}
    return {option.name for option in shaping if option.facts.reads != "images"} - words


def _figures(card: Card) -> list[str]:
    found = {**(card.run.results if card.run else {}), **card.results}
    own = {place: content for place, content in found.items() if _is_of(card, place, content)}
    lines = [line for place, content in own.items() for line in _result(place, content)]
    return lines or ["None: nothing was measured that this export knows of.", ""]


def _is_of(card: Card, place: str, content: Mapping[str, Any]) -> bool:
    """Whether figures are of these weights, or do not say of which; logged where they are of others."""
    protocol = content.get("protocol")
    found = protocol.get("encoder_digest") if isinstance(protocol, Mapping) else None
    trained_here = card.run is not None and place == card.run.own and place not in card.results
    if found is None or trained_here or found == card.digest:
        return True
    _LOG.info(
        "model card: the figures of %s are left out: they are of other weights (digest %.12s, not %.12s)",
        place, found, card.digest,
    )  # fmt: skip
    return False


def _result(place: str, content: Mapping[str, Any]) -> list[str]:
    """One results.json: its table, and the protocol it was measured by."""
    protocol = content.get("protocol")
    if not isinstance(protocol, Mapping):
        return []
    settings = {
        name: _public(name, value)
        for name, value in flat(protocol)
        if name not in ("encoder", "encoder_digest", "method")
    }
    title = str(protocol.get("method", place))
    methods = methods_of(content)
    rows = figure_rows(methods) if OWN in content else methods  # of several protocols at once: figures by method
    return [f"### {title}", "", *markdown_table(rows), "", *protocol_lines(settings), ""]


def _images(card: Card) -> list[str]:
    spec, size = card.encoder.spec, card.encoder.spec.image_size
    covered = around(size, card.crop_pct)
    kind = "RGB" if spec.channels == 3 else f"{spec.channels} channels of 16 bits"
    if isinstance(size, int):
        cut = f"resizes the short side to {covered} pixels, bicubic, and cuts out the central square of {size}"
    else:
        cut = f"resizes to cover {size_shown(covered)} pixels, bicubic, and cuts out the central {size_shown(size)}"
    return [
        f"{kind}, {size_shown(size)} pixels, scaled to 0–1, then normalised: mean "
        f"{_numbers(spec.mean)}, standard deviation {_numbers(spec.std)}. semmae {cut}; "
        "where figures are of another share of it, they name it as `crop pct`.",
        "",
    ]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _public(name: str, value: Any) -> Any:
    """A path's last name, anything else as it is: `timm:` and `hf:` names are everybody's, but for local ones."""
    if isinstance(value, list):
        return [_public(name, item) for item in value]
    if not isinstance(value, str) or (value.startswith(("timm:", "hf:")) and not value.startswith("timm:local-dir:")):
        return value
    is_place = name.rpartition(".")[2] in _places() or value.startswith(("/", "timm:"))
    return (Path(value).name or value) if is_place else value


@functools.cache
def _places() -> frozenset[str]:
    """Names of the options of any verb that are places: protocols name their settings so."""
    every = (option for verb in VERBS for option in options_of(kind_of(verb)).values())
    return frozenset(option.name for option in every if option.facts.reads or option.facts.writes)
