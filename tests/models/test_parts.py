"""The part learner: it finds drawn parts of drawn tokens, whatever lies beside them, and keeps them."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from semmae.filters import refine_maps, upsample_maps
from semmae.models.parts import (
    PartLearner,
    PartsSpec,
    PartTokens,
    Prototypes,
    Reduction,
    border,
    images_to_fit,
    part_names,
)
from semmae.models.vit import Encoder, EncoderSpec, TokenViews
from semmae.options.parts import PartsRecipe
from semmae.train.parts import parts_losses

SIDE, WIDTH, KEYS = 8, 24, 32
TINY = EncoderSpec(image_size=32, patch_size=8, width=24, depth=2, num_heads=3)


class Drawn(NamedTuple):
    """Tokens at full width, and of every patch its part, 0 where there is no object."""

    views: TokenViews
    truth: Tensor  # (N, L)


def drawn(images: int = 12, parts: int = 3, *, missing: bool = False, noise: float = 0.15, side: int = SIDE) -> Drawn:
    """A square in the middle of every image, in columns of parts, each a direction; of its own about the square.

    With `missing`, an image in three has the first part only, where the others would be.
    """
    generator = torch.Generator().manual_seed(parts)
    truth = torch.zeros(images, side, side, dtype=torch.long)
    inner = side // 2
    columns = torch.arange(inner) * parts // inner + 1
    truth[:, side // 4 : side // 4 + inner, side // 4 : side // 4 + inner] = columns
    if missing:
        truth[::3][truth[::3] > 0] = 1
    truth = truth.flatten(1)

    def tokens(width: int, labels: Tensor, count: int) -> Tensor:
        directions = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:count]
        return 3 * directions[labels] + noise * torch.randn(*labels.shape, width, generator=generator) + 1

    return Drawn(
        TokenViews(tokens(WIDTH, (truth > 0).long(), 2), *(tokens(KEYS, truth, parts + 1) for _ in "kv")), truth
    )


def a_learner(parts: int = 3, **changes: object) -> PartLearner:
    return PartLearner(PartsSpec(WIDTH, KEYS, 8, parts, **changes))  # type: ignore[arg-type]


def started(drawing: Drawn, parts: int = 3, seed: int = 0) -> tuple[PartLearner, PartTokens]:
    learner = a_learner(parts)
    learner.fit_reductions(drawing.views)
    tokens = learner.reduce(drawing.views)
    learner.start_from_clusters(tokens, seed)
    return learner, tokens


def found(learner: PartLearner, tokens: PartTokens) -> Tensor:
    """Hard parts of patches (N, L)."""
    with torch.no_grad():
        maps = learner.part_maps(tokens).flatten(2)
    return (maps[:, 1:].argmax(1) + 1) * (maps[:, 0] < 0.5)


def agreement(found: Tensor, truth: Tensor) -> float:
    return float(adjusted_rand_score(truth.flatten(), found.flatten()))


def trained(learner: PartLearner, tokens: PartTokens, steps: int = 20) -> list[float]:
    optimizer, losses = torch.optim.AdamW(learner.parameters(), lr=3e-3, weight_decay=0.0), []
    for _ in range(steps):
        loss = parts_losses(learner, PartsRecipe(), tokens)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Reductions


@pytest.mark.parametrize("kept", [5, 24])
def test_reduced_tokens_are_their_principal_components_in_one_unit(kept: int) -> None:
    tokens = torch.randn(400, 24) @ torch.randn(24, 24) + 3
    reduction = Reduction(24, kept)
    reduction.fit(tokens)

    found = reduction(tokens)

    assert torch.allclose(found.mean(0), torch.zeros(kept), atol=1e-4)
    assert found.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)
    expected = PCA(kept).fit_transform(tokens.double().numpy())
    expected /= np.sqrt(np.square(expected).sum(1).mean())
    signs = np.sign((expected * found.numpy()).sum(0))
    assert np.abs(signs * expected - found.numpy()).max() < 1e-3
    gram = reduction.basis.T @ reduction.basis
    assert torch.allclose(gram, gram.diagonal().mean() * torch.eye(kept), atol=1e-5)


def test_directions_are_reduced_about_the_origin() -> None:
    tokens = torch.randn(400, 6) + 2
    reduction = Reduction(6, 6, unit=True)
    reduction.fit(tokens)

    found, scaled = reduction(tokens), torch.nn.functional.normalize(tokens, dim=1)

    # All components are kept: angles between tokens stay, and lengths do not count.
    cosines = [torch.nn.functional.normalize(each, dim=1) @ each[0] / each[0].norm() for each in (found, scaled)]
    assert torch.allclose(*cosines, atol=1e-5)
    assert torch.allclose(found, reduction(7 * tokens), atol=1e-5)
    assert (found - found.mean(0)).square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def test_a_reduction_of_tokens_that_are_all_alike_is_finite() -> None:
    for unit in (False, True):
        reduction = Reduction(6, 4, unit)
        reduction.fit(torch.ones(50, 6))
        assert reduction(torch.randn(3, 6)).isfinite().all()


def test_components_are_no_more_than_a_token_has() -> None:
    learner = PartLearner(PartsSpec(24, 400, 8))
    views = TokenViews(torch.randn(2, 16, 24), torch.randn(2, 16, 400), torch.randn(2, 16, 400))
    assert [tokens.shape[2] for tokens in learner.reduce(views)] == [24, 128, 128]
    assert all(tokens.dtype == torch.float16 for tokens in learner.reduce(views))


# Where learning starts


def test_keys_are_mapped_to_what_they_say_of_values_within_the_image() -> None:
    """Regression of the values' differences from the mean of their image's object, on the object's keys, by NumPy."""
    learner, drawing = a_learner(), drawn(noise=1.0)
    learner.fit_reductions(drawing.views)
    tokens = learner.reduce(drawing.views)

    learner.start_from_clusters(tokens, 0, mapped=True)

    inside = (learner(tokens)[0].argmax(-1) == 1).numpy()
    keys, values = tokens.keys.double().numpy(), tokens.values.double().numpy()
    keys = np.concatenate([own[within] for own, within in zip(keys, inside, strict=True)])
    values = np.concatenate([own[within] - own[within].mean(0) for own, within in zip(values, inside, strict=True)])
    weight = np.sqrt(1e-3 * (keys**2).sum() / KEYS) * np.eye(KEYS)
    expected, *_ = np.linalg.lstsq(np.concatenate([keys, weight]), np.concatenate([values, 0 * weight]), rcond=None)
    expected *= np.sqrt(KEYS) / np.linalg.norm(expected)
    assert np.abs(learner.parts.map.detach().numpy() - expected).max() < 1e-4


