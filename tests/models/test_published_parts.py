"""The part learner as published: it starts as the encoder's attention, and only its maps are let through."""

import itertools
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from semmae.formats.open import load_encoder
from semmae.losses import diversity_loss, reconstruction_loss
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec, StyleLayer
from semmae.models.vit import Encoder, EncoderSpec, Features

TINY = EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3)
SPEC = PublishedPartsSpec(width=48, patch_size=8, num_parts=3, head_dim=16, decoder_width=32)


@pytest.fixture
def encoder() -> Encoder:
    """An encoder none of whose biases is zero and none of whose norms is the identity."""
    encoder = Encoder(TINY).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def features() -> Features:
    return Features(torch.randn(2, 48), torch.randn(2, 16, 48))


def spec(**changes: object) -> PublishedPartsSpec:
    return PublishedPartsSpec(**{**vars(SPEC), **changes})


def guides(grid: int) -> Tensor:
    """Images as labels are given them, of which the size alone matters."""
    return torch.randint(0, 256, (2, 3, grid, grid), dtype=torch.uint8)


def head_logits(encoder: Encoder, features: Features) -> Tensor:
    """Class-to-patch logits (B, heads, L) of the last block, head by head through its own linear layer."""
    attention = encoder.vit.blocks[-1].attn
    cls, patches = attention.qkv(features.cls), attention.qkv(features.patches)
    width, dim = encoder.width, encoder.width // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        query = cls[:, head * dim : (head + 1) * dim]
        key = patches[:, :, width + head * dim : width + (head + 1) * dim]
        heads.append(torch.einsum("bd,bld->bl", query, key) / math.sqrt(dim))
    return torch.stack(heads, dim=1)


def test_parts_that_start_from_heads_have_their_logits(encoder: Encoder) -> None:
    features = encoder.last_block_features(torch.randn(3, 3, 32, 32))
    learner = PublishedPartLearner(SPEC, encoder)

    logits = learner.attention(features.cls, features.patches)

    expected = head_logits(encoder, features)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-5


def test_the_logits_are_those_behind_the_attention_of_the_encoder(encoder: Encoder) -> None:
    images = torch.randn(3, 3, 32, 32)
    features = encoder.last_block_features(images)
    learner = PublishedPartLearner(SPEC, encoder)

    # The class token attends to itself too: the encoder's softmax runs over all tokens.
    logits = learner.attention(features.cls, torch.cat([features.cls[:, None], features.patches], dim=1))

    assert (logits.softmax(-1)[:, :, 1:] - encoder.attention(images)).abs().max() < 1e-5


def test_a_block_without_biases_starts_parts_too(features: Features) -> None:
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0, qkv_bias=False
    )
    encoder = Encoder(TINY, vit).requires_grad_(False)

    logits = PublishedPartLearner(SPEC, encoder).attention(features.cls, features.patches)

    assert (logits - head_logits(encoder, features)).abs().max() < 1e-5


@torch.no_grad()
def test_parts_of_a_released_encoder_have_the_attention_of_the_released_code(shared: Path) -> None:
    folder = shared / "vectors/vit-flat"
    expected = load_file(folder / "expected.safetensors")
    encoder = load_encoder(folder / "checkpoint.pth")
    learner = PublishedPartLearner(SPEC, encoder)

    features = encoder.last_block_features(expected["images"])
    logits = learner.attention(features.cls, torch.cat([features.cls[:, None], features.patches], dim=1))

    assert (logits.softmax(-1) - expected["attention"][:, :, 0]).abs().max() < 1e-5
    assert (logits.log_softmax(-1) - expected["attention"][:, :, 0].log()).abs().max() < 1e-4


@torch.no_grad()
def test_normalised_queries_are_refused() -> None:
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0, qk_norm=True
    )

    with pytest.raises(ValueError, match="queries and keys.*at random"):
        PublishedPartLearner(SPEC, Encoder(TINY, vit))


@torch.no_grad()
def test_more_parts_than_heads_are_distinct_and_seeded(encoder: Encoder, features: Features) -> None:
    def logits(seed: int) -> Tensor:
        learner = PublishedPartLearner(spec(num_parts=8), encoder, torch.Generator().manual_seed(seed))
        return learner.attention(features.cls, features.patches)

    parts = logits(0)

    assert (parts[:, :3] - head_logits(encoder, features)).abs().max() < 1e-5
    for first, second in itertools.combinations(range(8), 2):
        assert (parts[:, first] - parts[:, second]).abs().max() > 0.05
    # A part that repeats a head still resembles it.
    assert torch.corrcoef(torch.stack([parts[0, 0], parts[0, 3]]))[0, 1] > 0.3
    torch.rand(5)
    assert torch.equal(parts, logits(0))
    assert not torch.equal(parts[:, 3:], logits(1)[:, 3:])


