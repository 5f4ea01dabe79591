"""Sections of `gpu_check.py` that compute: products, losses, steps and what is in them. Each yields what it finds."""

import dataclasses
import gc
import importlib.metadata
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from contestants import BETAS, COMPILED, DECAY, MASK_RATIO, PARTS, RATE, Setting, flops_an_image, ours, profiled
from harness import DEVICE, back_to_back, machine, matrix_rate
from step import PEERS, compared, race
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from semmae.masking import num_hidden, semantic_mask
from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.compiling import compiled, missing_for_compile
from semmae.train.fsdp import shard
from semmae.train.optimizer import adamw
from semmae.train.precision import resolve_precision

GPU = DEVICE.type == "cuda"
BEST: Any = resolve_precision("auto")
Figures = Iterator[dict[str, Any]]
_NAMED = ("torch", "torchvision", "triton", "timm", "pytorch-lightning", "transformers", "lightly", "numpy", "pillow")


@dataclass(frozen=True)
class Sizes:
    """What everything is measured with."""

    tiny: bool = False
    model: str = "vit_base"
    size: int = 224
    batches: tuple[int, ...] = (512, 256, 1024)
    larger: tuple[str, ...] = ("vit_large", "vit_huge")
    larger_batch: int = 256
    steps: int = 20  # that are timed together
    sides: tuple[int, ...] = (8192, 16384)
    watched: str = "vit_small"  # how often is waited does not depend on the model
    rounds: int = 5
    compiled: tuple[bool, ...] = (True, False)
    photos: int = 2048
    copies: int = 32  # of their shards, which are links: 65,536 images
    photo: tuple[int, int] = (500, 375)
    workers: tuple[int, ...] = (1, 4, 8, 15)
    seconds: float = 3.0  # of loading
    stops: tuple[int, int] = (200, 240)  # steps at which the command is interrupted, for the first and the second time
    warm: int = 60  # steps of the command that do not count
    labelled: int = 512
    features: tuple[int, int, int] = (1_281_167, 384, 10_000)  # of k-NN: that vote, channels, queries


TINY = Sizes(
    tiny=True, model="vit_mini", size=32, batches=(4, 2), larger=("vit_tiny",), larger_batch=2, steps=2, sides=(64,),
    watched="vit_mini", rounds=1, compiled=(False,), photos=12, copies=3, photo=(64, 48), workers=(0,), seconds=0.1,
    stops=(20, 40), warm=0, labelled=4, features=(200, 8, 20),
)  # fmt: skip


def sizes_here(tiny: bool) -> Sizes:
    """Those of a GPU, or tiny ones. What is missing for compiling is not compiled."""
    if tiny or not GPU:
        return TINY
    return Sizes() if missing_for_compile(True) is None else dataclasses.replace(Sizes(), compiled=(False,))


def setting_of(sizes: Sizes, model: str, batch: int, compiling: bool) -> Setting:
    """What a contestant is given."""
    return Setting(model, batch, torch.get_num_threads(), compiling, sizes.size)


def facts(sizes: Sizes, _: Path) -> Figures:
    """Machine, versions, and what of a GPU figures depend on."""
    versions = {}
    for name in _NAMED:
        with suppress(importlib.metadata.PackageNotFoundError):  # it may have come under another name, as pillow-simd
            versions[name] = importlib.metadata.version(name)
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    yield {"tiny": sizes.tiny, "precision": BEST, **machine(), "versions": versions, "shared_gb": round(room / 1e9, 1)}
    if GPU:
        card = torch.cuda.get_device_properties(0)
        yield {
            "memory_gb": round(card.total_memory / 1e9, 1),
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
            "compiling_lacks": missing_for_compile(True),
        }


def products(sizes: Sizes, _: Path) -> Figures:
    """What the device multiplies and moves at most."""
    for dtype, sides in ((torch.bfloat16, sizes.sides), (torch.float32, sizes.sides[:1])):
        for side in sides:
            rate = matrix_rate(dtype, (side,), calls=20)
            yield {"dtype": str(dtype).removeprefix("torch."), "side": side, "tflops": round(rate / 1e12, 3)}
    numbers = torch.randn(sizes.sides[-1], sizes.sides[-1], device=DEVICE)
    copy = torch.empty_like(numbers)
    yield {"copied_gb_s": round(2 * numbers.nbytes / back_to_back(lambda: copy.copy_(numbers), 20) / 1e9, 1)}