def test_parts_start_apart_where_keys_differ_most_by_what_values_know_nothing_of() -> None:
    """Photos of two kinds: keys say of which first of all. k-means takes that for parts; the start does not."""
    drawing = drawn(parts=2, noise=0.05)
    kind = torch.zeros(12, SIDE * SIDE, KEYS)
    kind[::2, :, 0], kind[1::2, :, 1] = 30, 30
    views = drawing.views._replace(keys=drawing.views.keys + kind)
    learner = a_learner(2)
    learner.fit_reductions(views)
    tokens = learner.reduce(views)

    inside = drawing.truth > 0
    learner.start_from_clusters(tokens, 0)
    assert agreement(found(learner, tokens)[inside], drawing.truth[inside]) < 0.1
    learner.start_from_clusters(tokens, 0, mapped=True)
    assert agreement(found(learner, tokens), drawing.truth) == 1.0


def test_values_that_are_all_alike_leave_the_keys_as_they_are() -> None:
    learner, tokens = started(drawn())
    learner.start_from_clusters(tokens._replace(values=torch.zeros_like(tokens.values)), 0, mapped=True)
    assert torch.equal(learner.parts.map, torch.eye(KEYS))


# Maps


def test_shares_are_a_softmax_over_cosines() -> None:
    prototypes, tokens = Prototypes(3, 5, 8.0, mapped=True), torch.randn(2, 4, 5)
    torch.nn.init.normal_(prototypes.bias)
    torch.nn.init.normal_(prototypes.map)

    shares = prototypes(tokens)

    for image, place in itertools.product(range(2), range(4)):
        moved = tokens[image, place] @ prototypes.map
        cosines = [torch.nn.functional.cosine_similarity(moved, own, dim=0) for own in prototypes.vectors]
        expected = (8 * torch.stack(cosines) + prototypes.bias).softmax(0)
        assert torch.allclose(shares[image, place], expected, atol=1e-5)


