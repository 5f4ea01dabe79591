"""--compile: when it pays, what it needs, and that it changes no result."""

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from refusals import refused
from torch import Tensor, distributed, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from semmae.data.loaders import normalise
from semmae.masking import random_mask
from semmae.models.classifier import Classifier, set_drop_path
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.options.teacher import TeacherRecipe
from semmae.train import compiling
from semmae.train.compiling import check_compile, compile_pays, compiled, missing_for_compile, resolve_compile
from semmae.train.finetune import FinetuneTask
from semmae.train.teacher import TeacherTask

TINY = EncoderSpec(image_size=16, patch_size=4, width=24, depth=3, num_heads=3)


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


def tiny_mae() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(Encoder(TINY), DecoderSpec(24, 2, 3))


def tiny_finetuning() -> FinetuneTask:
    """Its blocks are left out more and more often."""
    torch.manual_seed(0)
    classifier = Classifier(Encoder(TINY), 5)
    set_drop_path(classifier.vit, 0.2)
    return FinetuneTask(classifier, FinetuneRecipe(), lr=1e-3)


def tiny_teacher() -> TeacherTask:
    torch.manual_seed(0)
    recipe = TeacherRecipe(prototypes=16, head_width=16, ibot=0.0, koleo=0.0)
    return TeacherTask(Encoder(TINY), recipe, lr=1e-3)


def mae_loss(mae: nn.Module, batch: int) -> Tensor:
    mask = random_mask(torch.rand(4, 16, generator=torch.Generator().manual_seed(batch)), 0.75)
    loss: Tensor = mae(_decoded(batch), mask, None, 12).loss
    return loss


def class_loss_of(task: nn.Module, batch: int) -> Tensor:
    assert isinstance(task, FinetuneTask)
    loss: Tensor = task.classifier(task.pixels(_decoded(batch))).square().mean()
    return loss


def _decoded(batch: int) -> Tensor:
    return torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(batch))


def teacher_loss(task: nn.Module, batch: int) -> Tensor:
    assert isinstance(task, TeacherTask)
    crops = task.pixels(_decoded(batch))
    task.teacher(crops)
    loss: Tensor = task.student(crops).cls.mean() + task.student(crops[..., :8, :8]).cls.mean()
    return loss


TRAINED: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], int]] = {
    "pretrain": (tiny_mae, mae_loss, 5),  # two kinds of blocks, three regions
    "finetune": (tiny_finetuning, class_loss_of, 4),  # a block each, for each is left out otherwise, and pixels
    "teacher": (
        tiny_teacher,
        teacher_loss,
        4,
    ),  # the student's, for two sizes, and pixels; the teacher's, without gradients
}


@pytest.fixture
def graphs() -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled, to be run as it is; and nothing else has been counted."""
    torch._dynamo.reset()
    counters.clear()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


_SLOW = pytest.mark.slow  # compiles


@pytest.mark.parametrize(
    ("name", "bf16"),
    [("pretrain", False), *(pytest.param(name, bf16, marks=_SLOW) for name in TRAINED for bf16 in (False, True)
                            if (name, bf16) != ("pretrain", False))],
)  # fmt: skip
def test_no_graph_breaks_and_none_is_made_anew_between_steps(
    name: str, bf16: bool, graphs: CompileCounterWithBackend
) -> None:
    made, loss_of, most = TRAINED[name]
    network = made()
    found = []
    with compiled(network, backend=graphs), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for step in range(3):
            loss_of(network, step).backward()
            found.append(graphs.frame_count)
    assert found == [most, most, most]
    assert not counters["graph_break"]


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nor_inside_ddp_of_several_buckets_or_around_checkpoints(
    checkpointing: bool, graphs: CompileCounterWithBackend
) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mae, plain = tiny_mae(), tiny_mae()
        mae.checkpointing = checkpointing
        wrapped = DistributedDataParallel(mae, bucket_cap_mb=0.01, static_graph=True, gradient_as_bucket_view=True)
        with compiled(mae, backend=graphs):
            for step in range(3):
                for network in (wrapped, plain):
                    network.zero_grad()
                    mae_loss(network, step).backward()
                assert graphs.frame_count == 5
                for (_, ours), (label, theirs) in zip(mae.named_parameters(), plain.named_parameters(), strict=True):
                    if theirs.grad is not None:
                        assert ours.grad is not None
                        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7), label
        assert not counters["graph_break"]
    finally:
        distributed.destroy_process_group()


def test_what_was_compiled_is_plain_again_and_has_kept_its_names() -> None:
    mae = tiny_mae()
    names = list(mae.state_dict())
    with compiled(mae, backend="eager"):
        assert list(mae.state_dict()) == names and "forward" in vars(mae.encoder.vit.blocks[0])
    assert not {"forward", *mae.REGIONS} & (vars(mae).keys() | vars(mae.encoder.vit.blocks[0]).keys())


def test_images_as_decoded_are_normalised_in_the_network() -> None:
    mae = tiny_mae()
    images = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8).movedim(-1, 1)
    mask = random_mask(torch.rand(4, 16), 0.75)
    assert torch.equal(mae(images, mask).loss, mae(normalise(images, TINY.mean, TINY.std), mask).loss)


@pytest.mark.slow  # compiles
@pytest.mark.skipif(missing_for_compile(torch.cuda.is_available()) is not None, reason="nothing to compile with")
@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_losses_and_gradients_are_the_same(bf16: bool) -> None:
    mae = tiny_mae()
    found = []
    for on in (False, True):
        mae.zero_grad()
        with compiled(mae, on), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = mae_loss(mae, 0)
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
