"""What an export wrote, read again and compared with the model bit by bit."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from semmae.errors import UserError
from semmae.files import PART
from semmae.formats import folders as checkpoint
from semmae.models.classifier import Classifier
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.models.weights import norm_epsilons

Model = Encoder | MaskedAutoencoder | Classifier

_LOG = logging.getLogger("semmae")


def encoder_of(model: Model) -> Encoder:
    """The model itself, or the encoder below its decoder or head."""
    return model if isinstance(model, Encoder) else model.encoder


def compared(source: str, model: Model, load: Callable[[], Model]) -> Mapping[str, Any]:
    """The digest of the weights, found again in what was written; and so is all that weights do not show.

    Args:
        source: where the model comes from, as the user gave it, for the messages.
        model: what was written.
        load: reads it again.

    Raises:
        UserError: it does not read again, such as weights that are no numbers.
    """
    try:
        with _silence():
            again = load()
    except UserError as error:
        reason = str(error).rpartition(f"{PART}/")[2].partition(": ")[2] or str(error)  # that place is gone at once
        raise UserError(f"{source}: its export would not be readable: {reason}") from error
    read, wrote = checkpoint.digest(again), checkpoint.digest(model)
    assert read == wrote, f"what was written reads as {read}, not {wrote}"
    for found, wanted in zip(_unseen(again), _unseen(model), strict=True):
        assert found == wanted, f"what was written reads as {found}, not {wanted}"
    return {"weights": wrote}


def _unseen(model: Model) -> tuple[Any, ...]:
    """What a model computes by beside its weights: sizes, heads and colours, epsilons; decoder and target; pooling."""
    sizes = (encoder_of(model).spec, norm_epsilons(model))
    if isinstance(model, Classifier):
        return (*sizes, model.pooling)
    return (*sizes, model.decoder, model.norm_pix_loss) if isinstance(model, MaskedAutoencoder) else sizes


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is said of files that lie beside their place only for a moment."""
    before, _LOG.disabled = _LOG.disabled, True
    try:
        yield
    finally:
        _LOG.disabled = before
