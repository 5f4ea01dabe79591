"""Blocks in bf16 on a CPU, against timm's own blocks."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from timm.layers.norm import LayerNorm, RmsNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from semmae.models import bf16
from semmae.models.blocks import run_block
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

NORM = partial(nn.LayerNorm, eps=1e-6)


def block(width: int = 48, heads: int = 3, **options: object) -> Block:
    torch.manual_seed(0)
    made = Block(width, heads, qkv_bias=True, norm_layer=NORM, **options)
    for parameter in made.parameters():  # norms and biases that do something
        nn.init.normal_(parameter, std=0.3)
    return made


def outcome(run: Callable[[Tensor], Tensor], module: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Output, and the gradients of inputs and parameters under a loss that weighs all outputs differently."""
    tokens = tokens.clone().requires_grad_()
    out = run(tokens)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    parameters = list(module.parameters())
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), [tokens, *parameters])]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest entry."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.fixture
def bf16_autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("count", [5, 50])
@pytest.mark.parametrize("heads", [1, 3])
def test_in_float32_output_and_every_gradient_are_those_of_timm(count: int, heads: int) -> None:
    module = block(heads=heads)
    tokens = torch.randn(4, count, 48, generator=torch.Generator().manual_seed(1))

    expected = outcome(module, module, tokens)
    found = outcome(lambda x: bf16.run_block(module, x, torch.float32), module, tokens)

    assert max(map(error, found, expected)) < 1e-5


