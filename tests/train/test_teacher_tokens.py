"""A teacher's tokens as targets: those of crops, and those of whole images, stored and interpolated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from semmae.data.crop import WHOLE, crop_image, crop_tokens
from semmae.data.loaders import IMAGE_TOKEN, TOKENS, CropDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.token_store import TokenStore
from semmae.losses import masked_token_loss
from semmae.masking import random_mask
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec, Features
from semmae.options.pretrain import PretrainRecipe
from semmae.train import teacher_tokens
from semmae.train.pretrain import PretrainTask
from semmae.train.teacher_tokens import (
    check_first,
    class_tokens,
    fill_store,
    token_store,
    tokens_of,
    usual_size,
    whitening,
)


@pytest.fixture
def images(creatures: Path) -> ImageSet:
    return open_images(creatures / "images", workers=0)


@pytest.fixture
def teacher() -> Encoder:
    return Encoder(EncoderSpec(32, 8, 24, 2, 2, mean=(0.4, 0.5, 0.6))).eval().requires_grad_(False)


def filled(folder: Path, images: ImageSet, teacher: Encoder) -> TokenStore:
    store = token_store(folder, images, teacher, 32, "float32")
    store.begin()
    fill_store(store, images, teacher, size=32, precision="float32", workers=0)
    return store


def test_stored_tokens_are_those_of_crops_where_a_crop_is_the_whole_image(
    images: ImageSet, teacher: Encoder, tmp_path: Path
) -> None:
    store = filled(tmp_path / "tokens", images, teacher)
    stored = store.read(TOKENS)
    crops = torch.stack([crop_image(images.read(row), WHOLE, 32) for row in range(4)])
    wanted = tokens_of(teacher, crops, 32)
    assert torch.allclose(wanted.patches, teacher(teacher_input(teacher, crops)).patches, atol=1e-4)
    carried = torch.stack([crop_tokens(stored[row], WHOLE, 4) for row in range(4)])
    assert (carried.float() - wanted.patches).abs().max() < 2e-3
    whole = torch.from_numpy(np.array(store.read(IMAGE_TOKEN)[:4]))
    assert (whole.float() - wanted.cls).abs().max() < 2e-3
    item = CropDataset(images, 32, side=4, tokens=store)[2]
    assert torch.equal(item[IMAGE_TOKEN], whole[2])
    assert torch.allclose(class_tokens(images, teacher, 32, 32, torch.device("cpu"))[:4], wanted.cls, atol=1e-4)


def test_shown_whole_images_a_teacher_says_what_is_stored(images: ImageSet, teacher: Encoder, tmp_path: Path) -> None:
    """The two ways to a target: tokens in the batch, as on a CPU, and a teacher that sees its crops, as on a GPU.

    The student has 2 x 2 patches, the teacher 4 x 4.
    """
    store = filled(tmp_path / "tokens", images, teacher)
    crops = torch.stack([crop_image(images.read(row), WHOLE, 32) for row in range(4)])[:, None]
    carried = torch.stack([crop_tokens(store.read(TOKENS)[row], WHOLE, 2) for row in range(4)])
    stored = {TOKENS: carried, IMAGE_TOKEN: torch.from_numpy(np.array(store.read(IMAGE_TOKEN)[:4]))}
    whiten = whitening(torch.from_numpy(store.read(IMAGE_TOKEN).astype(np.float32)))
    mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 24, 1, 2)), DecoderSpec(16, 1, 2, token_width=24))
    recipe = PretrainRecipe(masking="random")
    given = PretrainTask(mae, recipe, lr=1.0, whiten=whiten)._tokens({"images": crops, **stored}, 2)
    task = PretrainTask(mae, recipe, lr=1.0, whiten=whiten, teacher=teacher, teacher_size=32)
    shown = task._tokens({"images": crops}, 2)
    for ours, theirs, spread in zip(shown, given, (1.0, float(whiten[1].norm())), strict=True):
        assert ours is not None and theirs is not None
        assert (ours.float() - theirs.float()).abs().max() < 2e-3 * spread


def test_whitened_tokens_are_as_far_apart_in_every_kept_direction() -> None:
    """Mean 0, a mean square of 1, the same variance in 64 orthogonal directions and none in others."""
    tokens = torch.randn(300, 80, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 80) + 5
    mean, matrix = whitening(tokens)
    white = ((tokens - mean) @ matrix).double()
    assert white.mean(0).abs().max() < 1e-4 and white.square().mean().item() == pytest.approx(1, rel=1e-3)
    variances = torch.linalg.eigvalsh(white.T @ white / 300).flip(0)
    assert torch.allclose(variances[:64], torch.full((64,), 80 / 64).double(), rtol=1e-2) and variances[64] < 1e-3
    assert torch.allclose(matrix, matrix.T, atol=1e-4)  # turned back: nearest to the tokens themselves


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_images_or_like_ones_there_are_fewer_directions(count: int) -> None:
    tokens = torch.randn(count, 24)
    for given in (tokens, tokens[:1].expand(count, -1)):
        mean, matrix = whitening(given)
        assert matrix.isfinite().all() and ((given - mean) @ matrix).square().mean() < 1.01
    if count > 1:  # of one there is no direction
        assert torch.linalg.matrix_rank(whitening(tokens)[1], rtol=1e-3) == count - 1


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_tokens_that_differ_by_rounding_alone_are_not_told_apart(count: int, length: float) -> None:
    """Whatever else is whitened by them, such as the crops of a single image, stays finite: it is 0."""
    generator = torch.Generator().manual_seed(count)
    tokens = (length * torch.randn(1, 24, generator=generator)).expand(count, -1)
    rounded = tokens * (1 + torch.finfo(torch.float32).eps * torch.randn(count, 24, generator=generator))
    for given in (tokens, rounded):
        mean, matrix = whitening(given)
        crops = given + length * torch.randn(count, 24, generator=generator)
        assert ((crops - mean) @ matrix).abs().max() == 0
    # What differs by more than that is whitened, however long the tokens are.
    apart = tokens + 1e-2 * length * torch.randn(count, 24, generator=generator)
    if count > 1:
        mean, matrix = whitening(apart)
        assert ((apart - mean) @ matrix).square().mean().item() == pytest.approx(1, rel=1e-2)


def teacher_input(teacher: Encoder, crops: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in (teacher.spec.mean, teacher.spec.std))
    return (crops / 255 - mean) / std


def test_crops_are_resized_to_what_the_teacher_is_shown(teacher: Encoder) -> None:
    crops = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    assert tokens_of(teacher, crops, 24).patches.shape == (2, 9, 24)
    assert tokens_of(teacher, crops, 32, grid=(5, 5)).patches.shape == (2, 25, 24)
    plain = torch.full((1, 3, 48, 48), 128, dtype=torch.uint8)  # resized, it is itself
    same = torch.full((1, 3, 24, 24), 128, dtype=torch.uint8)
    assert torch.allclose(tokens_of(teacher, plain, 24).cls, tokens_of(teacher, same, 24).cls, atol=1e-4)


def test_rows_that_are_there_are_kept(
    images: ImageSet, teacher: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some rows and begun again, the file is the same as one that was never stopped."""
    whole = np.array(filled(tmp_path / "once", images, teacher).read(TOKENS))
    real = teacher_tokens.tokens_of
    seen: list[int] = []

    def once(*arguments: object) -> Features:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher_tokens, "tokens_of", once)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "twice", images, teacher)
    store = token_store(tmp_path / "twice", images, teacher, 32, "float32")
    assert 0 < len(store.missing()) < len(images)
    monkeypatch.setattr(teacher_tokens, "tokens_of", real)
    assert (np.array(filled(tmp_path / "twice", images, teacher).read(TOKENS)) == whole).all()