@torch.no_grad()
def test_parts_without_an_encoder_start_at_random(features: Features) -> None:
    parts = PublishedPartLearner(spec(num_parts=6)).attention(features.cls, features.patches)

    for first, second in itertools.combinations(range(6), 2):
        assert (parts[:, first] - parts[:, second]).abs().max() > 0.05


def slow_maps(logits: Tensor, background: tuple[float, float] | None) -> Tensor:
    """Centred logits (B, N, L) → softmax over parts and background → (1 2 1)/4 blur with repeated borders."""
    side = math.isqrt(logits.shape[2])
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}
    images = []
    for image in logits.tolist():
        centred = [[value - sum(part) / len(part) for value in part] for part in image]
        if background is not None:
            bias, scale = background
            means = [sum(values) / len(values) for values in zip(*centred, strict=True)]
            centred = [[bias - scale * mean for mean in means], *centred]
        total = [sum(math.exp(part[patch]) for part in centred) for patch in range(side * side)]
        soft = [[math.exp(value) / total[patch] for patch, value in enumerate(part)] for part in centred]
        clamp = range(side)
        images.append(
            [
                [
                    [
                        sum(
                            weights[i]
                            * weights[j]
                            * part[min(max(row + i, 0), clamp[-1]) * side + min(max(column + j, 0), clamp[-1])]
                            for i in weights
                            for j in weights
                        )
                        for column in range(side)
                    ]
                    for row in range(side)
                ]
                for part in soft
            ]
        )
    return torch.tensor(images)


@pytest.mark.parametrize("background", [None, (0.0, 1.0), (1.5, 0.0), (-0.5, 2.0)])
@torch.no_grad()
def test_maps_are_those_of_the_slow_loop(features: Features, background: tuple[float, float] | None) -> None:
    learner = PublishedPartLearner(spec(background=background is not None))
    if learner.background is not None:
        learner.background.copy_(torch.tensor(background))

    maps = learner.part_maps(features)

    expected = slow_maps(learner.attention(features.cls, features.patches), background)
    assert maps.shape == (2, 3 + (background is not None), 4, 4)
    assert (maps - expected).abs().max() < 1e-6


@pytest.mark.parametrize("background", [True, False])
@torch.no_grad()
def test_maps_share_out_every_patch(encoder: Encoder, background: bool) -> None:
    """Blurring moves shares between patches, but makes and loses none."""
    features = encoder.last_block_features(torch.randn(3, 3, 32, 32))

    maps = PublishedPartLearner(spec(background=background), encoder).part_maps(features)

    assert (maps >= 0).all()
    assert (maps.sum(1) - 1).abs().max() < 1e-6


@torch.no_grad()
def test_equal_patches_have_equal_maps(features: Features) -> None:
    learner = PublishedPartLearner(spec(num_parts=5))

    maps = learner.part_maps(Features(features.cls, features.patches[:, :1].expand(-1, 16, -1)))

    # Every logit is its part's mean: no part and no background is ahead.
    assert (maps - 1 / 6).abs().max() < 1e-6


@torch.no_grad()
def test_a_part_takes_the_same_share_whatever_its_mean_logit(features: Features) -> None:
    """A head's softmax ignores the mean of its logits, and so does the competition of the parts."""
    learner = PublishedPartLearner(SPEC)
    before = learner.part_maps(features)

    learner.attention.key_bias += 3 * torch.randn_like(learner.attention.key_bias)

    assert (learner.part_maps(features) - before).abs().max() < 1e-4


@torch.no_grad()
def test_attention_knows_no_places(features: Features) -> None:
    learner = PublishedPartLearner(SPEC)
    order = torch.randperm(16)

    moved = learner.attention(features.cls, features.patches[:, order])

    assert (moved - learner.attention(features.cls, features.patches)[:, :, order]).abs().max() < 1e-5


