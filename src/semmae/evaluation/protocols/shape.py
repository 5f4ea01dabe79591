"""What every protocol is: how an encoder is measured, as a value; and the one way in which all are gone through."""

import copy
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from semmae.data.manifest import ImageSet
from semmae.data.segmentation import LabelledImages
from semmae.errors import UserError, reason
from semmae.evaluation.protocols import OWN, UNTRAINED
from semmae.models.fresh import fresh_like
from semmae.models.head import LinearHead
from semmae.models.vit import Encoder


class Data(typing.Protocol):
    """What an encoder is measured by."""

    @property
    def sets(self) -> list[ImageSet]:
        """The images, those to learn from first."""
        ...


DataT = TypeVar("DataT", bound=Data)
Figures = dict[str, Any]


@dataclass(frozen=True)
class Classified:
    """What every image was taken for: numbers of classes, int64 (N,), beside the true ones."""

    classes: Sequence[str]
    chosen: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Segmented:
    """What pixels were taken for, of a few images: uint8 (H, W) by row of `images`."""

    images: LabelledImages
    predictions: Mapping[int, Tensor]


@dataclass(frozen=True)
class Measured:
    """Figures by name, what lies behind them for tables and pictures, and a head where one was trained.

    `length`: for how many epochs or steps a network was trained for it, and of how many planned ones, where a
    callback has ended that early.
    """

    figures: Figures
    details: Classified | Segmented | None = None
    head: LinearHead | None = None
    length: Mapping[str, float] = field(default_factory=dict)


class Protocol(ABC, Generic[DataT]):
    """A way to measure an encoder: a frozen dataclass of all that may be chosen."""

    name: ClassVar[str]  # of its row in `PROTOCOLS`

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse an encoder that cannot be measured so; called before data are read."""

    def prepare(self, encoder: Encoder) -> None:
        """Change the encoder to what is trained on, its image size above all; called before anything is written."""

    def check(self, data: DataT) -> None:
        """Refuse data that cannot be measured so; called before anything is written."""

    @abstractmethod
    def run(self, encoder: Encoder, data: DataT, out: Path, name: str = OWN) -> Measured | None:
        """Measure; what is trained on the way is left in `out`, and gone on with there.

        None in processes other than the first one. `name` says whether it is the encoder, or one with new weights.
        """

    @abstractmethod
    def describe(self, data: DataT) -> dict[str, Any]:
        """How it is measured, for results.json: whatever one must know to measure it again."""


def measure(
    protocol: Protocol[DataT], encoder: Encoder, data: DataT, out: Path, *, untrained_seed: int | None
) -> dict[str, Measured]:
    """The encoder measured in `out` and, with `untrained_seed`, the same with new weights of this seed below it.

    The encoder was prepared. Empty in processes other than the first one.
    """
    trainings = {OWN: (protocol, encoder, out)}
    if untrained_seed is not None:
        trainings[UNTRAINED] = (_copied(protocol), fresh_like(encoder, untrained_seed), out / UNTRAINED)
    found = {name: each.run(network, data, place, name) for name, (each, network, place) in trainings.items()}
    return {name: measured for name, measured in found.items() if measured is not None}


def _copied(protocol: Protocol[DataT]) -> Protocol[DataT]:
    """A protocol whose callbacks know nothing yet: what they see of one training counts for no other."""
    try:
        return copy.deepcopy(protocol)
    except Exception as error:  # of the user's own classes
        raise UserError(
            f"callbacks: cannot be copied for --untrained ({reason(error)}); leave one of them out"
        ) from error
