"""Nothing in a step asks the device for a value, which would be to wait for it; seen on a CPU by the operations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from tasks import TASKS
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from semmae.data.batching import collate
from semmae.data.colour import GLOBAL_CHANCES, PLAIN_CHANCES, draw_changes
from semmae.data.loaders import IMAGE_TOKEN, TOKENS
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainRecipe
from semmae.options.segment import SegmentRecipe
from semmae.options.teacher import TeacherRecipe
from semmae.train.batches import Training
from semmae.train.finetune import FinetuneTask
from semmae.train.pretrain import PretrainTask
from semmae.train.segment import SegmentTask
from semmae.train.stage import FitOptions
from semmae.train.teacher import TeacherTask
from semmae.train.trainer import fit

SPEC = EncoderSpec(image_size=16, patch_size=4, width=24, depth=2, num_heads=3)
STEPS, BATCH = 4, 4

_WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount"}
_READING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}


class Operations(TorchDispatchMode):
    """Notes operations whose result, or its size, has to be known on the CPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index_put")) and len(args) > 1 and isinstance(args[1], list | tuple)
        if name in _WAITING or (by_mask and any(_is_mask(index) for index in args[1])):
            self.found.append(f"aten::{name}")
        if name == "repeat_interleave" and not (kwargs or {}).get("output_size"):
            self.found.append(f"aten::{name}")
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Notes calls that read a tensor, or make one of numbers on a device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        sent = func in (torch.tensor, torch.as_tensor) and given.get("device") is not None
        if sent or name in _READING:
            self.found.append(name)
        return func(*args, **given)


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def noted() -> Iterator[list[str]]:
    """What waits for a device inside."""
    found: list[str] = []
    with Operations(found), Calls(found):
        yield found