@pytest.mark.parametrize("flip", [(2,), (3,), (2, 3)])
@torch.no_grad()
def test_maps_of_a_flipped_grid_are_flipped(features: Features, flip: tuple[int, ...]) -> None:
    learner = PublishedPartLearner(SPEC)
    grid = features.patches.transpose(1, 2).unflatten(2, (4, 4)).flip(flip)

    maps = learner.part_maps(Features(features.cls, grid.flatten(2).transpose(1, 2)))

    assert (maps - learner.part_maps(features).flip(flip)).abs().max() < 1e-6


@torch.no_grad()
def test_the_reconstruction_sees_patches_through_the_maps_only(features: Features) -> None:
    """Patches are moved where no part looks: maps and reconstruction must stay as they are."""
    learner = PublishedPartLearner(spec(num_parts=2))
    # 2 parts of 16 channels read a 32-dimensional subspace of the 48 channels.
    blind = torch.linalg.svd(learner.attention.key_weight.flatten(0, 1))[2][32:]
    moved = features.patches + 5 * torch.randn(2, 16, 16) @ blind

    maps, reconstruction = learner(features)
    moved_maps, moved_reconstruction = learner(Features(features.cls, moved))

    assert (moved - features.patches).abs().mean() > 1
    assert (moved_maps - maps).abs().max() < 1e-5
    assert (moved_reconstruction - reconstruction).abs().max() < 1e-4


@torch.no_grad()
def test_space_comes_from_the_maps_and_appearance_from_the_class_token(features: Features) -> None:
    learner = PublishedPartLearner(SPEC)
    maps, reconstruction = learner(features)

    # Without layout there is no place to tell from another, except near the border, which the padding shows.
    flat = learner.decoder(torch.full((2, 4, 12, 12), 0.25), features.cls)[:, :, 20:-20, 20:-20]
    assert flat.flatten(2).std(dim=2).max() < 1e-5
    assert reconstruction.flatten(2).std(dim=2).min() > 1e-3

    restyled = learner.decoder(maps, torch.randn(2, 48))
    assert (restyled - reconstruction).abs().max() > 1e-3
    assert torch.equal(learner.decoder(maps, features.cls), reconstruction)


@pytest.mark.parametrize("patch_size", [4, 8, 14, 16, 32])
@torch.no_grad()
def test_the_reconstruction_has_half_the_image_or_more(patch_size: int) -> None:
    learner = PublishedPartLearner(spec(patch_size=patch_size))

    reconstruction = learner(Features(torch.randn(1, 48), torch.randn(1, 9, 48))).reconstruction

    side = 3 * patch_size
    assert reconstruction.shape[-2] == reconstruction.shape[-1]
    assert side / 2 <= reconstruction.shape[-1] <= side


@torch.no_grad()
def test_the_class_token_sets_mean_and_deviation_of_every_channel() -> None:
    """AdaIN: whatever the convolution made of a channel, the style says where it lies and how far it spreads."""
    layer, style = StyleLayer(8, 4, 48), torch.randn(2, 48) * 3

    activated = layer(torch.randn(2, 8, 6, 6) * 5 + 2, style)

    values = torch.where(activated < 0, activated / 0.2, activated).flatten(2)
    scale, shift = layer.style(style).chunk(2, dim=1)
    assert activated.shape == (2, 4, 12, 12)
    assert (values.mean(2) - shift).abs().max() < 1e-4
    assert (values.std(2, correction=0) - (1 + scale).abs()).abs().max() < 1e-4


def test_the_reconstruction_teaches_every_parameter(features: Features) -> None:
    """Without the diversity too: the maps are learned from the pixels."""
    learner = PublishedPartLearner(SPEC)

    reconstruction_loss(learner(features).reconstruction, torch.randn(2, 3, 32, 32)).backward()

    # What is constant over the patches or over a channel is subtracted again: these stay as they started.
    stuck = {name for name, parameter in learner.named_parameters() if not parameter.grad.abs().max() > 1e-7}
    assert stuck <= {"attention.key_bias", *(f"decoder.layers.{layer}.convolution.bias" for layer in range(2))}


def test_training_lowers_the_loss_and_separates_the_parts(encoder: Encoder) -> None:
    """Four images, each of a coloured half and a noisy one, learned by heart."""
    images = torch.randn(4, 3, 32, 32) * 0.1
    images[:2, :, :, :16] += torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    images[2:, :, 16:] -= torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    features = encoder.last_block_features(images)
    learner = PublishedPartLearner(SPEC, encoder)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    errors, similarities = [], []

    for _ in range(40):
        maps, reconstruction = learner(features)
        error, similarity = reconstruction_loss(reconstruction, images), diversity_loss(maps)
        optimizer.zero_grad()
        (error + 0.1 * similarity).backward()
        optimizer.step()
        errors.append(error.item())
        similarities.append(similarity.item())

    assert errors[-1] < 0.3 * errors[0]
    assert similarities[-1] < similarities[0]


