"""The objective of stage 1: what the part learner is trained by. Plain PyTorch, for a loop of one's own too.

L = L_r + λ_d·L_d is SemMAE's. To it comes agreement, ours: two views of an image, cropped, flipped and
recoloured apart, must give the same label to the same place, while all labels stay in use. It adds about
a point of NMI on drawn creatures (docs/parts-measured.md). Concentration and total variation are there to be tried,
off by default.
"""

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from semmae.data.crop import matching_places
from semmae.losses import (
    concentration_loss,
    diversity_loss,
    feature_loss,
    in_float32,
    mutual_information_loss,
    reconstruction_loss,
    total_variation_loss,
)
from semmae.models.parts import PartLearner
from semmae.models.vit import Features
from semmae.options.parts import PartsRecipe, Reconstruction
from semmae.options.values import check_choice


def views_of(recipe: PartsRecipe) -> int:
    """Crops of each image that a step looks at."""
    return 2 if recipe.agreement else 1


def parts_losses(
    learner: PartLearner, recipe: PartsRecipe, images: Tensor, features: list[Features], crops: Tensor
) -> dict[str, Tensor]:
    """Every term of the objective that has a weight, and their weighted sum, "loss".

    `images` are the normalised first views (B, 3, S, S), which are rebuilt; `features` the `last_block_features` of
    each view; `crops` where the views lie, as `Crop.numbers` (B, views, 5).
    """
    check_choice("reconstruction", recipe.reconstruction, get_args(Reconstruction))
    output = learner(features[0])
    if learner.spec.target == "features":
        rebuilt = feature_loss(output.reconstruction, features[0].patches)
    else:
        rebuilt = reconstruction_loss(output.reconstruction, images, "l1" if recipe.reconstruction == "l1" else "mse")
    terms = {"reconstruction": (1.0, rebuilt), "diversity": (recipe.diversity, diversity_loss(output.maps))}
    if recipe.agreement:
        pair = (output.maps, learner.part_maps(features[1]))
        terms["agreement"] = (recipe.agreement, agreement_loss(pair, crops))
    if recipe.concentration:
        terms["concentration"] = (recipe.concentration, concentration_loss(output.maps))
    if recipe.total_variation:
        terms["total_variation"] = (recipe.total_variation, total_variation_loss(output.maps))
    total = torch.stack([weight * term for weight, term in terms.values()]).sum()
    return {"loss": total, **{f"loss_{name}": term for name, (_, term) in terms.items()}}


@in_float32
def agreement_loss(maps: tuple[Tensor, Tensor], crops: Tensor) -> Tensor:
    """`mutual_information_loss` of the maps (B, M, g, g) of two views, where they show the same places."""
    places = matching_places(crops[:, 0], crops[:, 1], maps[0].shape[-1])
    first, second = (
        functional.grid_sample(own, where, padding_mode="border", align_corners=False)
        for own, where in zip(maps, places, strict=True)
    )
    # Maps that are shares of the patches compete for a place here too: labels are what is compared.
    return mutual_information_loss(first / first.sum(1, keepdim=True), second / second.sum(1, keepdim=True))
