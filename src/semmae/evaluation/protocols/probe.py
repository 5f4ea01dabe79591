"""The fast linear probe: heads on features of one centre crop an image, computed once, the best of several rates."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semmae.data.classes import TrainVal
from semmae.data.manifest import ImageSet
from semmae.data.splits import held_out
from semmae.errors import UserError
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.classifying import classify_features
from semmae.evaluation.features import Embedding, View, device_of, image_features
from semmae.evaluation.linear import BATCH, RATES, TrainedHead, probe_features
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Classified, Measured, Protocol
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.vit import Encoder
from semmae.options.probe import ProbeRecipe

_log = logging.getLogger("semmae")


@dataclass(frozen=True)
class Probe(Protocol[TrainVal]):
    """A linear head on features that are computed once and kept in memory."""

    name = "probe"

    view: View
    epochs: int
    recipe: ProbeRecipe = ProbeRecipe()
    embed: Embedding = image_features

    def check(self, data: TrainVal) -> None:
        if self.recipe.lr is None and not choice_rows(data.train, self.recipe):
            raise UserError(
                f"{data.name}: no class has two training images, so no learning rate can be chosen; give --lr"
            )

    def run(self, encoder: Encoder, data: TrainVal, out: Path, name: str = OWN) -> Measured:
        trained = self.train(encoder, data)
        measured = measure_head(trained.head, encoder, data, self.view, self.embed)
        tried = {"rate": trained.rate, "sweep": [list(pair) for pair in trained.sweep]}
        return Measured(measured.figures | tried, measured.details, trained.head)

    def train(self, encoder: Encoder, data: TrainVal) -> TrainedHead:
        """The head, its rate chosen on images of `data.train`."""
        features, targets = self.embed(encoder, data.train, self.view), data.train_targets
        chosen_on = [] if self.recipe.lr is not None else choice_rows(data.train, self.recipe)
        if self.recipe.flip:
            mirrored = self.embed(encoder, data.train, self.view, flip=True)
            features, targets = torch.cat([features, mirrored]), targets.repeat(2)
            # Or the choice would see its own images.
            chosen_on = [*chosen_on, *(row + len(data.train) for row in chosen_on)]
        trained = probe_features(
            features,
            targets,
            HeadSpec(encoder.width, tuple(data.classes), self.view.pooling),
            chosen_on,
            rates=self.rates,
            epochs=self.epochs,
            seed=self.recipe.seed,
            device=device_of(encoder),
        )
        if self.recipe.lr is None and trained.rate in (RATES[0], RATES[-1]):
            end = "lowest" if trained.rate == RATES[0] else "highest"
            _log.info(
                "the rate chosen, %s, is the %s tried: one beyond may be better (semmae probe --lr)", trained.rate, end
            )
        return trained

    @property
    def rates(self) -> list[float]:
        """The learning rates to choose from."""
        return list(RATES) if self.recipe.lr is None else [self.recipe.lr]

    def describe(self, data: TrainVal) -> dict[str, Any]:
        given = self.recipe.lr is not None
        best = "" if given else ", best of several learning rates"
        share = f"{self.recipe.choice_share:.0%} of each class of the training images".replace("%", " %")
        return {
            "method": f"linear probe on features computed once: standardised, linear, SGD{best}",
            "epochs": self.epochs,
            "batch_size": BATCH,
            "rates": self.rates,
            "rate_chosen_on": None if given else share,
            "flip": self.recipe.flip,
            **self.view.describe(),
            "interval": "95 %, Wilson",
            "split": data.split,
        }


def choice_rows(train: ImageSet, recipe: ProbeRecipe) -> list[int]:
    """The training images on which the rate is chosen: a share of each class; of a class of a single image nothing."""
    return held_out(train.labels or (), recipe.choice_share, recipe.seed)[1]


def measure_head(
    head: LinearHead, encoder: Encoder, data: TrainVal, view: View, embed: Embedding = image_features
) -> Measured:
    """How well a head classifies the images to measure on."""
    found = classify_features(head.cpu().eval(), embed(encoder, data.val, view), data.val_targets)
    figures = class_figures(found.ranks, data.val_targets, len(data.classes))
    return Measured(figures, Classified(data.classes, found.chosen, data.val_targets), head)
