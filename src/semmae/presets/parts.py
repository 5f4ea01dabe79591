"""Recipes of `semmae parts`."""

from typing import Any


def semmae_published() -> dict[str, Any]:
    """SemMAE as published: pixel reconstruction and diversity, one view.

    Source: section 3.1 of the paper (arXiv 2206.10207): L = L_r + λ_d·L_d, six parts that start as the heads of iBOT's
    ViT-S/16. It gives no weight, rate or length, and no part quality: λ_d, the rate, and the 64 images of a step that
    the rate was found with are ours. What agreement of views changes is measured in docs/parts-measured.md.

    Not taken over, as nothing is published of it: how logits are scaled (here centred image by image), where the
    background comes from (here a logit from the mean of the parts'), and what the decoder's style is read from (here
    the last block's input).
    """
    return {
        "num_parts": 6, "background": True, "start": "heads", "batch_size": 64, "reconstruction": "mse",
        "diversity": 0.1, "agreement": 0.0, "concentration": 0.0, "total_variation": 0.0, "hue": 0.0,
    }  # fmt: skip
