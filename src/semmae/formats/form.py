"""What a form of checkpoint is: how it is recognised and read, how it is written, and what it has a place for.

A form is one file here, which ends in its row `FORM`, and that row's place in `table.FORMS`. Whoever opens, exports,
uploads or describes checkpoints walks the table and names no form.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from semmae.formats.beside import Unseen, colours_beside
from semmae.models.classifier import Classifier
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.options.shared import Pooling

State = Mapping[str, Tensor]
Renamed = tuple[dict[str, Tensor], list[str]]  # tensors under other names, and the names of those dropped
Model = Encoder | MaskedAutoencoder | Classifier


def renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """A tensor's name in another form, by patterns and what takes the place of the first match of each."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def encoder_of(model: Model) -> Encoder:
    """The model itself, or the encoder below its decoder or head."""
    return model if isinstance(model, Encoder) else model.encoder


def pooling_of(model: Model) -> Pooling:
    """Which vector fits the encoder: of a classifier the one that it looks at."""
    return model.encoder.pooling if isinstance(model, MaskedAutoencoder) else model.pooling


@dataclass(frozen=True)
class Subject:
    """What is exported, and what of it no tensor shows."""

    source: str  # as the user gave it
    model: Model
    ratio: float  # share of the patches that was hidden from it
    classes: Sequence[str] = ()  # of a classifier
    crop_pct: float = 1.0  # share of the short side that it was measured on


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How checkpoints of a form are read; tensors are those that `choose` takes out of a file."""

    recognise: Callable[[State], bool]  # by names, of tensors that are no other form's
    to_encoder: Callable[[State], Renamed]  # into timm's names, heads being left out already (`choose.without_heads`)
    to_autoencoder: Callable[[State], Renamed] | None = None  # into the names of the MAE release, decoder and all
    to_head: Callable[[State], dict[str, Tensor]] | None = None  # a classifier's head, in timm's names
    num_heads: Callable[[State], int | None] | None = None  # where the project has others than usual at that width
    unseen: Callable[[Path, State], Unseen] = colours_beside  # colours and epsilon of the weights in that file
    norm_pix_loss: bool | None = None  # what an autoencoder does of which nothing says it; None: unknown
    # In a folder: whether its config.json is of this form, what that calls the model, the names of its weights, and
    # where the library that wrote it builds the encoder itself, that.
    describes: Callable[[Mapping[str, Any]], bool] | None = None
    model_name: Callable[[Mapping[str, Any]], object] | None = None
    weights: tuple[str, ...] = ()
    open_folder: Callable[[Path], Encoder] | None = None


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a form is written, and what it holds."""

    write: Callable[[Subject, Path], Mapping[str, Any]]  # into an empty folder; returns what is worth recording
    files: tuple[str, ...]  # that it may leave there
    library: str  # that loads it, as the hub calls it
    command: Callable[[Path, bool, bool], str]  # loads the folder in a shell; whether there is a decoder, a head
    use: Callable[[str, Model, bool], Sequence[str]]  # lines of Python: place (a folder, OWNER/NAME), whether classes
    decoder: Literal["always", "asked", "never"]  # whether it goes along where there is one
    head: bool  # whether there is a place for that of a classifier
    rgb: bool = False  # whether what loads it prepares images of three channels alone
    square_decoder: bool = False  # whether what loads it takes images of a masked autoencoder to be square
    peculiar: Collection[str] | None  # which of `peculiarities` it can hold; None: all
    norm_eps: Literal["any", "one", "usual", "named"]  # one for all norms; 1e-6; that too, or what a name of timm says
    missing: Callable[[], list[str]] = list  # libraries that writing needs and are not installed


@dataclass(frozen=True, kw_only=True)
class Form:
    """A row of `table.FORMS`."""

    name: str
    title: str  # what holds it, in words
    projects: tuple[str, ...] = ()  # whose checkpoints are read
    reading: Reading | None = None  # None: it is written only
    writing: Writing | None = None  # None: it is read only
