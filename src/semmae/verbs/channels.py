"""Where no image has the channels that are asked for: what to do, by who asks, an encoder or --channels."""

from collections.abc import Iterator
from contextlib import contextmanager

from semmae.data.manifest import OtherChannels
from semmae.errors import UserError
from semmae.models.vit import Encoder
from semmae.objects import described


@contextmanager
def seen_by(encoder: Encoder, given: object) -> Iterator[None]:
    """Images are opened inside for this encoder, which the user `given` so: a name, a path, or itself."""
    try:
        yield
    except OtherChannels as error:
        raise UserError(
            f"{error.fault}; the encoder {described(given)} sees {encoder.spec.channels} channels: give such images, "
            "or another encoder"
        ) from error


@contextmanager
def as_asked() -> Iterator[None]:
    """Images are opened inside in the channels of --channels."""
    try:
        yield
    except OtherChannels as error:
        raise UserError(f"{error.fault}; use --channels {error.found}, or give other images") from error