def test_only_blocks_with_a_missing_row_are_computed(
    images: ImageSet, teacher: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_tokens, "_TOGETHER", 5)
    whole = filled(tmp_path / "once", images, teacher)
    some = np.array([row for row in range(len(images)) if row not in (7, 30)])
    store = token_store(tmp_path / "some", images, teacher, 32, "float32")
    store.begin()
    store.write(some, {name: np.array(whole.read(name)[some]) for name in (TOKENS, IMAGE_TOKEN)})
    shown: list[int] = []
    real = teacher_tokens.tokens_of

    def counted(teacher: Encoder, crops: torch.Tensor, *rest: int) -> Features:
        shown.append(len(crops))
        return real(teacher, crops, *rest)

    monkeypatch.setattr(teacher_tokens, "tokens_of", counted)
    assert (np.array(filled(tmp_path / "some", images, teacher).read(TOKENS)) == whole.read(TOKENS)).all()
    assert shown == [5, 2]  # of 32 images rows 5 to 9, 30 and 31


def test_a_teacher_that_gives_no_numbers_is_refused(images: ImageSet, teacher: Encoder, tmp_path: Path) -> None:
    assert isinstance(teacher.vit.norm, torch.nn.LayerNorm)
    torch.nn.init.constant_(teacher.vit.norm.weight, torch.inf)
    with refused("--teacher", "no numbers", "half precision"):
        filled(tmp_path / "tokens", images, teacher)
    for views in (False, True):
        with refused("--teacher", "no numbers", "half precision"):
            check_first(images, teacher, 32, views=views)


def test_keys_are_looked_at_where_parts_are_learned_of_them(images: ImageSet, teacher: Encoder) -> None:
    check_first(images, teacher, 32, views=True)
    with torch.no_grad():
        teacher.vit.blocks[0].attn.qkv.weight.mul_(1e6)
    check_first(images, teacher, 32)
    with refused("--teacher", "65504"):
        check_first(images, teacher, 32, views=True)


def test_whole_images_are_as_the_teacher_was_trained_but_of_224_pixels_at_most() -> None:
    assert usual_size(Encoder(EncoderSpec(32, 8, 24, 1, 2))) == 32
    assert usual_size(Encoder(EncoderSpec(518, 14, 24, 1, 2))) == 224
    assert usual_size(Encoder(EncoderSpec(480, 15, 24, 1, 2))) == 210


def test_the_mean_token_is_soon_beaten(images: ImageSet, teacher: Encoder, tmp_path: Path) -> None:
    """What knows nothing of an image predicts the same everywhere: at best the mean, by place in the grid too."""
    crops = CropDataset(images, 32, scale=(0.5, 1.0), side=4, tokens=filled(tmp_path / "tokens", images, teacher))
    batch = next(iter(make_loader(crops, len(images))))
    pixels, tokens = normalise(batch["images"][:, 0], teacher.spec.mean, teacher.spec.std), batch["tokens"]
    normal = torch.nn.functional.layer_norm(tokens.float(), (24,))
    baseline = masked_token_loss(normal.mean(0, keepdim=True).expand_as(normal), tokens)
    mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), DecoderSpec(32, 1, 4, token_width=24))
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    losses = []
    for _ in range(150):
        mask = random_mask(torch.rand(len(images), 16, generator=generator), 0.5)
        optimizer.zero_grad()
        loss = mae(pixels, mask, tokens=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1 > baseline
    assert sum(losses[-10:]) / 10 < 0.8 * baseline
