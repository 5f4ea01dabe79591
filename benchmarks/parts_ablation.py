"""What each choice of stage 1 does to part quality: one row a choice, the mean over seeds, beside all baselines.

    python benchmarks/parts_ablation.py --images DIR --masks DIR --teachers T0 T1 T2 --image-size 64

A seed has a teacher of its own (the n-th of `--teachers`), which no learner changes: its tokens of a few fixed
views of every image are computed once, and each learner is trained on these. So a row takes seconds instead of
minutes. `semmae parts` draws new views every epoch; otherwise it is the same objective, learner and measure.
The last printed line is one JSON object; the same, with command and machine, is written to `--out`.
"""

import argparse
import dataclasses
import json
import logging
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from torch import Tensor

from semmae.data.loaders import CropDataset, WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.evaluation.parts import Truth, measure, read_truth, score
from semmae.formats.open import load_encoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, Features
from semmae.options.parts import PartsRecipe
from semmae.train.optimizer import adamw_warmup_cosine
from semmae.train.part_losses import parts_losses
from semmae.train.parts import BETAS
from semmae.train.schedules import warmup_cosine

VIEW_PAIRS = 2  # pairs of views of each image whose tokens are kept
GRID = 28
_log = logging.getLogger("semmae")

# Row → what it changes: fields of PartsSpec and PartsRecipe, and three choices that are neither.
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "as published: no agreement": {"agreement": 0.0},
    "agreement 1": {"agreement": 1.0},
    "agreement alone: no reconstruction, no diversity": {"reconstruct": False, "diversity": 0.0},
    "rate 1e-3": {"lr": 1e-3},
    "rate 1e-2": {"lr": 1e-2},
    "random start": {"random_start": True},
    "no blur": {"blur": 1},
    "no diversity": {"diversity": 0.0},
    "no background": {"background": False},
    "3 parts": {"num_parts": 3},
    "8 parts": {"num_parts": 8},
    "12 parts": {"num_parts": 12},
    "decoder 32 wide": {"decoder_width": 32},
    "decoder 192 wide": {"decoder_width": 192},
    "decoder without the class token": {"style": False},
    "features rebuilt instead of pixels": {"target": "features"},
    "with concentration 1": {"concentration": 1.0},
    "with total variation 0.1": {"total_variation": 0.1},
}


@dataclasses.dataclass(frozen=True)
class Views:
    """Pairs of views of every image, as tokens of one teacher: images (N, P, 3, S, S) uint8 of each first view."""

    cls: Tensor  # (N, P, 2, C)
    patches: Tensor  # (N, P, 2, L, C), float16
    crops: Tensor  # (N, P, 2, 5)
    images: Tensor
    whole: Features  # of the images that are measured


def main() -> None:
    """Tokens, learners, table, file."""
    options = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    images = open_images(options.images)
    truth = read_truth(images, masks=options.masks, limit=options.measured, seed=0)
    found: dict[str, list[dict[str, float]]] = {}
    for seed, teacher in enumerate(options.teachers):
        encoder = load_encoder(teacher, image_size=options.image_size).eval().requires_grad_(False)
        views = compute_views(encoder, images, truth, options, seed)
        for name, figures in baselines(encoder, images, truth, options, seed).items():
            found.setdefault(f"baseline: {name}", []).append(figures)
        for row in options.rows or ROWS:
            started = time.monotonic()
            figures = score(learn(encoder, views, ROWS[row], options, seed), truth)
            found.setdefault(row, []).append(figures)
            scores = f"NMI {figures['nmi']:.1f}, ARI {figures['ari']:.1f}"
            print(f"seed {seed}, {row}: {scores}, {time.monotonic() - started:.0f} s", flush=True)
    report = {name: _summary(rows) for name, rows in found.items()}
    content = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "results": report}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(report))