def test_drop_path_leaves_out_what_timm_leaves_out() -> None:
    module = block(drop_path=0.5).train()
    tokens = torch.randn(8, 5, 48, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    expected = outcome(module, module, tokens)
    torch.manual_seed(2)
    found = outcome(lambda x: bf16.run_block(module, x, torch.float32), module, tokens)

    assert max(map(error, found, expected)) < 1e-5
    left = bf16.run_block(module.eval(), tokens, torch.float32)
    assert not torch.allclose(left, found[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert bf16.applies(module, tokens)


def test_in_bf16_the_errors_are_those_of_autocast() -> None:
    module = block(width=96)
    tokens = torch.randn(4, 50, 96, generator=torch.Generator().manual_seed(1))
    expected = outcome(module.double(), module, tokens.double())
    module.float()

    with torch.autocast("cpu", torch.bfloat16):
        plain = outcome(module, module, tokens)
        ours = outcome(partial(run_block, module), module, tokens)

    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))  # the faster way was gone
    for found, theirs, right in zip(ours, plain, expected, strict=True):
        # Rounding to 8 bits is noisy: of two equally good ways one may be a little further off.
        assert error(found, right) < max(2 * error(theirs, right), 0.02)


@pytest.mark.parametrize("together", [1, 2 * 3 * 17**2, 2**20])  # one sample at a time, two (of five), all
def test_samples_worked_on_together_change_nothing(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "_TOGETHER", together)
    qkv = torch.randn(5, 17, 72, dtype=torch.float64, requires_grad=True)
    query, key, value = qkv.view(5, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    expected = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    weights = torch.randn(5, 17, 24, dtype=torch.float64)

    found = bf16.attention(qkv, 3)

    assert torch.allclose(found, expected)
    assert torch.allclose(
        *(torch.autograd.grad((out * weights).sum(), qkv)[0] for out in (found, expected)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("rows", "out", "into"), [(1, 40, 3), (400, 40, 3), (400, 3, 40), (400, 20, 20)])
def test_the_gradient_of_a_weight_is_the_same_whichever_side_is_turned(rows: int, out: int, into: int) -> None:
    layer = nn.Linear(into, out).double()
    inputs = torch.randn(2, rows, into, dtype=torch.float64)

    expected = outcome(layer, layer, inputs)
    found = outcome(lambda x: bf16.linear(x, layer), layer, inputs)

    assert max(map(error, found, expected)) < 1e-6  # gradients of weights are handed over in float32


@pytest.mark.parametrize(
    "options", [{"init_values": 0.1}, {"qk_norm": True}, {"proj_drop": 0.1}, {"act_layer": nn.SiLU}]
)
@pytest.mark.usefixtures("bf16_autocast")
def test_a_block_of_another_kind_is_left_to_timm(options: dict[str, object]) -> None:
    assert bf16.applies(block(), torch.zeros(1, 2, 48))
    assert not bf16.applies(block(**options), torch.zeros(1, 2, 48))


class Scaled(nn.LayerNorm):
    """A layer norm that does something else beside it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * super().forward(tokens)


class Adapted(nn.Linear):
    """A linear layer with something beside it, as fine-tuning by adapters puts there."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + tokens.mean()


OTHER_LAYERS: dict[str, Callable[[Block], None]] = {
    "RMSNorm": lambda module: setattr(module, "norm2", RmsNorm(48)),
    "a norm that does more": lambda module: setattr(module, "norm1", Scaled(48)),
    "a norm without a bias": lambda module: setattr(module, "norm1", nn.LayerNorm(48, bias=False)),
    "a norm without anything": lambda module: setattr(module, "norm2", nn.LayerNorm(48, elementwise_affine=False)),
    "an adapter": lambda module: setattr(module.attn, "qkv", Adapted(48, 144)),
    "queries without a bias": lambda module: setattr(module.attn, "qkv", nn.Linear(48, 144, bias=False)),
    "heads without a bias": lambda module: setattr(module.attn, "proj", nn.Linear(48, 48, bias=False)),
    "a hidden layer without a bias": lambda module: setattr(module.mlp, "fc1", nn.Linear(48, 192, bias=False)),
    "an outer layer without a bias": lambda module: setattr(module.mlp, "fc2", nn.Linear(192, 48, bias=False)),
}


@pytest.mark.parametrize("kind", OTHER_LAYERS)
@pytest.mark.usefixtures("bf16_autocast")
def test_a_block_of_other_layers_is_left_to_timm(kind: str) -> None:
    module, tokens = block(), torch.randn(2, 5, 48)
    OTHER_LAYERS[kind](module)

    assert torch.equal(run_block(module, tokens), module(tokens))
    assert not bf16.applies(module, tokens)


@pytest.mark.parametrize("norm", [nn.LayerNorm, LayerNorm])
@pytest.mark.usefixtures("bf16_autocast")
def test_layer_norms_of_torch_and_of_timm_are_known(norm: type[nn.LayerNorm]) -> None:
    module, tokens = block(), torch.randn(2, 5, 48)
    module.norm1, module.norm2 = norm(48), norm(48)

    assert bf16.applies(module, tokens)
    assert error(run_block(module, tokens).detach(), module(tokens).detach()) < 0.02


@pytest.mark.usefixtures("bf16_autocast")
def test_a_block_with_hooks_is_left_to_timm_which_calls_them() -> None:
    module, seen = block(), []
    module.mlp.register_forward_hook(lambda *_: seen.append(1))

    run_block(module, torch.zeros(1, 2, 48))

    assert seen == [1]


@pytest.mark.usefixtures("bf16_autocast")
def test_frozen_layers_get_no_gradient_and_pass_it_on() -> None:
    module = block()
    tokens = torch.randn(2, 5, 48)
    expected = outcome(partial(run_block, module), module, tokens)[1]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    inputs = tokens.clone().requires_grad_()
    out = run_block(module, inputs)

    (found,) = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)

    assert torch.equal(found, expected)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.usefixtures("bf16_autocast")
def test_what_a_block_keeps_for_its_backward_pass() -> None:
    """Of each token two sums in float32, their means and deviations; in bf16 q, k, v, attended values, hidden units."""
    module = block()
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = run_block(module, torch.randn(2, 5, 48, requires_grad=True))

    assert sum(kept.values()) == 2 * 5 * (4 * 2 * (48 + 2) + 2 * (3 + 1 + 4) * 48)
    assert out.requires_grad


def test_without_gradients_or_autocast_the_block_is_left_to_timm() -> None:
    module, tokens = block(), torch.zeros(1, 2, 48)

    assert not bf16.applies(module, tokens)
    with torch.autocast("cpu", torch.float16):
        assert not bf16.applies(module, tokens)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert not bf16.applies(module, tokens)


def test_an_autoencoder_learns_alike_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        encoder = Encoder(EncoderSpec(image_size=32, patch_size=8, width=48, depth=2, num_heads=3))
        mae = MaskedAutoencoder(encoder, DecoderSpec(width=32, depth=2, num_heads=4))
        optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2)
        images = torch.randn(8, 3, 32, 32)
        found = []
        for _ in range(30):
            mask = torch.rand(8, 16).argsort(1).argsort(1) < 12
            with torch.autocast("cpu", torch.bfloat16):
                loss = mae(images, mask).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    ours = losses()
    monkeypatch.setattr(bf16, "applies", lambda *_: False)
    plain = losses()

    assert ours != plain and ours[-1] < 0.95 * ours[0]
    assert ours == pytest.approx(plain, rel=0.03)
