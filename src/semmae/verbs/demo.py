"""`semmae demo`: the whole way in minutes, on drawn creatures with known parts or on one's own folder."""

import dataclasses
from pathlib import Path

from semmae.data.classes import voters
from semmae.data.creatures import draw_creatures
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError
from semmae.evaluation.features import View, device_of, encoder_facts, open_encoder, raw_pixels
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.shape import measure
from semmae.evaluation.quality import read_annotations
from semmae.formats.public import public_teacher
from semmae.options.demo import DemoOptions
from semmae.options.fields import is_given, shared
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.options.values import check_image_size
from semmae.reporting.results import write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import claimed, run_folder
from semmae.verbs.pretrain import pretrain

_PUBLIC_SIZE = 112  # pixels of the images that the public teacher sees: 8 × 8 patches, in a quarter of the time of 224


def demo(options: DemoOptions) -> Path:
    """Show the whole way in minutes: teacher, parts, masked autoencoder, k-NN, report."""
    check_image_size(options.image_size, options.patch_size)
    if options.data is not None:
        images = open_images(options.data, limit=options.images, seed=options.seed, workers=options.workers)
        if options.masks is not None:
            read_annotations(images.names, options.masks)
    elif options.masks is not None:
        raise UserError(
            "--masks belongs to your own images, and drawn ones have theirs; give --data too, or leave it out"
        )
    options = with_teacher(options)
    if options.teacher == OWN_TEACHER:
        check_image_size(options.teacher_image_size, options.patch_size, "teacher_image_size")
    with run_folder(options):
        data, masks = options.data, options.masks
        if data is None:
            data, masks = _creatures(options)
        with claimed(pretrain_options(options, data, masks)) as stage:
            run = pretrain(stage)
        images = open_images(data, limit=options.images, seed=options.seed, workers=options.workers)
        if len(set(images.labels or ())) > 1:  # a single class has no wrong neighbour
            compare_knn(options, data, images, run)
        write_report(run)
    return options.out


def with_teacher(options: DemoOptions) -> DemoOptions:
    """The options with what --teacher auto becomes: on drawn images one's own, which needs no network."""
    if options.teacher != AUTO_TEACHER:
        return options
    teacher = OWN_TEACHER if options.data is None else public_teacher(AUTO_TEACHER, or_own=True)
    return dataclasses.replace(options, teacher=teacher)


def _creatures(options: DemoOptions) -> tuple[str, Path]:
    folder = options.out / "creatures"
    if not folder.exists():
        draw_creatures(folder, count=options.images, size=96, seed=options.seed)
    return str(folder / "images"), folder / "masks"


def pretrain_options(options: DemoOptions, data: str, masks: Path | None) -> PretrainOptions:
    """The run that the demo makes, in `run/` below its folder."""
    size: int | None = options.teacher_image_size
    if options.teacher != OWN_TEACHER and not is_given(options, "teacher_image_size"):
        size = _PUBLIC_SIZE if options.teacher == PUBLIC_TEACHER else None
    return shared(
        PretrainOptions,
        options,
        data=data,
        out=options.out / "run",
        masks=masks,
        teacher_image_size=size,
        limit=options.images,
        config=None,
        resume=options.resume and (options.out / "run" / "config.yaml").exists(),
        overwrite=False,
    )


def compare_knn(options: DemoOptions, data: str, images: ImageSet, run: Path) -> None:
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
