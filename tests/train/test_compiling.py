"""--compile: when it pays, what it needs, and that it changes no result."""

import sysconfig
from pathlib import Path

import pytest
import torch
from refusals import refused

from semmae.masking import random_mask
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.pretrain import PretrainRecipe
from semmae.train import compiling
from semmae.train.compiling import check_compile, compile_pays, missing_for_compile, resolve_compile
from semmae.train.pretrain import PretrainTask

TINY = EncoderSpec(image_size=16, patch_size=4, width=24, depth=1, num_heads=3)


def test_it_pays_on_a_gpu_in_a_long_run() -> None:
    assert compile_pays(gpu=True, steps=100_000)
    assert not compile_pays(gpu=True, steps=100)
    assert not compile_pays(gpu=False, steps=100_000)


@pytest.mark.parametrize("gpu", [True, False])
def test_what_is_missing_is_named(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    with refused("--compile on", "headers", "--compile off"):
        check_compile("on")

    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with refused("--compile on", "compiler"):
        check_compile("on")
    for choice in ("auto", "off"):
        check_compile(choice)  # type: ignore[arg-type]
        assert not resolve_compile(choice, steps=10**6)  # type: ignore[arg-type]


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert "Triton" in str(missing_for_compile(gpu=True))


def test_a_compiled_task_has_the_names_of_a_plain_one() -> None:
    mae = MaskedAutoencoder(Encoder(TINY), DecoderSpec(24, 1, 3))
    plain, compiled = (PretrainTask(mae, PretrainRecipe(), lr=1e-3, compiled=choice) for choice in (False, True))

    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in compiled.named_parameters()]


@pytest.mark.slow  # compiles
@pytest.mark.skipif(missing_for_compile(torch.cuda.is_available()) is not None, reason="nothing to compile with")
@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_losses_and_gradients_are_the_same(bf16: bool) -> None:
    torch.manual_seed(0)
    mae = MaskedAutoencoder(Encoder(TINY), DecoderSpec(24, 1, 3))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    mask = random_mask(torch.rand(4, 16), 0.75)
    found = []
    for compiled in (False, True):
        task = PretrainTask(mae, PretrainRecipe(masking="random"), lr=1e-3, compiled=compiled)
        mae.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task._forward(images, mask).loss
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in mae.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))

    (eager, ours), (compiled_loss, theirs) = found
    assert ours.keys() == theirs.keys()
    tolerance = 2e-2 if bf16 else 1e-5
    assert torch.allclose(eager, compiled_loss, rtol=tolerance)
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], rtol=tolerance, atol=tolerance * float(gradient.abs().max())), (
            name
        )


def test_a_run_that_cannot_compile_touches_nothing(
    creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import semmae

    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with refused("--compile on"):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", masking="random", compile="on")
    assert not (tmp_path / "run").exists()