def slow_upsample(maps: Tensor, grid: int) -> Tensor:
    """Bilinear, each cell read at its centre: maps (B, M, g, g) → (B, M, grid, grid)."""
    side = maps.shape[-1]
    weights = torch.zeros(grid, side)
    for cell in range(grid):
        place = min(max((cell + 0.5) * side / grid - 0.5, 0), side - 1)
        low = math.floor(place)
        weights[cell, low] += 1 - (place - low)
        weights[cell, min(low + 1, side - 1)] += place - low
    return weights @ maps @ weights.T


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("grid", [4, 7, 28])
@torch.no_grad()
def test_labels_are_the_strongest_of_the_upsampled_maps(features: Features, background: bool, grid: int) -> None:
    learner = PublishedPartLearner(spec(background=background))

    labels = learner.labels(features, guides(grid))

    maps = slow_upsample(learner.part_maps(features), grid)
    assert labels.dtype == torch.uint8 and labels.shape == (2, grid, grid)
    assert labels.max() < len(learner.spec.label_names) == maps.shape[1]
    # Where two maps tie, rounding decides.
    chosen = maps.gather(1, labels.long()[:, None])[:, 0]
    assert (maps.amax(1) - chosen).max() < 1e-6
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("side", [1, 5, 7])
def test_the_blur_is_binomial_and_keeps_what_is_flat(features: Features, side: int) -> None:
    learner = PublishedPartLearner(spec(blur=side))

    row = [math.comb(side - 1, k) / 2 ** (side - 1) for k in range(side)]
    assert torch.allclose(learner.kernel, torch.outer(torch.tensor(row), torch.tensor(row)))
    maps = learner.part_maps(features)
    assert torch.allclose(maps.sum(1), torch.ones(2, 4, 4), atol=1e-5)
    unblurred = PublishedPartLearner(spec(blur=1))
    unblurred.load_state_dict(learner.state_dict())
    assert (unblurred.part_maps(features).std() > maps.std()) == (side > 1)


@pytest.mark.parametrize(("patch_size", "side"), [(8, 16), (6, 16), (16, 32)])
def test_the_output_reaches_the_wanted_side(features: Features, patch_size: int, side: int) -> None:
    learner = PublishedPartLearner(spec(patch_size=patch_size))

    assert learner(features).reconstruction.shape == (2, 3, side, side)


@pytest.mark.parametrize("attention", [False, True])
@torch.no_grad()
def test_it_looks_at_what_enters_the_last_block(encoder: Encoder, attention: bool) -> None:
    images = torch.randn(2, 3, 32, 32)

    seen, heads, _ = PublishedPartLearner(SPEC, encoder).look(encoder, images, attention)

    assert all(torch.equal(*pair) for pair in zip(seen, encoder.last_block_features(images), strict=True))
    assert (heads is not None) == attention
    assert heads is None or torch.equal(heads, encoder.attention(images))


def test_labels_are_named_in_the_order_of_the_maps() -> None:
    assert SPEC.label_names == ["background", "part 1", "part 2", "part 3"]
    assert spec(background=False).label_names == ["part 1", "part 2", "part 3"]


@torch.no_grad()
def test_the_first_label_is_the_background(features: Features) -> None:
    learner = PublishedPartLearner(SPEC)
    learner.background.copy_(torch.tensor([100.0, 0.0]))

    assert (learner.labels(features, guides(28)) == 0).all()


@torch.no_grad()
def test_the_background_starts_where_the_parts_turn_away() -> None:
    """On the right two parts turn away and one looks on: above its own mean, but less than they are below theirs."""
    learner = PublishedPartLearner(SPEC)
    cls = torch.randn(1, 48)
    tokens = learner.attention(cls, torch.eye(48)[None])[0] - learner.attention(cls, torch.zeros(1, 48, 48))[0]
    right = torch.linalg.pinv(tokens) @ torch.tensor([1.0, -4.0, -4.0])
    patches = (torch.tensor([-1.0, -1.0, 1.0, 1.0]).repeat(4)[:, None] * right)[None]

    labels = learner.labels(Features(cls, patches), guides(4))[0]

    assert (labels[:, :2] > 0).all()
    assert (labels[:, 2:] == 0).all()
