"""Baselines: slow loops, clusters that are known, and the encoder's own attention and tokens."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from semmae.data.loaders import normalise
from semmae.evaluation import baselines
from semmae.evaluation.baselines import baseline_labels, cluster_labels, fit_baselines, head_labels
from semmae.filters import guides
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, EncoderSpec, TokenViews

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


def of_all(encoder: Encoder, count: int, size: int) -> tuple[Tensor, TokenViews, Tensor]:
    """Images, the views of their tokens and their attention, at once."""
    images = torch.cat([batch["image"] for batch in batches(count, size)])
    with torch.inference_mode():
        views, _, attention = encoder.eval().token_views(normalise(images, SPEC.mean, SPEC.std), attention=True)
    assert attention is not None
    return images, views, attention


def test_tokens_that_are_clustered_are_the_encoders_and_equally_many_of_each_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, given = an_encoder(), []
    monkeypatch.setattr(baselines, "FIT_TOKENS", 15)
    monkeypatch.setattr(baselines, "fit_clusters", lambda tokens, *rest: given.append((tokens, rest)) or tokens[:2])
    clusters = fit_baselines(encoder, batches(5, 2), 4, 7, images=5)
    patches = of_all(encoder, 5, 2)[1].last
    assert list(clusters.centres) == ["kmeans", "kmeans_centred"] and [rest for _, rest in given] == [(4, 7)] * 2
    (own, _), (centred, _) = given
    # They are kept in half precision until all images were seen.
    distances = torch.cdist(own, patches.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
    places = distances.argmin(1)
    assert distances.amin(1).max() < 0.02
    assert torch.allclose(centred, (patches - patches.mean(1, keepdim=True)).flatten(0, 1)[places], atol=5e-3)
    assert len(places) == len(places.unique()) == 15
    assert (places // 16).bincount().tolist() == [3] * 5


def test_clusters_in_two_steps_are_a_learner_that_has_learned_nothing() -> None:
    """The same tokens, the same start: what training adds is all that differs."""
    encoder = an_encoder()
    images, views, _ = of_all(encoder, 6, 2)
    clusters = fit_baselines(encoder, batches(6, 2), 4, 3, images=6)
    learner = PartLearner(PartsSpec.of(encoder, 3))
    learner.fit_reductions(TokenViews(*(view.half() for view in views)))
    learner.start_from_clusters(learner.reduce(TokenViews(*(view.half() for view in views))), 3)

    found = baseline_labels(encoder, batches(6, 2), clusters, 8, images=6)["kmeans_two_steps"]

    with torch.inference_mode():
        expected = learner.labels(learner.reduce(views), guides(images, 8)).numpy()
    assert clusters.two_steps.spec == learner.spec
    assert (found == expected).mean() > 0.98 and len(np.unique(found)) > 2


@pytest.mark.parametrize("labels", [1, 2, 7])
def test_there_are_as_many_labels_in_two_steps_as_asked_for(labels: int) -> None:
    encoder = an_encoder()
    clusters = fit_baselines(encoder, batches(3, 2), labels, 0, images=3)
    assert len(clusters.two_steps.spec.label_names) == max(labels, 2)
    found = baseline_labels(encoder, batches(3, 2), clusters, 8, images=3)["kmeans_two_steps"]
    assert found.max() < max(labels, 2)


def test_labels_of_an_encoder_are_those_of_its_attention_and_tokens() -> None:
    encoder = an_encoder()
    clusters = fit_baselines(encoder, batches(5, 2), 4, 0, images=5)
    encoder.train()
    labels = baseline_labels(encoder, batches(5, 2), clusters, 8, images=5)
    assert encoder.training, "left as it came"
    images, views, attention = of_all(encoder, 5, 2)
    patches, (own, less) = views.last, clusters.centres.values()
    two_steps = clusters.two_steps
    expected = {
        "heads": head_labels(attention, 8, background=False),
        "heads_background": head_labels(attention, 8, background=True),
        "kmeans": cluster_labels(patches, own, 8),
        "kmeans_centred": cluster_labels(patches - patches.mean(1, keepdim=True), less, 8),
        "kmeans_two_steps": two_steps.labels(two_steps.reduce(views), guides(images, 8)),
    }
    assert list(labels) == list(expected)
    for name, grids in expected.items():
        assert labels[name].dtype == np.uint8
        # Sums of other batches are rounded otherwise: a tie may fall the other way.
        assert (labels[name] == grids.numpy()).mean() > 0.99, name
        assert len(np.unique(grids)) > 1


def test_an_image_is_looked_at_once_for_all_baselines() -> None:
    encoder, ran = an_encoder(), []
    clusters = fit_baselines(encoder, batches(5, 2), 4, 0, images=5)
    encoder.vit.blocks[0].register_forward_hook(lambda *_: ran.append(0))
    baseline_labels(encoder, batches(5, 2), clusters, 8, images=5)
    assert len(ran) == 3