@torch.inference_mode()
def compute_views(encoder: Encoder, images: ImageSet, truth: Truth, options: argparse.Namespace, seed: int) -> Views:
    """The teacher's tokens of pairs of changed views to learn from, and of whole images to measure."""
    size, mean, std = options.image_size, encoder.spec.mean, encoder.spec.std
    crops = CropDataset(images, size, views=2, scale=(0.5, 1.0), seed=seed, colour=True, hue=options.hue)
    rows = list(range(0, len(images), max(1, len(images) // options.learned)))[: options.learned]
    keys = [(pair, row) for row in rows for pair in range(VIEW_PAIRS)]
    cls, patches, boxes, first = [], [], [], []
    for batch in make_loader(crops, 16, sampler=keys):
        seen = encoder.last_block_features(normalise(batch["images"].flatten(0, 1), mean, std))
        cls.append(seen.cls.unflatten(0, (-1, 2)))
        patches.append(seen.patches.half().unflatten(0, (-1, 2)))
        boxes.append(batch["crops"])
        first.append(batch["images"][:, 0])
    whole = [
        encoder.last_block_features(normalise(batch["image"], mean, std))
        for batch in make_loader(WholeDataset(images, size), 32, sampler=truth.rows)
    ]
    paired = (torch.cat(parts).unflatten(0, (-1, VIEW_PAIRS)).clone() for parts in (cls, patches, boxes, first))
    return Views(*paired, Features(*(torch.cat(parts).clone() for parts in zip(*whole, strict=True))))


def learn(
    encoder: Encoder, views: Views, changes: dict[str, Any], options: argparse.Namespace, seed: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Train a learner with the changes of a row; labels (N, 28, 28) of the measured images."""
    torch.manual_seed(seed)
    spec, recipe = (_changed(kind, changes) for kind in (PartsSpec, PartsRecipe))
    spec = dataclasses.replace(
        spec, width=encoder.width, patch_size=encoder.patch_size, head_dim=encoder.width // encoder.spec.num_heads
    )
    generator = torch.Generator().manual_seed(seed)
    learner = PartLearner(spec, None if changes.get("random_start") else encoder, generator)
    if changes.get("style") is False:
        decoder, blind = learner.decoder.forward, torch.zeros_like
        learner.decoder.forward = lambda maps, style: decoder(maps, blind(style))  # type: ignore[method-assign]
    train(learner, recipe, views, changes, options, generator, (encoder.spec.mean, encoder.spec.std))
    with torch.inference_mode():
        parts = [
            learner.labels(Features(cls, patches), GRID)
            for cls, patches in zip(views.whole.cls.split(64), views.whole.patches.split(64), strict=True)
        ]
    return torch.cat(parts).numpy()


def train(
    learner: PartLearner,
    recipe: PartsRecipe,
    views: Views,
    changes: dict[str, Any],
    options: argparse.Namespace,
    generator: torch.Generator,
    colours: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    """The optimisation of `semmae parts`, on tokens that are there already."""
    count, batch = len(views.images), 32
    total = options.epochs * (count // batch)
    warmup = round(recipe.warmup_share * total)
    optimizer: Any = adamw_warmup_cosine(
        learner,
        lr=recipe.lr,
        betas=BETAS,
        weight_decay=recipe.weight_decay,
        total_steps=total,
        warmup_steps=warmup,
    )["optimizer"]  # type: ignore[index, call-overload]
    for step in range(total):
        if step % (count // batch) == 0:
            order = torch.randperm(count, generator=generator)
        rows = order[step % (count // batch) * batch :][:batch]
        pair = step // (count // batch) % VIEW_PAIRS
        features = [Features(views.cls[rows, pair, view], views.patches[rows, pair, view].float()) for view in (0, 1)]
        losses = parts_losses(
            learner, recipe, normalise(views.images[rows, pair], *colours), features, views.crops[rows, pair]
        )
        loss = losses["loss"] - (0 if changes.get("reconstruct", True) else losses["loss_reconstruction"])
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warmup_cosine(step, total=total, warmup=warmup, start=1.0, end=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def baselines(
    encoder: Encoder, images: ImageSet, truth: Truth, options: argparse.Namespace, seed: int
) -> dict[str, dict[str, float]]:
    """`measure` of everything but learned parts."""
    with tempfile.TemporaryDirectory() as folder:
        store = PartStore.create(
            Path(folder), images=len(images), grid=GRID, label_names=PartsSpec(1, 1).label_names,
            teacher_digest="", learner_digest="", manifest_digest=images.digest,
        )  # fmt: skip
        store.labels[:] = 0  # `measure` wants learned parts too; they are measured elsewhere
        found = measure(
            store, images, encoder, truth, Path(folder) / "quality.json",
            size=options.image_size, batch_size=32, workers=0, seed=seed,
        )  # fmt: skip
    return {name: figures for name, figures in found.items() if name != "learned"}


def _changed(kind: Any, changes: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    required = {"width": 1, "patch_size": 1} if kind is PartsSpec else {}
    return kind(**required, **{name: value for name, value in changes.items() if name in known})


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    means = {key: round(statistics.mean(row[key] for row in rows), 2) for key in rows[0]}
    return means | {
        "nmi_of_seeds": [round(row["nmi"], 2) for row in rows],
        "ari_of_seeds": [round(row["ari"], 2) for row in rows],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, required=True, help="folder of their true parts")
    parser.add_argument("--teachers", nargs="+", required=True, help="one a seed, as for semmae parts --teacher")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--hue", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learned", type=int, default=600, help="images that are learned from, at most")
    parser.add_argument("--measured", type=int, default=400, help="images that are measured, at most")
    parser.add_argument("--rows", nargs="*", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parts_ablation.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
