"""Stage 1: the numbers of a run of a few steps."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from torch.nn import functional

from semmae.data.crop import Crop
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Features
from semmae.options.parts import PartsRecipe
from semmae.train.part_losses import agreement_loss, parts_losses

# A fixed seed on a CPU. A refactor leaves them as they are; an intended change says why beside the new ones.
# Agreement, its second view and its changes of colour came after the first release of these numbers.
GOLDEN = [0.84507442, 1.05692911, 0.85250914, 0.70411134, 0.4444811]


def test_the_first_losses_are_golden(whole_run: Path) -> None:
    tiny.assert_golden(whole_run / "parts", GOLDEN)


_COLUMNS = torch.arange(4).repeat_interleave(2)[None, :].expand(8, -1)
BANDS = (_COLUMNS[:, :4], _COLUMNS[:, 2:6].flip(1))  # seen through the left half, and mirrored through the middle


def crops(*pairs: tuple[Crop, Crop]) -> torch.Tensor:
    return torch.tensor([[first.numbers, second.numbers] for first, second in pairs])


def test_maps_that_follow_their_crops_agree_and_others_do_not() -> None:
    """Four bands of columns, painted on an image, seen as it is and mirrored; then mirrored, and not."""
    painted = torch.arange(4).repeat_interleave(2)[None, :].expand(8, -1)
    bands = functional.one_hot(painted, 4).permute(2, 0, 1)[None].float()
    plain, mirrored = Crop(0, 0, 1, 1, False), Crop(0, 0, 1, 1, True)
    assert agreement_loss((bands, bands.flip(3)), crops((plain, mirrored))).item() == pytest.approx(
        -math.log(4), abs=0.02
    )
    assert agreement_loss((bands, bands.transpose(2, 3)), crops((plain, plain))).item() > -0.1


def test_crops_that_share_one_label_teach_nothing() -> None:
    """The left half and the middle half of the bands share one band only: sure and equal, but no information."""
    left, middle = (functional.one_hot(labels, 4).permute(2, 0, 1)[None].float() for labels in BANDS)
    maps = [functional.interpolate(half, (8, 8), mode="nearest") for half in (left, middle)]
    loss = agreement_loss((maps[0], maps[1]), crops((Crop(0, 0, 1, 0.5, False), Crop(0, 0.25, 1, 0.5, True))))
    assert loss.item() == pytest.approx(0, abs=0.02)


def test_shares_of_patches_agree_as_labels_do() -> None:
    """Maps that are not normalised over the parts are compared as if they were."""
    maps = torch.rand(2, 5, 6, 6) + 0.01
    same = crops(*[(Crop(0, 0, 1, 1, False), Crop(0, 0, 1, 1, False))] * 2)
    shares = maps / maps.sum(1, keepdim=True)
    assert agreement_loss((3 * maps, 3 * maps), same).item() == pytest.approx(
        agreement_loss((shares, shares), same).item(), abs=1e-6
    )


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    learner = PartLearner(PartsSpec(width=24, patch_size=4, num_parts=3, head_dim=8, decoder_width=32))
    features = [Features(torch.randn(2, 24), torch.randn(2, 16, 24)) for _ in range(2)]
    same = crops(*[(Crop(0, 0, 1, 1, False), Crop(0, 0, 1, 1, True))] * 2)
    recipe = PartsRecipe(diversity=0.5, agreement=2.0, concentration=3.0, total_variation=0.25)
    losses = parts_losses(learner, recipe, torch.randn(2, 3, 16, 16), features, same)
    weights = {"reconstruction": 1.0, "diversity": 0.5, "agreement": 2.0, "concentration": 3.0, "total_variation": 0.25}
    assert losses.keys() == {"loss", *(f"loss_{name}" for name in weights)}
    total = sum(weight * losses[f"loss_{name}"].item() for name, weight in weights.items())
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