def losses(sizes: Sizes, _: Path) -> Figures:
    """Four steps of the same training here and on the CPU, and how far apart their losses are, of one."""
    expected = losses_of(sizes, torch.device("cpu"), "float32")
    for precision in ("float32", "bf16"):
        found = losses_of(sizes, DEVICE, precision)
        yield {"precision": precision, "losses": found, "apart": apart(found, expected)}


def apart(found: list[float], expected: list[float]) -> float:
    """The largest difference, of one; no number where one of them is none."""
    return float(np.max(np.abs(np.subtract(found, expected) / expected)))


def losses_of(sizes: Sizes, device: torch.device, precision: str) -> list[float]:
    """Losses of the first steps."""
    torch.manual_seed(0)
    mae = new_mae(sizes, sizes.model).to(device)
    optimizer = adamw(mae, lr=RATE, betas=BETAS, weight_decay=DECAY)
    images, mask = (each.to(device) for each in drawn(sizes, 8))
    found = []
    for _ in range(4):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = mae(images, mask, None, num_hidden(mask.shape[1], MASK_RATIO)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def new_mae(sizes: Sizes, model: str) -> MaskedAutoencoder:
    """An untrained one."""
    return MaskedAutoencoder(Encoder(EncoderSpec.named(model, sizes.size, 16)), DECODERS[model])


def drawn(sizes: Sizes, batch: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, 3, S, S) and semantic masks (B, L) of stripes, the same on every machine."""
    generator, side = torch.Generator().manual_seed(0), sizes.size // 16
    images = torch.randint(256, (batch, 3, sizes.size, sizes.size), dtype=torch.uint8, generator=generator)
    labels = (torch.arange(side**2) % side * PARTS // side).expand(batch, -1)
    noise, order = (torch.rand(batch, count, generator=generator) for count in (side**2, PARTS))
    return images, semantic_mask(labels, noise, order, MASK_RATIO, 0.5)


def steps(sizes: Sizes, _: Path) -> Figures:
    """Images a second of steps without a loader: of ViT-B at three batches, of the larger ones, `--residual bf16`.

    Each is compiled anew, which takes longer than the steps do. So what matters most comes first, and what is not
    compiled before what would have to wait for it.
    """
    (first, *batches), (best, *ways) = sizes.batches, sizes.compiled
    for compiling in sizes.compiled:
        yield rate(sizes, sizes.model, first, compiling)
    for compiling in ways:
        for batch in batches:
            yield rate(sizes, sizes.model, batch, compiling)
    for model in sizes.larger:
        yield rate(sizes, model, sizes.larger_batch, best)
    for batch in batches:
        yield rate(sizes, sizes.model, batch, best)
    yield rate(sizes, sizes.model, first, best, bf16_residual=True)


def rate(sizes: Sizes, model: str, batch: int, compiling: bool, **ways: bool) -> dict[str, Any]:
    """Of steps back to back; `ways` are those of `ours`."""
    case = {"model": model, "batch": batch, "compiled": compiling, "precision": BEST, **ways}
    try:
        with_nothing()
        step = partial(ours(setting_of(sizes, model, batch, compiling), **ways), BEST)
        began = time.perf_counter()
        for _ in range(3):
            step()
        wait()
        first = time.perf_counter() - began
        images = batch / back_to_back(step, sizes.steps)
        peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0
    except torch.OutOfMemoryError:
        return {**case, "images_per_s": 0.0, "fault": "out of memory"}
    finally:
        COMPILED.close()
    flops = images * flops_an_image(model, sizes.size) / 1e12
    return {
        **case, "images_per_s": round(images, 1), "tflops": round(flops, 2), "peak_gb": round(peak, 1),
        "first_steps_s": round(first, 1),
    }  # fmt: skip


def wait() -> None:
    """For what the GPU was given."""
    if GPU:
        torch.cuda.synchronize()


def with_nothing() -> None:
    """Begin with an empty device, and nothing compiled."""
    COMPILED.close()
    torch._dynamo.reset()
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def profile(sizes: Sizes, _: Path) -> Figures:
    """Where the time of five steps goes, in microseconds an image."""
    with_nothing()
    batch = sizes.batches[0]
    step = ours(setting_of(sizes, sizes.model, batch, sizes.compiled[0]))
    for _ in range(3):
        step(BEST)
    seconds = profiled(step, BEST, steps=5)
    COMPILED.close()
    share = {kind: round(1e6 * found / batch / 5, 2) for kind, found in seconds.items()}
    whole = share.pop("step")
    if not any(share.values()):
        raise RuntimeError("the profiler has seen nothing of five steps; their kinds are not known")
    yield {"batch": batch, "step_us": whole, "kinds_us": share, "busy": round(sum(share.values()) / whole, 3)}


def peers(sizes: Sizes, _: Path) -> Figures:
    """Ours and the peers in turns, all compiled, and all not."""
    with_nothing()
    here = [name for name in PEERS if find_spec(name)]
    yield {"ratios": {}, "absent": [name for name in PEERS if name not in here]}
    if not here:
        return
    batch, each = sizes.batches[-2], 1 if sizes.tiny else 10
    for compiling in sizes.compiled:
        names = ("ours", *here)
        entrants: list[tuple[str, Any]] = [(name, BEST) for name in names]
        setting = setting_of(sizes, sizes.model, batch, False)
        seconds, _rates = race(setting, entrants, sizes.rounds, BEST, names if compiling else (), each)
        figures = compared(seconds, batch * each, entrants[0], dict(zip(here, entrants[1:], strict=True)))
        yield {"batch": batch, "compiled": compiling, **figures}


class Loss(nn.Module):
    """What DDP is to see: of a static graph it looks for tensors in what comes out, and there alone."""

    def __init__(self, mae: MaskedAutoencoder) -> None:
        super().__init__()
        self.mae = mae

    def forward(self, images: Tensor, mask: Tensor, count: int) -> Tensor:
        loss: Tensor = self.mae(images, mask, None, count).loss
        return loss


def sharing(sizes: Sizes, folder: Path) -> Figures:
    """The ways in which several devices train together, of one: what they cost, and how far apart losses are, of one.

    They are compared with those of steps alone that are not compiled, so that what is compiled is compared as well.
    """
    with_nothing()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl" if GPU else "gloo", store=store, rank=0, world_size=1)
    try:
        expected = shared(sizes, "alone", False)
        yield {"way": "alone", **expected}
        for way in ("alone", "ddp", "ddp, gradients in bf16", "fsdp")[not sizes.compiled[0] :]:
            found = shared(sizes, way, sizes.compiled[0])
            yield {"way": way, **found, "apart": apart(found["losses"], expected["losses"])}
    finally:
        torch.distributed.destroy_process_group()


def shared(sizes: Sizes, way: str, compiling: bool) -> dict[str, Any]:
    """Losses of the first steps, and images a second."""
    with_nothing()
    torch.manual_seed(0)
    mae, batch = new_mae(sizes, sizes.model).to(DEVICE), sizes.batches[-2]
    network: Any = Loss(mae)
    if way.startswith("ddp"):
        network = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)
        if way != "ddp":
            network.register_comm_hook(None, bf16_compress_hook)
    elif way == "fsdp":
        shard(mae, init_device_mesh(DEVICE.type, (1,)), bf16=BEST == "bf16")
    optimizer = adamw(mae, lr=RATE, betas=BETAS, weight_decay=DECAY)
    images, mask = (each.to(DEVICE) for each in drawn(sizes, batch))
    count, found = num_hidden(mask.shape[1], MASK_RATIO), []

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BEST == "bf16"):
            loss = network(images, mask, count)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())

    with compiled(mae, compiling):
        for _ in range(3):
            step()
        images_per_s = batch / back_to_back(step, sizes.steps)
    return {
        "batch": batch, "compiled": compiling, "losses": torch.stack(found[:3]).tolist(),
        "images_per_s": round(images_per_s, 1),
    }  # fmt: skip


def checkpointing(sizes: Sizes, _: Path) -> Figures:
    """The largest batch, whose activations are computed again, compiled and not."""
    for compiling in sizes.compiled:
        yield rate(sizes, sizes.model, sizes.batches[-1], compiling, checkpointing=True)
