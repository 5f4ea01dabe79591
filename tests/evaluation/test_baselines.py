"""Baselines: slow loops, clusters that are known, and the encoder's own attention and tokens."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional

from semmae.data.loaders import normalise
from semmae.evaluation import baselines
from semmae.evaluation.baselines import (
    baseline_labels,
    cluster_labels,
    fit_clusters,
    head_labels,
    sample_tokens,
)
from semmae.models.vit import Encoder, EncoderSpec

SPEC = EncoderSpec(image_size=32, patch_size=8, width=24, depth=2, num_heads=3)


def some_attention(batch: int = 2, heads: int = 3, side: int = 4) -> Tensor:
    """As an encoder gives it: what is left of 1 in a row goes to the class token."""
    logits = torch.randn(batch, heads, side * side + 1, generator=torch.Generator().manual_seed(0))
    return logits.mul(2).softmax(-1)[:, :, 1:]


def an_encoder() -> Encoder:
    torch.manual_seed(3)
    return Encoder(SPEC)


def batches(count: int, size: int) -> list[dict[str, Tensor]]:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [{"image": chunk, "row": torch.arange(len(chunk))} for chunk in images.split(size)]


@pytest.mark.parametrize("background", [False, True])
def test_heads_are_as_in_a_slow_loop(background: bool) -> None:
    attention, grid = some_attention(), 4
    expected = np.zeros((2, grid, grid), np.uint8)
    for image in range(2):
        shares = [row / row.sum() for row in attention[image].numpy()]
        for patch in range(grid * grid):
            looks = [share[patch] for share in shares]
            label = int(np.argmax(looks))
            if background:
                label = 0 if np.mean(looks) < 1 / grid**2 else label + 1
            expected[image, patch // grid, patch % grid] = label
    assert len(np.unique(expected)) == (4 if background else 3)
    np.testing.assert_array_equal(head_labels(attention, grid, background=background).numpy(), expected)


def test_heads_lose_nothing_by_looking_at_the_class_token() -> None:
    attention = some_attention()
    weights = torch.tensor([0.1, 1.0, 0.5])[None, :, None]
    for background in (False, True):
        labels = head_labels(attention, 7, background=background)
        assert torch.equal(head_labels(attention * weights, 7, background=background), labels)


def test_heads_are_upsampled_before_the_argmax() -> None:
    # Along the upper edge head 0 falls from 0.6 to 0.2 and head 1 rises from 0.2 to 0.3, between the centres
    # of the patches at 8 and 24: they meet at 8 + 0.8 * 16 = 20.8, not halfway.
    attention = torch.tensor([[[0.6, 0.2, 0.1, 0.1], [0.2, 0.3, 0.25, 0.25]]])
    upper = head_labels(attention, 32, background=False)[0, 0]
    assert upper.tolist() == [0] * 21 + [1] * 11


def test_clusters_that_lie_far_apart_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(5)
    truth = torch.randint(0, 5, (3, 16), generator=generator)
    patches = centres[truth] + torch.randn(3, 16, 5, generator=generator)
    found = fit_clusters(patches.flatten(0, 1), 5, seed=0)
    distances = torch.cdist(found, centres)
    assert sorted(distances.argmin(1).tolist()) == list(range(5)) and distances.min(1).values.max() < 1.5
    labels = cluster_labels(patches, found, 4)
    assert adjusted_rand_score(truth.flatten(), labels.flatten()) == 1


def test_clusters_are_the_same_for_a_seed_whatever_ran_before() -> None:
    tokens = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    first = fit_clusters(tokens, 7, seed=4)
    np.random.random(5)
    torch.rand(5)
    assert torch.equal(fit_clusters(tokens, 7, seed=4), first)
    assert not torch.equal(fit_clusters(tokens, 7, seed=5), first)


def test_there_are_no_more_clusters_than_tokens() -> None:
    assert sorted(fit_clusters(torch.tensor([[0.0], [1.0]]), 7, seed=0).flatten().tolist()) == [0, 1]


def test_a_label_is_the_centre_nearest_to_the_interpolated_token() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, centres = torch.randn(2, 16, 8, generator=generator), torch.randn(6, 8, generator=generator)
    tokens = functional.interpolate(
        patches.transpose(1, 2).unflatten(2, (4, 4)), (9, 9), mode="bilinear", align_corners=False
    )
    nearest = torch.cdist(tokens.permute(0, 2, 3, 1).flatten(0, 2), centres).argmin(1).reshape(2, 9, 9)
    assert torch.equal(cluster_labels(patches, centres, 9).long(), nearest)


def test_order_of_centres_only_renames_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, centres = torch.randn(2, 16, 8, generator=generator), torch.randn(6, 8, generator=generator)
    order = torch.randperm(6, generator=generator)
    assert torch.equal(order[cluster_labels(patches, centres[order], 9).long()], cluster_labels(patches, centres, 9))


def test_sampled_tokens_are_the_learners_and_equally_many_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = an_encoder()
    monkeypatch.setattr(baselines, "FIT_TOKENS", 15)
    found = sample_tokens(encoder, batches(5, 2), images=5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pixels = normalise(torch.cat([batch["image"] for batch in batches(5, 2)]), SPEC.mean, SPEC.std)
        patches = encoder.last_block_features(pixels).patches
    same = torch.cdist(found["kmeans"], patches.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist") < 1e-5
    places = same.nonzero()[:, 1]
    assert torch.allclose(
        found["kmeans_centred"], (patches - patches.mean(1, keepdim=True)).flatten(0, 1)[places], atol=1e-5
    )
    assert len(places) == len(places.unique()) == 15
    assert (places // 16).bincount().tolist() == [3] * 5


def test_labels_of_an_encoder_are_those_of_its_attention_and_tokens() -> None:
    encoder = an_encoder().train()
    own, less = torch.randn(2, 4, SPEC.width, generator=torch.Generator().manual_seed(2))
    centres = {"kmeans": own, "kmeans_centred": less}
    labels = baseline_labels(encoder, batches(5, 2), centres, 8, images=5)
    assert encoder.training, "left as it came"
    with torch.inference_mode():
        encoder.eval()
        pixels = normalise(torch.cat([batch["image"] for batch in batches(5, 2)]), SPEC.mean, SPEC.std)
        attention, patches = encoder.attention(pixels), encoder.last_block_features(pixels).patches
    expected = {
        "heads": head_labels(attention, 8, background=False),
        "heads_background": head_labels(attention, 8, background=True),
        "kmeans": cluster_labels(patches, own, 8),
        "kmeans_centred": cluster_labels(patches - patches.mean(1, keepdim=True), less, 8),
    }
    assert labels.keys() == expected.keys()
    for name, grids in expected.items():
        assert labels[name].dtype == np.uint8
        # Sums of other batches are rounded otherwise: a tie may fall the other way.
        assert (labels[name] == grids.numpy()).mean() > 0.99, name
        assert len(np.unique(grids)) > 1
