"""What Lightning costs: the same steps through `fit`, as `semmae pretrain` trains, and through a plain loop.

    python benchmarks/lightning_cost.py [--rounds 5] [--steps 12] [--model vit_small] [--batch 16]

`fit` has its metrics, its files and its checks; the plain loop is that of examples/plain_loop.py. Both get the same
preloaded batches with part labels and take turns in one process; counted is the time from the end of the first step
to the end of the last, so neither building a Trainer nor saving a checkpoint. "ratio" is Lightning's seconds by the
plain loop's, the median over rounds; "processor_time_ratio" the same of the processor's time, which other work on the
machine disturbs less (on a CPU only). "tiny" is a model whose step takes milliseconds: there Lightning's cost shows
best, and "cost_ms" is what it adds to a step, of any model.
The last printed line is one JSON object; the same, with command and machine, is in
`benchmarks/results/lightning_cost.json`.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import DEVICE, median_ratio, per_second, write_results
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.tasks.masks import mask_seed
from semmae.tasks.optimizer import adamw, warmup_cosine_rate
from semmae.tasks.precision import resolve_precision
from semmae.tasks.pretrain import PretrainRecipe, PretrainTask
from semmae.tasks.trainer import FitOptions, fit

LABELS = 7
Moment = tuple[float, float]  # by the clock, and of the processor


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that the two take; the median counts")
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn")
    parser.add_argument("--model", default="vit_small", help="size of the encoder, at 224 pixels with patches of 16")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    options = parser.parse_args()
    figures: dict[str, Any] = {"precision": resolve_precision("auto"), "model": options.model, "batch": options.batch}
    figures |= compared(options.model, 224, 16, options.batch, options.steps, options.rounds)
    figures["tiny"] = compared("vit_tiny", 32, 8, 8, 5 * options.steps, 2 * options.rounds)
    write_results("lightning_cost", figures)


def compared(model: str, size: int, patch: int, batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Both ways in turn; one round before does not count."""
    batches = preloaded(size, patch, batch, steps)
    works: dict[str, Callable[[], list[Moment]]] = {
        "plain": lambda: by_plain_loop(new_model(model, size, patch), batches),
        "lightning": lambda: by_lightning(new_model(model, size, patch), batches),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            first, last = work()
            if turn:
                seconds[name].append((last[0] - first[0], last[1] - first[1]))
    wall, processor = ({name: [turn[kind] for turn in turns] for name, turns in seconds.items()} for kind in (0, 1))
    kind = wall if DEVICE.type == "cuda" else processor
    extra = statistics.median(ours - plain for ours, plain in zip(kind["lightning"], kind["plain"], strict=True))
    figures = {f"{name}_images_per_s": per_second(batch * (steps - 1), turns) for name, turns in wall.items()}
    figures["ratio"] = median_ratio(wall["lightning"], wall["plain"])
    if DEVICE.type == "cpu":
        figures["processor_time_ratio"] = median_ratio(processor["lightning"], processor["plain"])
    return {**figures, "cost_ms": round(1000 * extra / (steps - 1), 2)}


def new_model(model: str, size: int, patch: int) -> MaskedAutoencoder:
    """The same untrained one every time."""
    torch.manual_seed(0)
    return MaskedAutoencoder(Encoder(EncoderSpec.named(model, size, patch)), DECODERS[model]).to(DEVICE)


def preloaded(size: int, patch: int, batch: int, steps: int) -> list[dict[str, Tensor]]:
    """Batches as `CropDataset` makes them, of noise."""
    generator = torch.Generator().manual_seed(0)
    patches = (size // patch) ** 2
    images = [torch.randint(256, (batch, 1, 3, size, size), generator=generator).byte() for _ in range(min(steps, 8))]
    parts = [torch.randint(LABELS, (batch, patches), generator=generator) for _ in images]
    return [{"images": images[step % len(images)], "parts": parts[step % len(images)]} for step in range(steps)]


def by_lightning(mae: MaskedAutoencoder, batches: list[dict[str, Tensor]]) -> list[Moment]:
    """When the first and when the last step ended."""
    task = Timed(mae, PretrainRecipe(num_labels=LABELS), len(batches))
    loader: DataLoader[dict[str, Any]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as out:
        fit(task, loader, FitOptions(out=Path(out), stage="pretrain", epochs=1), resume=False)
    return task.moments


class Timed(PretrainTask):
    """Notes when the first and when the last of so many steps ends."""

    def __init__(self, mae: MaskedAutoencoder, recipe: PretrainRecipe, steps: int) -> None:
        super().__init__(mae, recipe)
        self.steps = steps
        self.moments: list[Moment] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """After all that Lightning and the meter do for a step."""
        if batch_index in (0, self.steps - 1):
            self.moments.append(now())


def by_plain_loop(mae: MaskedAutoencoder, batches: list[dict[str, Tensor]]) -> list[Moment]:
    """When the first and when the last step ended."""
    loss_of = load_example().masked_loss
    recipe, steps = PretrainRecipe(), len(batches)
    optimizer = adamw(mae, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
    rate = warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(recipe.warmup_share * steps))
    bf16 = resolve_precision("auto") == "bf16"
    moments = []
    loader: DataLoader[dict[str, Any]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    for step, crops in enumerate(loader):
        generator = torch.Generator(DEVICE).manual_seed(mask_seed(0, step, 0))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(mae, crops, step / steps, LABELS, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step in (0, steps - 1):
            moments.append(now())
    return moments


def load_example() -> Any:
    """examples/plain_loop.py as a module."""
    path = Path(__file__).parents[1] / "examples" / "plain_loop.py"
    spec = importlib.util.spec_from_file_location("plain_loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def now() -> Moment:
    """The time by the clock and of this process, after all that was started on the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