def test_maps_share_out_every_patch() -> None:
    learner, tokens = started(drawn())

    maps = learner.part_maps(tokens)

    assert maps.shape == (12, 4, SIDE, SIDE) and (maps >= 0).all()
    assert (maps.sum(1) - 1).abs().max() < 1e-6
    inside, parts = learner(tokens)
    assert torch.allclose(maps[:, 0].flatten(1), inside[:, :, 0], atol=1e-6)
    assert torch.allclose(maps[:, 2].flatten(1), inside[:, :, 1] * parts[:, :, 1], atol=1e-6)


@pytest.mark.parametrize("flip", [(2,), (1,), (1, 2)])
def test_maps_of_a_flipped_grid_are_flipped(flip: tuple[int, ...]) -> None:
    learner, tokens = started(drawn())

    flipped = PartTokens(*(own.unflatten(1, (SIDE, SIDE)).flip(flip).flatten(1, 2) for own in tokens))

    flipped_maps = learner.part_maps(flipped)
    assert (flipped_maps - learner.part_maps(tokens).flip([axis + 1 for axis in flip])).abs().max() < 1e-6


def test_labels_are_the_background_or_the_strongest_part_of_the_refined_maps() -> None:
    learner, tokens = started(drawn())
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)

    for refine, large in ((True, refine_maps), (False, lambda maps, images: upsample_maps(maps, 32))):
        other = a_learner(refine=refine)
        other.load_state_dict(learner.state_dict())
        labels, maps = other.labels(tokens, images), large(other.part_maps(tokens), images)
        assert labels.dtype == torch.uint8 and labels.shape == (12, 32, 32)
        inside = maps[:, 1:].sum(1) > maps[:, 0]
        assert torch.equal(labels > 0, inside)
        assert torch.equal(labels[inside].long() - 1, maps[:, 1:].argmax(1)[inside])
        assert set(labels.unique().tolist()) == {0, 1, 2, 3}


def test_many_parts_that_share_a_place_are_no_background() -> None:
    """A third to the background and less to each of five parts: most of it is the object's."""
    learner = a_learner(5, refine=False)
    with torch.no_grad():
        learner.object.vectors.copy_(torch.eye(WIDTH)[:2])
        learner.object.bias.copy_(torch.tensor([0.5, 1.0]))
        learner.parts.vectors.copy_(torch.eye(KEYS)[:5])
    tokens = PartTokens(*(torch.zeros(1, 16, width) for width in (WIDTH, KEYS, KEYS)))

    assert learner.part_maps(tokens).argmax(1).eq(0).all()
    assert (learner.labels(tokens, torch.zeros(1, 3, 4, 4, dtype=torch.uint8)) > 0).all()


def test_labels_are_named_background_first() -> None:
    assert PartsSpec(24, 24, 8, 3).label_names == ["background", "part 1", "part 2", "part 3"]
    assert part_names(2, background=False) == ["part 1", "part 2"]


# Starting, and learning


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parts", [2, 3])
def test_drawn_parts_are_found_and_stay_while_learning(parts: int, seed: int) -> None:
    drawing = drawn(parts=parts)
    learner, tokens = started(drawing, parts, seed)
    assert agreement(found(learner, tokens), drawing.truth) == 1

    losses = trained(learner, tokens)

    assert losses[-1] < losses[0]
    assert agreement(found(learner, tokens), drawing.truth) == 1


def test_a_part_may_be_absent_from_an_image() -> None:
    drawing = drawn(missing=True)
    learner, tokens = started(drawing)
    trained(learner, tokens)

    assert agreement(found(learner, tokens), drawing.truth) == 1
    labels = found(learner, tokens)
    assert len(labels[::3].unique()) == 2 and len(labels[1].unique()) == 4


@pytest.mark.parametrize("seed", range(4))
def test_the_background_is_what_lies_at_the_border(seed: int) -> None:
    """Whichever of the two clusters comes first, and though the object is the larger one."""
    drawing = drawn()
    grid = drawing.truth.unflatten(1, (SIDE, SIDE))
    large = torch.nn.functional.pad(grid[:, 2:6, 2:6].repeat_interleave(2, 2)[:, :, 1:7], (1, 1, 2, 2)).flatten(1)
    views = TokenViews(
        *(own.reshape(-1, own.shape[2])[_source(drawing.truth, large)].reshape(own.shape) for own in drawing.views)
    )
    for each, truth in ((drawing.views, drawing.truth), (views, large)):
        learner, tokens = started(Drawn(each, truth), seed=seed)
        assert torch.equal(found(learner, tokens) > 0, truth > 0)


