"""Parts that an encoder finds without any learning, held against true ones, beside grids that see no image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.manifest import ImageSet
from semmae.evaluation.features import View
from semmae.evaluation.parts import Truth, measure_encoder, measure_grids
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Measured, Protocol
from semmae.models.vit import Encoder
from semmae.options.parts import PartsOptions
from semmae.options.shared import SeedOptions

# As `semmae parts` has them by default, which learns a background besides.
LABELS, GRID = PartsOptions.num_parts + 1, PartsOptions.grid


class TrueParts(NamedTuple):
    """Images, and what is known of their parts."""

    images: ImageSet
    truth: Truth

    @property
    def sets(self) -> list[ImageSet]:
        return [self.images]


@dataclass(frozen=True)
class Parts(SeedOptions, Protocol[TrueParts]):
    """NMI and ARI of attention heads, of clusters of tokens, and of fixed grids."""

    name = "parts"

    view: View

    def run(self, encoder: Encoder, data: TrueParts, out: Path, name: str = OWN) -> Measured:
        view = self.view
        found, _ = measure_encoder(
            encoder, data.images, data.truth, labels=LABELS, grid=GRID, size=view.image_size,
            batch_size=view.batch_size, workers=view.num_workers, seed=self.seed,
        )  # fmt: skip
        found |= measure_grids(data.truth, labels=LABELS, grid=GRID)
        return Measured(
            {f"{method}_{each}": scores[each] for method, scores in found.items() for each in ("nmi", "ari")}
        )

    def describe(self, data: TrueParts) -> dict[str, Any]:
        return data.truth.protocol | {"labels": LABELS, "grid": GRID}
