"""Optimisation of segmentation: rates by layer, the loss over pixels with a class, the schedule."""

from pathlib import Path

import pytest
import tiny
import torch
from torch.nn import functional

import semmae
from semmae.formats.folders import save_encoder
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.optimizer import layer_decay_groups
from semmae.train.schedules import warmup_poly
from semmae.train.segment import pixel_loss

DEPTH = 4
GOLDEN = [2.72039104, 2.6719079, 2.64057899, 2.63727236, 2.58093262]


def test_rates_fall_from_the_head_down() -> None:
    """BEiT's rule: decay^(depth + 1 - layer), layer 0 the embedding, depth + 1 the head; no decay on norms, tokens."""
    encoder = Encoder(EncoderSpec(32, 8, width=24, depth=DEPTH, num_heads=2))
    net = Segmenter(encoder, SegmenterSpec(("a", "b"), "upernet", (0, 1, 2, 3), 8))
    groups = layer_decay_groups(net, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    of = {id(parameter): group for group in groups for parameter in group["params"]}  # type: ignore[attr-defined]
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert len(of) == len(trained) == sum(len(group["params"]) for group in groups)  # type: ignore[arg-type]
    for name, parameter in trained.items():
        parts = name.split(".")
        below = name.removeprefix("encoder.vit.")
        layer = DEPTH + 1
        if below.startswith("blocks."):
            layer = int(parts[3]) + 1
        elif below.startswith(("cls_token", "pos_embed", "patch_embed")):
            layer = 0
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(0.1 * 0.5 ** (DEPTH + 1 - layer)), name
        decays = parameter.ndim > 1 and below not in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0.05 if decays else 0.0), name
    assert groups[0]["lr"] == 0.1  # the one in the metrics


def test_loss_is_over_pixels_with_a_class() -> None:
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 8)).byte()
    labels[0, :5] = 255
    expected = functional.cross_entropy(logits, labels.long(), ignore_index=255)
    torch.testing.assert_close(pixel_loss(logits, labels), expected)
    pixel_loss(logits, labels).backward()
    assert logits.grad is not None and logits.grad[0, :, :5].abs().sum() == 0


def test_a_batch_without_any_class_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 8, 8), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and logits.grad.abs().sum() == 0


def test_rate_warms_up_and_falls_linearly() -> None:
    rates = [warmup_poly(step, total=110, warmup=10) for step in range(111)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert rates[10:] == pytest.approx([1 - step / 100 for step in range(101)])
    assert warmup_poly(60, total=110, warmup=10, power=2) == pytest.approx(0.25)
    assert warmup_poly(0, total=5, warmup=0) == 1


def test_the_first_losses_are_golden(creatures: Path, tmp_path: Path) -> None:
    """With UPerNet, the second head, and all that draws by chance: scales, crops, colours, drop path."""
    save_encoder(Encoder(EncoderSpec(32, 8, 48, DEPTH, 3)), tmp_path / "encoder")
    recipe = {"steps": 5, "lr": 1e-3, "decoder_channels": 8, "drop_path": 0.3, "pictures": 0}
    with tiny.every_step():
        semmae.segment(encoder=tmp_path / "encoder", data=creatures, out=tmp_path / "run", **recipe, **tiny.TRAIN)
    tiny.assert_golden(tmp_path / "run", GOLDEN)
