"""A model in another form: refused where the form cannot hold it; written, read again and compared bit by bit."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from semmae.errors import UserError
from semmae.files import PART
from semmae.formats import folders as checkpoint
from semmae.formats.form import Model, Reading, Subject, encoder_of, pooling_of
from semmae.formats.open import load_encoder, load_mae
from semmae.formats.table import FORMS, WRITINGS
from semmae.models.classifier import Classifier
from semmae.models.mae import MaskedAutoencoder
from semmae.models.weights import NORM_EPS, load_strictly, norm_epsilons, peculiarities

_LOG = logging.getLogger("semmae")


def check_form(name: str, model: Model, source: str) -> None:
    """UserError for a model with parts that the form of this name has no place for; names the forms that have."""
    fault = _fault(name, model)
    if fault:
        others = " or ".join(f"--to {other}" for other in WRITINGS if not _fault(other, model))
        raise UserError(f"{source}: {fault}; use {others or '--decoder without'}")


def _fault(name: str, model: Model) -> str:
    """What of a model the form of this name cannot hold, in words; empty where it holds all."""
    writing, title = WRITINGS[name], FORMS[name].title
    if isinstance(model, MaskedAutoencoder) and writing.decoder == "never":
        return f"has a decoder, for which {title} has no place"
    if isinstance(model, MaskedAutoencoder) and model.decoder.token_width:
        return "its decoder predicts the tokens of a teacher, and not pixels"
    channels = encoder_of(model).spec.channels
    if writing.rgb and channels != 3:
        return f"its images have {channels} channels, and those of {title} three"
    square = isinstance(encoder_of(model).spec.image_size, int)
    if isinstance(model, MaskedAutoencoder) and writing.square_decoder and not square:
        return f"its images are not square, as those of a decoder of {title} are"
    if isinstance(model, Classifier) and not writing.head:
        return f"has the head of a classifier, for which {title} has no place"
    if writing.peculiar is not None:
        lacking = [words for words in peculiarities(encoder_of(model)) if words not in writing.peculiar]
        if lacking:
            return f"has {' and '.join(lacking)}, which {title} has not"
    epsilons = norm_epsilons(model)
    shown = " and ".join(f"{eps:g}" for eps in sorted(epsilons))
    if writing.norm_eps == "one" and len(epsilons) > 1:
        return f"its layer norms have epsilons {shown}, {title} but one"
    named = writing.norm_eps == "named" and "architecture" in getattr(encoder_of(model).vit, "pretrained_cfg", {})
    if writing.norm_eps in ("usual", "named") and epsilons != {NORM_EPS} and not named:
        return f"its layer norms have epsilon {shown}, those of {title} {NORM_EPS:g}"
    return ""


def write_form(name: str, subject: Subject, folder: Path) -> Mapping[str, Any]:
    """Write a model into an empty folder; what weights it has, by their digest, and what else is worth recording.

    UserError where it does not read again, as with weights that are no numbers.
    """
    facts = WRITINGS[name].write(subject, folder)
    reading = FORMS[name].reading
    if reading is not None:
        _compare(subject, folder, reading)
    return {"weights": checkpoint.digest(subject.model), **facts}


def _compare(subject: Subject, folder: Path, reading: Reading) -> None:
    """Hold what was written against the model: its weights, and all that weights do not show."""
    try:
        with _silence():
            again = _read_again(subject.model, folder, reading)
    except UserError as error:
        reason = str(error).rpartition(f"{PART}/")[2].partition(": ")[2] or str(error)  # that place is gone at once
        raise UserError(f"{subject.source}: its export would not be readable: {reason}") from error
    read, wrote = checkpoint.digest(again), checkpoint.digest(subject.model)
    assert read == wrote, f"what was written reads as {read}, not {wrote}"
    for found, wanted in zip(_unseen(again), _unseen(subject.model), strict=True):
        assert found == wanted, f"what was written reads as {found}, not {wanted}"


def _read_again(like: Model, folder: Path, reading: Reading) -> Model:
    """What the folder holds, of the kind of `like`."""
    if isinstance(like, MaskedAutoencoder):
        return load_mae(folder)
    if not isinstance(like, Classifier):
        return load_encoder(folder)
    if reading.to_head is None:
        return checkpoint.read_classifier(folder)[0]
    classifier = Classifier(load_encoder(folder), like.num_classes, "cls")
    head = reading.to_head(load_file(folder / checkpoint.WEIGHTS))
    load_strictly(classifier.vit, classifier.vit.state_dict() | head)
    return classifier


def _unseen(model: Model) -> tuple[Any, ...]:
    """What a model computes by beside its weights: sizes, heads and colours, epsilons; decoder and target; pooling."""
    every = (encoder_of(model).spec, norm_epsilons(model), pooling_of(model))
    return (*every, model.decoder, model.norm_pix_loss) if isinstance(model, MaskedAutoencoder) else every


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is logged of files that lie beside their place only for a moment."""
    before, _LOG.disabled = _LOG.disabled, True
    try:
        yield
    finally:
        _LOG.disabled = before
