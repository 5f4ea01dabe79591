"""What each choice of `semmae pretrain` brings on small images within minutes of one core.

    OMP_NUM_THREADS=1 python benchmarks/small_data.py --data DIR --seconds 600 --seeds 0 1

DIR has the splits `train` and `val`, with classes. A row is the preset `small-images` with some of its options
changed, of those that need no parts. Every row has the same budget, in seconds of processor time: other load on the
machine takes none of it away, and a recipe whose steps are cheap makes more of them. Rate and warm-up follow the share
of the budget that is spent. Images are decoded once and kept in memory; otherwise this is the loop of
`semmae pretrain`.

Measured on the frozen encoder, class token and mean of the patch tokens, top-1 on `val`: k-NN (k = 20, temperature
0.07), and logistic regression on standardised features; beside the same encoder untrained, and raw pixels. The last
printed line is one JSON object; the same, with command and machine, is written to results/small_data.json.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from semmae.data.classes import class_indices
from semmae.data.crop import crop_image, random_crop
from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images, sample_rows
from semmae.evaluation.features import extract, raw_pixels
from semmae.evaluation.knn import knn_accuracy
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder, Features
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.train.masks import MaskContext, draw_mask
from semmae.train.optimizer import adamw
from semmae.train.precision import resolve_precision
from semmae.train.schedules import warmup_cosine
from semmae.verbs.pretrain import new_autoencoder

# Row → options of `semmae pretrain` that differ from the preset's.
ROWS: dict[str, dict[str, Any]] = {
    "preset": {},
    "mask ratio 0.75": {"mask_ratio": 0.75},
    "block masks": {"masking": "block"},
    "pixels as they are": {"norm_pix_loss": False},
    "MAE's rate": {"blr": 1.5e-4},
    "rate a third": {"blr": 1.3e-3},
    "rate times three": {"blr": 1.2e-2},
    "batches of 16": {"batch_size": 16},
    "batches of 256": {"batch_size": 256},
    "patches of 4": {"patch_size": 4},
    "images of 64, patches of 8": {"image_size": 64},
    "decoder 192 wide, 4 deep": {"decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6},
    "decoder 96 wide, 1 deep": {"decoder_depth": 1},
    "crops of half the image or more": {"crop_scale": 0.5},
}
_REGULARISATION = 0.01  # C of the logistic regression: with 10,000 images 0.01 · ½‖w‖² beside their mean loss

Figures = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What accuracy is measured on: images that train the classifiers, images that test them."""

    sets: tuple[ImageSet, ImageSet]
    rows: tuple[list[int], list[int]]
    classes: tuple[Tensor, Tensor]
    num_classes: int


