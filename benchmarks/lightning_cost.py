"""What Lightning costs: the same steps through `fit`, as `semmae pretrain` trains, and through a plain loop.

    python benchmarks/lightning_cost.py [--rounds 5] [--steps 12] [--model vit_small] [--batch 16]

`fit` has its metrics, its files and its checks; the plain loop is that of examples/plain_loop.py. Both get the same
preloaded batches with part labels and take turns in one process; counted is the time from the end of the first step
to the end of the last, so neither building a Trainer nor saving a checkpoint.

- "ratio": Lightning's seconds by the plain loop's, the median over rounds;
- "step_ms": a step of the plain loop; "cost_ms": what Lightning adds to it, the median over rounds;
- "processor": the same three of the processor's time, all threads together, which other work on the machine disturbs
  less (on a CPU only).

"small" holds three models whose steps take some 10, 30 and 100 ms on one core, on one thread: what Lightning adds to
a step hardly depends on the model, so that its share is large where the step is short.
The last printed line is one JSON object; the same, with command and machine, is in
`benchmarks/results/lightning_cost.json`.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import DEVICE, median_ratio, per_second, turned, write_results
from torch import Tensor
from torch.utils.data import DataLoader

from semmae.memory import keep_freed_memory
from semmae.models.mae import DECODERS, DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.pretrain import PretrainRecipe
from semmae.train.batches import Training
from semmae.train.masks import mask_seed
from semmae.train.optimizer import adamw, warmup_cosine_rate
from semmae.train.precision import resolve_precision
from semmae.train.pretrain import BETAS, PretrainTask
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit

LABELS = 7
RATE = 1.5e-4  # MAE's, of 256 images
Moment = tuple[float, float]  # by the clock, and of the processor


@dataclass(frozen=True)
class Case:
    """A model, and the batches it is trained on."""

    encoder: EncoderSpec
    decoder: DecoderSpec
    batch: int
    steps: int

    def new_model(self) -> MaskedAutoencoder:
        """The same untrained one every time."""
        torch.manual_seed(0)
        return MaskedAutoencoder(Encoder(self.encoder), self.decoder).to(DEVICE)


# Images of 32 pixels in 16 patches, 8 in a batch; so many steps that a turn takes seconds.
SMALL = {
    "64 wide, 2 + 1 blocks": Case(EncoderSpec(32, 8, 64, 2, 2), DecoderSpec(64, 1, 2), 8, 101),
    "128 wide, 5 + 2 blocks": Case(EncoderSpec(32, 8, 128, 5, 2), DecoderSpec(128, 2, 2), 8, 61),
    "vit_tiny": Case(EncoderSpec.named("vit_tiny", 32, 8), DECODERS["vit_tiny"], 8, 31),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that the two take; the median counts")
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn")
    parser.add_argument("--model", default="vit_small", help="size of the encoder, with patches of 16")
    parser.add_argument("--size", type=int, default=224, help="pixels a side; less than 224 only to try the script")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    options = parser.parse_args()
    keep_freed_memory()  # as `fit` does, so that no turn is without
    encoder = EncoderSpec.named(options.model, options.size, 16)
    case = Case(encoder, DECODERS[options.model], options.batch, options.steps)
    figures: dict[str, Any] = {"precision": resolve_precision("auto"), "model": options.model, "batch": options.batch}
    figures |= compared(case, options.rounds)
    torch.set_num_threads(1)
    figures["small"] = {name: compared(case, 2 * options.rounds) for name, case in SMALL.items()}
    write_results("lightning_cost", figures)


def compared(case: Case, rounds: int) -> dict[str, Any]:
    """Both ways in turn; two rounds before do not count."""
    batches = preloaded(case)
    works: dict[str, Callable[[MaskedAutoencoder, list[dict[str, Tensor]]], list[Moment]]] = {
        "plain": by_plain_loop,
        "lightning": by_lightning,
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name in turned(list(works), turn):
            first, last = works[name](case.new_model(), batches)
            if turn >= 2:
                seconds[name].append((last[0] - first[0], last[1] - first[1]))
    wall, processor = ({name: [turn[kind] for turn in turns] for name, turns in seconds.items()} for kind in (0, 1))
    steps = case.steps - 1
    figures: dict[str, Any] = {f"{name}_images_per_s": per_second(case.batch * steps, wall[name]) for name in wall}
    figures |= beside_plain(wall, steps)
    return figures | ({"processor": beside_plain(processor, steps)} if DEVICE.type == "cpu" else {})


def beside_plain(seconds: dict[str, list[float]], steps: int) -> dict[str, float]:
    """Lightning's seconds by the plain loop's, and in milliseconds a step what it takes and what Lightning adds."""
    extra = statistics.median(ours - plain for ours, plain in zip(seconds["lightning"], seconds["plain"], strict=True))
    return {
        "ratio": median_ratio(seconds["lightning"], seconds["plain"]),
        "step_ms": round(1000 * statistics.median(seconds["plain"]) / steps, 2),
        "cost_ms": round(1000 * extra / steps, 2),
    }


def preloaded(case: Case) -> list[dict[str, Tensor]]:
    """Batches as `CropDataset` makes them, of noise."""
    generator = torch.Generator().manual_seed(0)
    size, count = case.encoder.image_size, min(case.steps, 8)
    patches = (size // case.encoder.patch_size) ** 2
    images = [torch.randint(256, (case.batch, 1, 3, size, size), generator=generator).byte() for _ in range(count)]
    parts = [torch.randint(LABELS, (case.batch, patches), generator=generator) for _ in images]
    return [{"images": images[step % count], "parts": parts[step % count]} for step in range(case.steps)]


def by_lightning(mae: MaskedAutoencoder, batches: list[dict[str, Tensor]]) -> list[Moment]:
    """When the first and when the last step ended."""
    task = Timed(mae, PretrainRecipe(), len(batches))
    loader: DataLoader[dict[str, Any]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as out:
        fit(task, loader, FitOptions(Training(resume=False), Path(out), "pretrain", epochs=1, clip=0.0))
    return task.moments


class Timed(PretrainTask):
    """Notes when the first and when the last of so many steps ends."""

    def __init__(self, mae: MaskedAutoencoder, recipe: PretrainRecipe, steps: int) -> None:
        super().__init__(mae, recipe, lr=RATE, label_names=[str(label) for label in range(LABELS)])
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
    optimizer = adamw(mae, lr=RATE, betas=BETAS, weight_decay=recipe.weight_decay)
    rate = warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(recipe.warmup_share * steps))
    bf16 = resolve_precision("auto") == "bf16"
    moments = []
    loader: DataLoader[dict[str, Any]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    for step, crops in enumerate(loader):
        generator = torch.Generator(DEVICE).manual_seed(mask_seed(0, step, 0))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(mae, crops, step / steps, LABELS, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
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
