"""Recipes of `semmae parts`."""

from typing import Any


def semmae_published() -> dict[str, Any]:
    """SemMAE as published: reconstruction and diversity, no agreement of views.

    Source: section 3.1 of the paper (arXiv 2206.10207), which gives no part quality. Rates and weights are ours
    here too, for the paper tells none. What agreement changes is measured in docs/parts-measured.md.
    """
    return {"agreement": 0.0}
