"""The masked autoencoder, against the outputs of the release and against a slow one in grid order."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from refusals import refused
from safetensors.torch import load_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.formats.open import load_mae
from semmae.losses import masked_token_loss
from semmae.models.mae import DecoderSpec, MaskedAutoencoder, split_mask
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import wrap_vit
from semmae.patches import patchify, resize_positions, sincos_positions, unpatchify


def tiny(norm_pix_loss: bool = True) -> MaskedAutoencoder:
    encoder = Encoder(EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3))
    return MaskedAutoencoder(encoder, DecoderSpec(width=32, depth=2, num_heads=4), norm_pix_loss)


def some_mask(batch: int, length: int, hidden: int) -> Tensor:
    """A mask bool (batch, length) that hides the same count in every row."""
    return torch.rand(batch, length).argsort(dim=1).argsort(dim=1) < hidden


@torch.no_grad()
def test_loss_and_predictions_are_those_of_the_release(shared: Path) -> None:
    expected = load_file(shared / "vectors/mae-p8/expected.safetensors")
    mask = expected["mask"].bool()

    output = load_mae(shared / "vectors/mae-p8/checkpoint.pth")(expected["images"], mask)

    assert abs(float(output.loss) - float(expected["loss"])) < 1e-5
    assert (output.pred - expected["pred"])[mask].abs().max() < 1e-5


def test_positions_are_those_of_the_release(shared: Path) -> None:
    released = load_mae(shared / "vectors/mae-p8/checkpoint.pth")

    assert torch.allclose(released.encoder.vit.pos_embed, sincos_positions(8, 48), atol=1e-6)
    assert torch.allclose(released.decoder_pos_embed, sincos_positions(8, 32), atol=1e-6)


def reference_prediction(mae: MaskedAutoencoder, images: Tensor, mask: Tensor) -> Tensor:
    """Predictions (B, L, p·p·3) as the MAE paper has it: unshuffled, one image at a time."""
    side = images.shape[-1] // mae.encoder.patch_size
    predictions = []
    for image, hidden in zip(images, mask, strict=True):
        visible = (~hidden).nonzero().flatten()
        encoded = mae.decoder_embed(mae.encoder.encode_visible(image[None], visible[None]))[0]
        grid = mae.mask_token[0].repeat(len(hidden), 1)
        grid[visible] = encoded[1:]
        sequence = torch.cat([encoded[:1], grid])[None] + resize_positions(mae.decoder_pos_embed, side)
        predictions.append(mae.decoder_pred(mae.decoder_norm(mae.decoder_blocks(sequence)))[0, 1:])
    return torch.stack(predictions)


def reference_loss(prediction: Tensor, images: Tensor, mask: Tensor, normalized: bool) -> float:
    total, count = 0.0, 0
    patches = patchify(images, 8)
    for image, patch in mask.nonzero().tolist():
        target = patches[image, patch]
        if normalized:
            centred = target - target.sum() / len(target)
            target = centred / (centred.square().sum() / (len(target) - 1) + 1e-6).sqrt()
        total += float((prediction[image, patch] - target).square().sum())
        count += len(target)
    return total / count


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("size", [32, 48])  # the size built for, and another
@torch.no_grad()
def test_a_slow_autoencoder_in_grid_order_agrees(size: int, normalized: bool) -> None:
    mae = tiny(normalized).eval()
    length = (size // 8) ** 2
    images, mask = torch.randn(3, 3, size, size), some_mask(3, length, length * 3 // 4)

    output = mae(images, mask)

    expected = reference_prediction(mae, images, mask)
    assert torch.allclose(output.pred[mask], expected[mask], atol=1e-5)
    assert (output.pred[~mask] == 0).all()
    assert float(output.loss) == pytest.approx(reference_loss(expected, images, mask, normalized), rel=1e-5)


@torch.no_grad()
def test_predictions_do_not_see_hidden_pixels() -> None:
    mae = tiny().eval()
    images, mask = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)
    hidden = mask.reshape(2, 1, 4, 1, 4, 1).expand(-1, 3, -1, 8, -1, 8).reshape(2, 3, 32, 32)

    changed = torch.where(hidden, torch.randn(2, 3, 32, 32), images)

    assert torch.equal(mae(changed, mask).pred, mae(images, mask).pred)


def test_gradient_reaches_all_but_the_fixed_positions() -> None:
    mae = tiny()

    mae(torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)).loss.backward()

    untouched = [name for name, weight in mae.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert untouched == ["decoder_pos_embed", "encoder.vit.pos_embed"]


def test_positions_of_an_encoder_from_elsewhere_become_fixed() -> None:
    vit = VisionTransformer(32, 8, num_classes=0, embed_dim=24, depth=1, num_heads=2, dynamic_img_size=True)
    encoder = wrap_vit(vit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert encoder.vit.pos_embed.requires_grad

    MaskedAutoencoder(encoder, DecoderSpec(16, 1, 2))

    assert not encoder.vit.pos_embed.requires_grad


def test_an_encoder_with_registers_is_refused() -> None:
    vit = VisionTransformer(32, 8, num_classes=0, embed_dim=24, depth=1, num_heads=2, reg_tokens=4)
    encoder = wrap_vit(vit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    with pytest.raises(ValueError, match="registers"):
        MaskedAutoencoder(encoder, DecoderSpec(16, 1, 2))


def test_an_encoder_with_rotary_positions_is_refused() -> None:
    vit = Eva(32, 8, num_classes=0, embed_dim=24, depth=1, num_heads=2, use_rot_pos_emb=True, dynamic_img_size=True)
    encoder = wrap_vit(vit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    with pytest.raises(ValueError, match="rotary"):
        MaskedAutoencoder(encoder, DecoderSpec(16, 1, 2))


@torch.no_grad()
def test_bfloat16_autocast_stays_close() -> None:
    mae = tiny().eval()
    images, mask = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)

    with torch.autocast("cpu", torch.bfloat16):
        output = mae(images, mask)

    assert float(output.loss) == pytest.approx(float(mae(images, mask).loss), rel=1e-2)


def test_blocks_add_to_bf16_where_that_is_asked_for_and_autocast() -> None:
    mae, images, mask = tiny(), torch.randn(4, 3, 32, 32), some_mask(4, 16, 12)
    seen: list[torch.dtype] = []
    blocks = [*mae.encoder.vit.blocks, *mae.decoder_blocks]
    for block in blocks:
        block.register_forward_hook(lambda _block, _given, out: seen.append(out.dtype))

    def loss(bf16: bool) -> Tensor:
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found: Tensor = mae(images, mask).loss
        return found

    exact, summed_in_float32 = loss(bf16=False), loss(bf16=True)
    mae.bf16_residual = True
    assert torch.equal(loss(bf16=False), exact) and set(seen) == {torch.float32}
    summed_in_bf16 = loss(bf16=True)
    assert seen == [torch.bfloat16] * len(blocks)
    assert not torch.equal(summed_in_bf16, summed_in_float32)
    assert float(summed_in_bf16.detach()) == pytest.approx(float(exact.detach()), rel=2e-2)
    summed_in_bf16.backward()
    assert {each.grad.dtype for each in mae.parameters() if each.grad is not None} == {torch.float32}


def test_a_few_steps_learn_one_batch() -> None:
    mae = tiny()
    images, mask = (
        torch.rand(4, 3, 1, 1).expand(-1, -1, 32, 32) + 0.1 * torch.randn(4, 3, 32, 32),
        some_mask(4, 16, 12),
    )
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = mae(images, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@given(st.integers(1, 4), st.integers(2, 40), st.data())
@settings(max_examples=50, deadline=None)
def test_splitting_a_mask_keeps_every_patch_once_in_ascending_order(
    batch: int, length: int, data: st.DataObject
) -> None:
    hidden_count = data.draw(st.integers(0, length))
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row in mask:
        row[data.draw(st.permutations(range(length)))[:hidden_count]] = True

    visible, hidden = split_mask(mask)

    for row, seen, unseen in zip(mask, visible, hidden, strict=True):
        assert seen.tolist() == (~row).nonzero().flatten().tolist()
        assert unseen.tolist() == row.nonzero().flatten().tolist()


def test_a_subset_of_all_patches_changes_nothing() -> None:
    mae, images, mask = tiny(), torch.randn(3, 3, 32, 32), some_mask(3, 16, 12)
    whole = mae(images, mask)
    some = mae(images, mask, torch.arange(16).repeat(3, 1))
    assert torch.equal(whole.loss, some.loss) and torch.equal(whole.pred, some.pred)


@torch.no_grad()
def test_patches_beyond_the_subset_take_no_part() -> None:
    """What they show changes nothing; what takes part is as a slow autoencoder of these patches alone predicts it."""
    mae, images = tiny(norm_pix_loss=False).eval(), torch.randn(2, 3, 32, 32)
    subset = torch.stack([torch.randperm(16)[:8].sort().values for _ in range(2)])
    mask = some_mask(2, 8, 6)
    output = mae(images, mask, subset)
    assert output.num_patches == 16 and output.pred.shape == (2, 16, 192)
    hidden = torch.zeros(2, 16, dtype=torch.bool).scatter(1, subset, mask)
    assert torch.equal(output.hidden, hidden.nonzero()[:, 1].view(2, 6))
    taking_part = torch.zeros(2, 16, dtype=torch.bool).scatter(1, subset, True)
    other = torch.where(taking_part[..., None], patchify(images, 8), 9.0)
    again = mae(unpatchify(other, 8), mask, subset)
    assert torch.equal(again.loss, output.loss) and torch.equal(again.pred, output.pred)
    for row in range(2):
        visible = subset[row][~mask[row]]
        encoded = mae.decoder_embed(mae.encoder.encode_visible(images[row : row + 1], visible[None]))[0]
        grid = mae.mask_token[0].repeat(16, 1)
        grid[visible] = encoded[1:]
        whole = torch.cat([encoded[:1], grid]) + mae.decoder_pos_embed[0]
        some = whole[torch.cat([torch.tensor([0]), subset[row] + 1])]
        expected = mae.decoder_pred(mae.decoder_norm(mae.decoder_blocks(some[None])))[0, 1:]
        assert (output.hidden_pred[row] - expected[mask[row]]).abs().max() < 1e-5
    assert output.loss.item() == pytest.approx(reference_loss(output.pred, images, hidden, False), rel=1e-5)


def test_a_mask_that_would_show_hidden_patches_is_refused() -> None:
    mae, images, ragged = tiny(), torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)
    ragged[1, ragged[1].nonzero()[0]] = False
    subset = torch.rand(2, 16).argsort(1)[:, :8]

    for mask, named in (
        (ragged, ["11 to 12 patches"]),
        (some_mask(2, 25, 12), ["(2, 25)", "(2, 16)"]),
        (some_mask(1, 16, 12), ["(1, 16)", "(2, 16)"]),
    ):
        with refused(*named, error=ValueError):
            mae(images, mask)
    with refused("(2, 16)", "(2, 8)", error=ValueError):
        mae(images, some_mask(2, 16, 12), subset)


def test_tokens_of_a_teacher_are_predicted_as_pixels_are() -> None:
    """The same network up to the prediction layer; also of a subset. Visible ones are a layer away."""
    torch.manual_seed(0)
    pixels = tiny()
    torch.manual_seed(0)
    mae = MaskedAutoencoder(Encoder(pixels.encoder.spec), DecoderSpec(32, 2, 4, token_width=192))
    images, mask, tokens = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12), torch.randn(2, 16, 192)
    assert {name.split(".")[0] for name in mae.state_dict().keys() ^ pixels.state_dict().keys()} == HEADS

    output = mae(images, mask, tokens=tokens)

    assert torch.equal(output.pred, pixels(images, mask).pred)  # of width 192 = 8·8·3: alike in all sizes
    assert output.loss.item() == pytest.approx(every_patch(mae, images, output.pred, tokens, mask, ~mask), rel=1e-5)
    subset = torch.rand(2, 16).argsort(1)[:, :8]
    inside = some_mask(2, 8, 6)
    part = mae(images, inside, subset, tokens=tokens)
    hidden = torch.zeros(2, 16, dtype=torch.bool).scatter(1, subset, inside)
    visible = torch.zeros(2, 16, dtype=torch.bool).scatter(1, subset, ~inside)
    assert part.loss.item() == pytest.approx(every_patch(mae, images, part.pred, tokens, hidden, visible), rel=1e-5)


HEADS = {"visible_pred", "image_pred"}


@torch.no_grad()
def every_patch(
    mae: MaskedAutoencoder, images: Tensor, pred: Tensor, tokens: Tensor, hidden: Tensor, visible: Tensor
) -> float:
    """The error of each patch that takes part, one after the other, and their mean."""
    errors = []
    for row in range(len(images)):
        places = visible[row].nonzero().flatten()
        encoded = mae.encoder.encode_visible(images[row : row + 1], places[None])[0, 1:]
        errors += [float(masked_token_loss(pred[row, i], tokens[row, i])) for i in hidden[row].nonzero().flatten()]
        shown = mae.visible_pred(encoded)
        errors += [float(masked_token_loss(own, tokens[row, i])) for own, i in zip(shown, places, strict=True)]
    return sum(errors) / len(errors)


@torch.no_grad()
def test_the_mean_of_visible_tokens_predicts_that_of_the_image() -> None:
    mae = MaskedAutoencoder(tiny().encoder, DecoderSpec(32, 2, 4, token_width=24))
    images, mask, tokens = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12), torch.randn(2, 16, 24)
    image = torch.randn(2, 24)
    visible = split_mask(mask)[0]
    guess = mae.image_pred(mae.encoder.encode_visible(images, visible)[:, 1:].mean(1))
    more = mae(images, mask, tokens=tokens, image_token=image).loss - mae(images, mask, tokens=tokens).loss
    assert more.item() == pytest.approx((guess - image).square().mean().item(), rel=1e-4)


def test_every_weight_but_the_class_token_s_own_is_taught_by_tokens() -> None:
    mae = MaskedAutoencoder(tiny().encoder, DecoderSpec(32, 2, 4, token_width=24))
    images, mask = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)
    mae(images, mask, tokens=torch.randn(2, 16, 24), image_token=torch.randn(2, 24)).loss.backward()
    without = [name for name, own in mae.named_parameters() if own.requires_grad and own.grad is None]
    assert without == []


def test_tokens_that_are_not_given_are_asked_for() -> None:
    mae = MaskedAutoencoder(tiny().encoder, DecoderSpec(32, 2, 4, token_width=24))
    images, mask = torch.randn(2, 3, 32, 32), some_mask(2, 16, 12)
    with refused("none are given", "(2, 16, 24)", error=ValueError):
        mae(images, mask)
    with refused("(2, 9, 24)", "(2, 16, 24)", error=ValueError):
        mae(images, mask, tokens=torch.randn(2, 9, 24))
