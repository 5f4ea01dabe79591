"""Features come in the order of the rows, from an encoder in evaluation mode, normalised as asked."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from semmae.evaluation.features import evaluating, extract, raw_pixels
from semmae.models.vit import Encoder, EncoderSpec, Features

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Means(nn.Module):
    """A fake encoder: class token = mean colour, patch tokens = the quarters' + 1; noisy in training."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Features:
        self.modes.append(self.training or torch.is_grad_enabled())
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        return Features(self.noise(images.mean((2, 3))), self.noise(quarters) + 1)


def pictures(count: int, size: int = 8) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=noise)


def shuffled(images: Tensor, batch_size: int = 4) -> Iterator[dict[str, Tensor]]:
    """Batches in random order, the last one short."""
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).split(batch_size):
        yield {"image": images[rows], "row": rows}


def test_rows_are_put_in_order_and_normalised() -> None:
    images = pictures(11)
    colours = images.double().mean((2, 3)) / 255
    expected = (colours - torch.tensor(MEAN)) / torch.tensor(STD)
    features = extract(Means(), shuffled(images), mean=MEAN, std=STD)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, expected.float(), rtol=1e-4, atol=1e-5)
    pooled = extract(Means(), shuffled(images), mean=MEAN, std=STD, pooling="mean")
    torch.testing.assert_close(pooled, expected.float() + 1, rtol=1e-4, atol=1e-5)


def test_rows_may_be_a_part_of_the_data() -> None:
    images = pictures(5)
    features = raw_pixels([{"image": images, "row": torch.tensor([40, 7, 22, 3, 9])}])
    sorted_images = images[[3, 1, 4, 2, 0]]
    torch.testing.assert_close(features, raw_pixels([{"image": sorted_images, "row": torch.arange(5)}]))


def test_the_encoder_is_evaluated_and_left_as_it_was() -> None:
    encoder = Means()
    encoder.noise.eval()
    extract(encoder, shuffled(pictures(6)), mean=MEAN, std=STD)
    assert encoder.modes == [False, False], "evaluation mode and no gradients"
    assert encoder.training and not encoder.noise.training
    with pytest.raises(KeyError), evaluating(encoder):
        raise KeyError
    assert encoder.training and not encoder.noise.training


def test_a_real_encoder_gives_what_it_gives_image_by_image() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)).eval()
    images = pictures(5, size=16)
    with torch.inference_mode():
        shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        alone = [encoder(((image / 255 - shift) / scale)[None]) for image in images]
    for pooling, expected in (
        ("cls", [features.cls[0] for features in alone]),
        ("mean", [features.patches[0].mean(0) for features in alone]),
    ):
        features = extract(encoder, shuffled(images, 2), mean=MEAN, std=STD, pooling=pooling)
        torch.testing.assert_close(features, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_raw_pixels_ignore_brightness_and_contrast() -> None:
    images = pictures(4, size=64) // 4
    plain = raw_pixels(shuffled(images))
    assert plain.shape == (4, 3 * 16 * 16)
    torch.testing.assert_close(plain.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.std(1, correction=0), torch.ones(4))
    torch.testing.assert_close(raw_pixels(shuffled(images * 3 + 20)), plain, rtol=1e-4, atol=1e-4)
    means = images.double().view(4, 3, 16, 4, 16, 4).mean((3, 5)).flatten(1)
    standard = (means - means.mean(1, keepdim=True)) / means.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(plain, standard.float(), rtol=1e-4, atol=1e-4)


def test_a_single_colour_gives_zeros() -> None:
    images = torch.full((2, 3, 20, 20), 77, dtype=torch.uint8)
    assert raw_pixels(shuffled(images)).abs().max() < 0.1


def test_a_row_that_comes_twice_is_refused() -> None:
    batch = {"image": pictures(2), "row": torch.tensor([1, 1])}
    with pytest.raises(AssertionError, match="twice"):
        raw_pixels([batch])


def test_progress_is_silent_when_short(capsys: pytest.CaptureFixture[str]) -> None:
    raw_pixels(shuffled(pictures(3)), total=3)
    assert capsys.readouterr() == ("", "")