class Look(pl.Callback):
    """Notes what waits from the second step on; at the end of an epoch losses are read."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._stack = ExitStack()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        if number == 1:
            self.found = self._stack.enter_context(noted())

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if number == STEPS - 2:
            self._stack.close()


def waits(task: pl.LightningModule, items: list[dict[str, Any]], out: Path) -> list[str]:
    """What waits for the device in the steps of an epoch, between two reports."""
    look = Look()
    loader: DataLoader[Any] = DataLoader(items, batch_size=BATCH, collate_fn=collate)  # type: ignore[arg-type]
    training = Training(resume=False, precision="float32", callbacks=(look,))
    fit(task, loader, FitOptions(training, out, "test", epochs=1, clip=3.0, clip_each=True))
    return look.found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: float(x),
        lambda x: bool(x > 0),
        lambda x: x.cpu(),
        lambda x: x.expand(2)[x.expand(2) > 0],
        lambda x: torch.zeros(2).masked_fill(x > 0, 1).nonzero(),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.expand(2).tolist(),
    ],
)
def test_what_waits_is_noted(wait: Callable[[Tensor], object]) -> None:
    x = torch.ones(())
    with noted() as found:
        torch.randn(3, 4).index_select(0, torch.tensor([1, 0])).softmax(1).sum()
        assert not found
        wait(x)
    assert found


@pytest.mark.parametrize(
    "changes",
    [{}, {"ibot": 0.0, "koleo": 0.0}, {"masking": "random", "shared_head": False}, {"centering": "sinkhorn"}],
)
def test_a_step_of_the_teacher_waits_for_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    task = TeacherTask(Encoder(SPEC), TeacherRecipe(prototypes=12, head_width=16, **changes), lr=1e-3)
    rng = np.random.default_rng(0)
    items = [
        {
            "images": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),
            "changes": draw_changes(rng, GLOBAL_CHANCES),
            "local": torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8),
            "local_changes": draw_changes(rng, [PLAIN_CHANCES] * 3),
        }
        for _ in range(STEPS * BATCH)
    ]
    assert set(waits(task, items, tmp_path)) == set()


def _autoencoder(token_width: int = 0) -> MaskedAutoencoder:
    return MaskedAutoencoder(Encoder(SPEC), DecoderSpec(16, 1, 2, token_width))


def _items(**more: Callable[[], Tensor]) -> list[dict[str, Any]]:
    def pictures() -> Tensor:
        return torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)

    every: Mapping[str, Callable[[], Tensor]] = {"images": pictures, **more}
    return [{name: draw() for name, draw in every.items()} for _ in range(STEPS * BATCH)]


@pytest.mark.parametrize(
    ("masking", "subset"), [*((name, None) for name in MASKINGS), ("semantic", 8), ("attention", 8)]
)
def test_a_step_of_pretraining_waits_for_nothing(masking: str, subset: int | None, tmp_path: Path) -> None:
    recipe = PretrainRecipe(masking=masking, mask_ratio=0.5, token_subset=subset)
    task = PretrainTask(_autoencoder(), recipe, lr=1e-3, label_names=list("abc"))
    items = _items(parts=lambda: torch.randint(0, 3, (16,)), attention=lambda: torch.rand(16))
    assert set(waits(task, items, tmp_path)) == set()


@pytest.mark.parametrize("stored", [True, False])
def test_nor_one_that_predicts_a_teachers_tokens(stored: bool, tmp_path: Path) -> None:
    given: dict[str, Any] = {"whiten": (torch.zeros(24), torch.eye(24))}
    more: dict[str, Callable[[], Tensor]] = {}
    if stored:
        more = {TOKENS: lambda: torch.randn(16, 24).half(), IMAGE_TOKEN: lambda: torch.randn(24).half()}
    else:
        given |= {"teacher": Encoder(SPEC), "teacher_size": 24}
    task = PretrainTask(_autoencoder(24), PretrainRecipe(masking="random", mask_ratio=0.5), lr=1e-3, **given)
    assert set(waits(task, _items(**more), tmp_path)) == set()


def test_a_step_of_fine_tuning_waits_for_nothing(tmp_path: Path) -> None:
    """Nor do erasing and mixing, which are timm's, with all that they draw."""
    recipe = FinetuneRecipe(erasing=0.9, mixup=0.8, cutmix=1.0, ema=0.9)
    task = FinetuneTask(Classifier(Encoder(SPEC), 3), recipe, lr=1e-3)
    items = [{"images": _picture(), "targets": torch.tensor(row % 3)} for row in range(STEPS * BATCH)]
    assert set(waits(task, items, tmp_path)) == set()


def test_a_step_of_segmentation_waits_for_nothing(tmp_path: Path) -> None:
    segmenter = Segmenter(Encoder(SPEC), SegmenterSpec(("a", "b", "c"), "linear", (), 16, auxiliary=False))
    task = SegmentTask(segmenter.train(), SegmentRecipe(), lr=1e-3)
    labels = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).repeat(16, 4)
    items = [{"images": _picture(), "labels": labels} for _ in range(STEPS * BATCH)]
    assert set(waits(task, items, tmp_path)) == set()


@pytest.mark.parametrize("name", ["parts", "published parts", "probe"])
def test_nor_does_any_other_step(name: str, tmp_path: Path) -> None:
    task, row = TASKS[name]()
    assert set(waits(task, [row(number) for number in range(STEPS * BATCH)], tmp_path)) == set()


def _picture() -> Tensor:
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)


def test_lightning_does_not_ask_every_device_for_signals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of several processes it would, at every step, and wait for the answer; `Signals` and `Vote` know."""
    asked: list[object] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda loop: asked.append(loop))
    seen: list[Callable[[], None]] = []

    class Ask(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seen.append(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)

    task = PretrainTask(_autoencoder(), PretrainRecipe(masking="random", mask_ratio=0.5), lr=1e-3)
    loader: DataLoader[Any] = DataLoader(_items(), batch_size=BATCH, collate_fn=collate)  # type: ignore[arg-type]
    fit(task, loader, FitOptions(Training(resume=False, callbacks=(Ask(),)), tmp_path, "test", 1, clip=0.0))
    seen[0]()
    assert asked == []
