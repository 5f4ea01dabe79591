"""MAE's linear probe: LARS by its formula, the head as the release has it, an encoder that nothing touches."""

import copy
import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

import semmae
from semmae.formats.folders import save_encoder
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.probe import MaeProbeRecipe
from semmae.train.probe import ProbeTask, lars

SPEC = EncoderSpec(16, 8, 16, 2, 2)
GOLDEN = [2.07682943, 2.11894608, 2.05093408, 2.10485578, 2.06976962]


def slow_lars(values: list[list[float]], gradients: list[list[list[float]]], rate: float) -> list[list[float]]:
    """A matrix after some steps, number by number: trust ratio 0.001 |w| / |g|, momentum 0.9, no weight decay."""
    speed = [[0.0 for _ in row] for row in values]
    for gradient in gradients:
        weight_norm = math.sqrt(sum(value**2 for row in values for value in row))
        slope_norm = math.sqrt(sum(value**2 for row in gradient for value in row))
        trust = 0.001 * weight_norm / slope_norm if weight_norm > 0 and slope_norm > 0 else 1.0
        for i, row in enumerate(values):
            for j in range(len(row)):
                speed[i][j] = 0.9 * speed[i][j] + trust * gradient[i][j]
                row[j] -= rate * speed[i][j]
    return values


def stepped(parameter: nn.Parameter, gradients: list[Tensor], rate: float) -> Tensor:
    module = nn.ParameterList([parameter])
    optimizer = lars(module, lr=rate)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["weights", "zeros"])
def test_matrices_follow_the_formula_of_lars(scale: float) -> None:
    """From zeros too: there the ratio is 1, as in the release."""
    start = scale * torch.randn(3, 4)
    gradients = [torch.randn(3, 4), torch.zeros(3, 4), 1e-6 * torch.randn(3, 4), 50 * torch.randn(3, 4)]
    expected = slow_lars(start.tolist(), [gradient.tolist() for gradient in gradients], rate=2.0)
    found = stepped(nn.Parameter(start.clone()), gradients, rate=2.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_biases_are_left_to_momentum_alone() -> None:
    start, gradients = torch.randn(5), [torch.randn(5) for _ in range(4)]
    plain = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([plain], lr=0.3, momentum=0.9)
    for gradient in gradients:
        plain.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(stepped(nn.Parameter(start.clone()), gradients, rate=0.3), plain.detach())


def test_the_head_begins_as_in_the_release() -> None:
    head = LinearHead(HeadSpec(2000, tuple(map(str, range(20)))))
    weight = head.linear.weight
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(head.linear.bias.detach().abs().max()) == 0
    assert not list(head.norm.parameters()), "the norm has no affine part"
    assert head.norm.eps == 1e-6


def test_a_step_sees_frozen_features_and_the_classes_of_its_rows() -> None:
    encoder, targets = Encoder(SPEC), torch.tensor([2, 0, 1, 1, 2, 0])
    head = LinearHead(HeadSpec(16, ("a", "b", "c"), "mean"))
    task = ProbeTask(encoder, head, targets, MaeProbeRecipe(), lr=6.4)
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign]  # there is no Trainer to log to
    task.train()
    before = copy.deepcopy(encoder.state_dict())
    rows = torch.tensor([4, 1, 3])
    images = torch.randint(256, (3, 1, 3, 16, 16), dtype=torch.uint8)

    loss = task.training_step({"images": images, "row": rows}, 0)["loss"]
    loss.backward()

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.spec.mean, encoder.spec.std))
    with torch.no_grad():
        pooled = encoder((images[:, 0] / 255 - mean) / std).patches.mean(1)
    centred = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-6).sqrt()
    logits = centred @ head.linear.weight.T + head.linear.bias
    expected = -logits.log_softmax(1)[torch.arange(3), targets[rows]].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert not encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert {name.split(".")[0] for name in task.state_dict()} == {"head"}, "a checkpoint holds the head alone"


def test_the_first_losses_are_golden(creatures: Path, tmp_path: Path) -> None:
    save_encoder(Encoder(EncoderSpec(32, 8, 48, 3, 3)), tmp_path / "encoder")
    recipe = {"protocol": "mae", "epochs": 2, "blr": 2.0}
    with tiny.every_step():
        semmae.probe(
            encoder=tmp_path / "encoder", data=creatures / "images", out=tmp_path / "run", **recipe, **tiny.TRAIN
        )
    tiny.assert_golden(tmp_path / "run", GOLDEN)