def _source(truth: Tensor, wanted: Tensor) -> Tensor:
    """For every patch of `wanted`, a patch of `truth` with the same label."""
    places = [torch.nonzero(truth.flatten() == label)[:, 0] for label in range(4)]
    return torch.stack([places[label][number % len(places[label])] for number, label in enumerate(wanted.flatten())])


def test_the_border_is_the_edge_of_the_grid() -> None:
    assert border(16).reshape(4, 4).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert border(1).all() and border(4).all()


def test_clusters_are_the_same_for_a_seed_whatever_ran_before() -> None:
    drawing = drawn()
    first = started(drawing)[0].state_dict()
    torch.rand(5)
    np.random.random(5)
    again = started(drawing)[0].state_dict()
    assert all(torch.equal(first[name], own) for name, own in again.items())
    assert not torch.equal(started(drawing, seed=1)[0].parts.vectors, first["parts.vectors"])


@pytest.mark.parametrize("side", [1, 2])
def test_fewer_tokens_than_parts(side: int) -> None:
    views = TokenViews(*(torch.randn(1, side * side, width) for width in (WIDTH, KEYS, KEYS)))
    learner, tokens = started(Drawn(views, torch.zeros(1, side * side)), parts=6)

    losses = trained(learner, tokens, 3)

    assert np.isfinite(losses).all()
    assert all(own.isfinite().all() for own in learner.state_dict().values())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_tokens_that_are_all_alike_give_numbers() -> None:
    views = TokenViews(*(torch.ones(3, 16, width) for width in (WIDTH, KEYS, KEYS)))
    learner, tokens = started(Drawn(views, torch.zeros(3, 16)))

    losses = trained(learner, tokens, 3)

    assert np.isfinite(losses).all()
    assert all(own.isfinite().all() for own in learner.state_dict().values())
    assert learner.part_maps(tokens).isfinite().all()


# Encoders


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(TINY).eval()


@torch.no_grad()
def test_it_looks_at_reduced_views(encoder: Encoder) -> None:
    learner, images = PartLearner(PartsSpec.of(encoder)), torch.randn(3, 3, 32, 32)
    views, cls, attention = encoder.token_views(images, attention=True)
    learner.fit_reductions(views)

    seen, heads, said = learner.look(encoder, images, attention=True)

    assert attention is not None and heads is not None and torch.equal(heads, attention)
    assert said is not None and torch.equal(said.cls, cls) and torch.equal(said.patches, views.last)
    assert learner.look(encoder, images).attention is None
    for own, reduced in zip(seen, learner.reduce(views), strict=True):
        assert own.dtype == torch.float16 and torch.equal(own, reduced)
    for view, own, reduction in zip(views, seen, learner.reductions, strict=True):
        assert torch.allclose(reduction(view), own.float(), atol=2e-3)


@torch.no_grad()
def test_half_precision_changes_maps_little(encoder: Encoder) -> None:
    images = torch.randn(16, 3, 32, 32)
    learner = PartLearner(PartsSpec.of(encoder, 3))
    learner.fit_reductions(encoder.token_views(images)[0])
    learner.start_from_clusters(learner.look(encoder, images).seen, 0)
    maps = learner.part_maps(learner.look(encoder, images).seen)

    with torch.autocast("cpu", torch.bfloat16):
        seen, _, _ = learner.look(encoder, images)
        half = learner.part_maps(seen)

    assert all(own.dtype == torch.float16 for own in seen) and half.isfinite().all()
    assert (half.float() - maps).abs().mean() < 0.03


@torch.no_grad()
def test_few_images_are_fitted_to_where_each_has_many_tokens(encoder: Encoder) -> None:
    assert images_to_fit(encoder, 32) == 256
    patches = (1 << 29) / (3 * 24 * 2)
    assert images_to_fit(encoder, int(patches**0.5) * 8 // 2) in (4, 5)
    assert images_to_fit(encoder, 8 * 10**5) == 1
