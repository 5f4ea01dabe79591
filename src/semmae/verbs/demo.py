"""`semmae demo`: the whole way in minutes, on drawn creatures with known parts or on one's own folder."""

from pathlib import Path
from typing import Any

from semmae.data.classes import voters
from semmae.data.creatures import draw_creatures
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError
from semmae.evaluation.features import View, device_of, encoder_facts, open_encoder, raw_pixels
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.shape import measure
from semmae.evaluation.quality import read_masks
from semmae.options.demo import DemoOptions
from semmae.options.pretrain import PretrainOptions
from semmae.options.values import check_image_size
from semmae.reporting.ending import already_finished, end
from semmae.reporting.page import read_facts, with_intervals
from semmae.reporting.results import write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import owning_out, run_folder
from semmae.verbs.pretrain import whole_way

# Methods of quality.json that the table at the end shows.
PART_ROWS = {
    "learned": "learned parts",
    "heads": "attention heads",
    "kmeans": "k-means of tokens",
    "grid": "fixed grid",
    "bands": "horizontal bands",
}


def demo(options: DemoOptions) -> Path:
    """Show the whole way in minutes: teacher, parts, masked autoencoder, k-NN, report."""
    if not already_finished(options):
        end(options.out, whole_demo(options))
    return options.out


@owning_out
def whole_demo(options: DemoOptions) -> list[str]:
    """What `demo` does, but for what it shows at its end; returns its table."""
    for size in (options.image_size, options.teacher_image_size):
        check_image_size(size, options.patch_size)
    if options.data is not None:
        images = open_images(options.data, limit=options.images, seed=options.seed, workers=options.workers)
        if options.masks is not None:
            read_masks(images.names, options.masks)
    elif options.masks is not None:
        raise UserError(
            "--masks belongs to your own images, and drawn ones have theirs; give --data too, or leave it out"
        )
    with run_folder(options):
        data, masks = options.data, options.masks
        if data is None:
            data, masks = _creatures(options)
        run = whole_way(pretrain_options(options, data, masks))
        images = open_images(data, limit=options.images, seed=options.seed, workers=options.workers)
        measured: dict[str, Any] = {}
        if len(set(images.labels or ())) > 1:  # a single class has no wrong neighbour
            measured = compare_knn(options, data, images, run)
        write_report(run)
    return table(run, measured)


def _creatures(options: DemoOptions) -> tuple[str, Path]:
    folder = options.out / "creatures"
    if not folder.exists():
        draw_creatures(folder, count=options.images, size=96, seed=options.seed)
    return str(folder / "images"), folder / "masks"


def pretrain_options(options: DemoOptions, data: str, masks: Path | None) -> PretrainOptions:
    """The run that the demo makes, in `run/` below its folder."""
    return PretrainOptions(
        data=data,
        out=options.out / "run",
        masks=masks,
        limit=options.images,
        seed=options.seed,
        workers=options.workers,
        resume=options.resume and (options.out / "run" / "config.yaml").exists(),
        model=options.model,
        image_size=options.image_size,
        patch_size=options.patch_size,
        epochs=options.epochs,
        teacher_epochs=options.teacher_epochs,
        teacher_image_size=options.teacher_image_size,
        parts_epochs=options.parts_epochs,
        batch_size=options.batch_size,
        blr=options.blr,
    )


def compare_knn(options: DemoOptions, data: str, images: ImageSet, run: Path) -> dict[str, Any]:
    """Leave-one-out k-NN of the encoder, of the same encoder untrained, and of raw pixels, kept in `run`'s results."""
    encoder = open_encoder(run)
    protocol = Knn(View(encoder.spec.image_size, "mean", workers=options.workers))
    asked = voters(data, [images], limit=options.images)
    methods = measure(protocol, encoder, asked, run, untrained_seed=options.seed)
    figures = {name: measured.figures for name, measured in methods.items()}
    whole = WholeDataset(images, encoder.spec.image_size, fit="centre")
    pixels = raw_pixels(make_loader(whole, protocol.view.batch_size, workers=options.workers))
    figures["raw_pixels"] = protocol.figures(pixels, pixels, asked, device_of(encoder))
    about = {**protocol.describe(asked), **encoder_facts(str(run), encoder), "data": data, "seed": options.seed}
    write_results(run, about, figures[OWN], {name: found for name, found in figures.items() if name != OWN})
    return figures


def table(run: Path, methods: dict[str, Any]) -> list[str]:
    """The figures with which the demo ends: part quality and k-NN beside their baselines."""
    lines = ["", f"{'':24}{'NMI':>8}{'ARI':>8}"]
    quality = run / "parts" / "quality.json"
    if quality.exists():
        measured = read_facts(quality)
        for key, name in PART_ROWS.items():
            if {"nmi", "ari"} <= measured.get(key, {}).keys():
                lines.append(f"{name:24}{measured[key]['nmi']:8.1f}{measured[key]['ari']:8.1f}")
    else:
        lines = [""]
    if methods:
        lines += ["", f"{'k-NN, ' + str(methods[OWN]['classes']) + ' classes':24}{'top-1 %':>22}{'top-5 %':>22}"]
        named = {OWN: OWN, "untrained": "untrained encoder", "raw_pixels": "raw pixels"}
        for key, name in named.items():
            shown = with_intervals(methods[key])
            lines.append(f"{name:24}{shown['top1']:>22}{shown['top5']:>22}")
    return lines