def main() -> None:
    """Rows, seed by seed; table; file."""
    asked = arguments()
    sets = (open_images(asked.data, split="train"), open_images(asked.data, split="val"))
    measured = choose(sets, asked.measured)
    images = [sets[0].read(row) for row in sample_rows(len(sets[0]), asked.limit, 0)]
    found: dict[str, list[Figures]] = {"raw pixels": [accuracies(measured, pixels_of(measured))]}
    for seed in asked.seeds:
        for name in asked.rows or ROWS:
            options = row_options(name, seed)
            torch.manual_seed(seed)
            mae = new_autoencoder(options)
            sizes = f"untrained, images of {options.image_size}, patches of {options.patch_size}"
            if len(found.get(sizes, ())) < seed + 1:
                found.setdefault(sizes, []).append(accuracies(measured, features_of(mae, measured)))
            trained = train(mae, images, options, asked.seconds)
            found.setdefault(name, []).append({**trained, **accuracies(measured, features_of(mae, measured))})
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    harness.write_results("small_data", {name: summary(runs) for name, runs in found.items()})


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with the splits train and val, with classes")
    parser.add_argument("--seconds", type=float, default=600, help="of processor time for each row and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="default: all")
    parser.add_argument("--limit", type=int, default=25_000, help="images to pre-train on")
    parser.add_argument("--measured", type=int, default=10_000, help="training images that classifiers learn from")
    return parser.parse_args()


def row_options(name: str, seed: int) -> PretrainOptions:
    """The options of a row."""
    options: dict[str, Any] = {**preset_options("pretrain", "small-images"), **ROWS[name], "seed": seed}
    return PretrainOptions(data="", out=Path("unused"), **options)


def choose(sets: tuple[ImageSet, ImageSet], count: int) -> Measured:
    """So many training images, all images of the other split."""
    classes, names = class_indices(list(sets))
    rows = (sample_rows(len(sets[0]), count, 0), list(range(len(sets[1]))))
    chosen = (classes[0][rows[0]], classes[1][rows[1]])
    return Measured(sets, rows, chosen, len(names))


def train(mae: MaskedAutoencoder, images: list[Tensor], options: PretrainOptions, seconds: float) -> Figures:
    """Pre-train until so many seconds of processor time are spent; steps made, images a second, last loss."""
    spec, lr = mae.encoder.spec, options.blr * options.batch_size / 256
    optimizer = adamw(mae, lr=lr, betas=(0.9, 0.95), weight_decay=options.weight_decay)
    bf16 = resolve_precision(options.precision) == "bf16"
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, (spec.image_size // spec.patch_size) ** 2)
    losses: list[float] = []
    started = time.process_time()
    for batch in batches(images, options):
        spent = (time.process_time() - started) / seconds
        if spent >= 1:
            break
        share = warmup_cosine(
            round(spent * 1e6), total=10**6, warmup=round(options.warmup_share * 1e6), start=1.0, end=0.0
        )
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        mask = draw_mask(options.masking, MaskContext(shape, options.mask_ratio, spent, generator))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = mae(normalise(batch, spec.mean, spec.std), mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    per_second = len(losses) * options.batch_size / seconds
    return {"steps": len(losses), "images_per_second": per_second, "loss": statistics.mean(losses[-100:])}


def batches(images: list[Tensor], options: PretrainOptions) -> Iterator[Tensor]:
    """Random crops, uint8 (B, 3, S, S), epoch after epoch without end."""
    rng = np.random.default_rng(options.seed)
    scale = (options.crop_scale, 1.0)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - options.batch_size + 1, options.batch_size):
            chosen = [images[row] for row in order[start : start + options.batch_size]]
            crops = [random_crop(image.shape[1], image.shape[2], rng, scale) for image in chosen]
            yield torch.stack(
                [crop_image(image, crop, options.image_size) for image, crop in zip(chosen, crops, strict=True)]
            )


class Both(nn.Module):
    """Both poolings side by side as the class token, so that one pass over the images gives both."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Features:
        """Normalised images (B, 3, S, S) → class token and mean of the patch tokens, (B, 2·C), and patch tokens."""
        cls, patches = self.encoder(images)
        return Features(torch.cat([cls, patches.mean(1)], dim=1), patches)


def features_of(mae: MaskedAutoencoder, measured: Measured) -> dict[str, list[Tensor]]:
    """Class token and mean of the patch tokens, of both sets of images."""
    spec, both = mae.encoder.spec, Both(mae.encoder)
    found: dict[str, list[Tensor]] = {"cls": [], "mean": []}
    for images, rows in zip(measured.sets, measured.rows, strict=True):
        loader = make_loader(WholeDataset(images, spec.image_size, fit="centre"), 128, sampler=rows)
        vectors = extract(both, loader, mean=spec.mean, std=spec.std, total=len(rows))
        found["cls"].append(vectors[:, : spec.width])
        found["mean"].append(vectors[:, spec.width :])
    return found


def pixels_of(measured: Measured) -> dict[str, list[Tensor]]:
    """Images of 16 x 16 as vectors."""
    return {
        "pixels": [
            raw_pixels(make_loader(WholeDataset(images, 64, fit="centre"), 128, sampler=rows))
            for images, rows in zip(measured.sets, measured.rows, strict=True)
        ]
    }


def accuracies(measured: Measured, features: dict[str, list[Tensor]]) -> Figures:
    """Top-1 in percent of both classifiers on each kind of features."""
    found: Figures = {}
    classes = measured.classes
    for name, (train_features, test_features) in features.items():
        found[f"knn_{name}"] = knn_accuracy(
            train_features, classes[0], test_features, classes[1], num_classes=measured.num_classes
        )["top1"]
        found[f"probe_{name}"] = probe(train_features, classes[0], test_features, classes[1])
    return found


def probe(train_features: Tensor, train_classes: Tensor, features: Tensor, classes: Tensor) -> float:
    """Logistic regression on standardised features: top-1 in percent."""
    mean, deviation = train_features.mean(0), train_features.std(0) + 1e-6
    model = LogisticRegression(C=_REGULARISATION, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(((train_features - mean) / deviation).numpy(), train_classes.numpy())
    return 100 * float(model.score(((features - mean) / deviation).numpy(), classes.numpy()))


def summary(runs: list[Figures]) -> dict[str, Any]:
    """The mean over the seeds, and the figures of each."""
    mean = {name: round(statistics.mean(run[name] for run in runs), 3) for name in runs[0]}
    return {**mean, "runs": [{name: round(value, 3) for name, value in run.items()} for run in runs]}


if __name__ == "__main__":
    main()
