"""Parts that an encoder finds without any learning, held against true ones, beside grids that see no image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.manifest import ImageSet
from semmae.evaluation.parts import Truth, measure_encoder, measure_grids
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Measured, Protocol
from semmae.models.vit import Encoder


class TrueParts(NamedTuple):
    """Images, and what is known of their parts."""

    images: ImageSet
    truth: Truth


@dataclass(frozen=True)
class Parts(Protocol[TrueParts]):
    """NMI and ARI of attention heads, of clusters of tokens, and of fixed grids."""

    image_size: int
    labels: int = 7  # as `semmae parts` has them: six parts and the background
    grid: int = 28
    batch_size: int = 128
    workers: int = 2
    seed: int = 0

    def run(self, encoder: Encoder, data: TrueParts, out: Path, name: str = OWN) -> Measured:
        found, _ = measure_encoder(
            encoder, data.images, data.truth, labels=self.labels, grid=self.grid, size=self.image_size,
            batch_size=self.batch_size, workers=self.workers, seed=self.seed,
        )  # fmt: skip
        found |= measure_grids(data.truth, labels=self.labels, grid=self.grid)
        return Measured(
            {f"{method}_{each}": scores[each] for method, scores in found.items() for each in ("nmi", "ari")}
        )

    def describe(self, data: TrueParts) -> dict[str, Any]:
        return data.truth.protocol | {"labels": self.labels, "grid": self.grid}
