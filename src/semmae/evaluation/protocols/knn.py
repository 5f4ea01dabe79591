"""k-NN: what an image's nearest neighbours say of its class, without training anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.classes import TrainVal
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.features import Embedding, View, device_of, image_features
from semmae.evaluation.knn import knn_ranks
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Figures, Measured, Protocol
from semmae.models.vit import Encoder
from semmae.options.knn import KnnRecipe


@dataclass(frozen=True)
class Knn(Protocol[TrainVal]):
    """What val's neighbours in train say of its classes, or every image's among all others."""

    name = "knn"

    view: View
    recipe: KnnRecipe = KnnRecipe()
    embed: Embedding = image_features

    def run(self, encoder: Encoder, data: TrainVal, out: Path, name: str = OWN) -> Measured:
        train = self.embed(encoder, data.train, self.view)
        val = train if data.leaves_one_out else self.embed(encoder, data.val, self.view)
        return Measured(self.figures(train, val, data, device_of(encoder)))

    def figures(self, train: Tensor, val: Tensor, data: TrainVal, device: torch.device) -> Figures:
        """Of features (N, C) that vote and (M, C) that ask, whatever they come from; searched on `device`."""
        ranks = knn_ranks(
            train.to(device),
            data.train_targets,
            val,
            data.val_targets,
            num_classes=len(data.classes),
            k=self.recipe.k,
            temperature=self.recipe.temperature,
            leave_one_out=data.leaves_one_out,
        )
        return class_figures(ranks, data.val_targets, len(data.classes))

    def describe(self, data: TrainVal) -> dict[str, Any]:
        return {
            "method": "k-NN, cosine similarity",
            "k": self.recipe.k,
            "temperature": self.recipe.temperature,
            **self.view.describe(),
            "interval": "95 %, Wilson",
            "split": data.split,
        }
