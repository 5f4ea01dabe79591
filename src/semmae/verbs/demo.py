"""`semmae demo`: the whole way in minutes, on drawn creatures with known parts or on one's own folder."""

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from semmae.data.classes import TrainVal, voters
from semmae.data.creatures import draw_creatures
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.data.splits import folds
from semmae.errors import UserError
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.features import View, encoder_facts, image_features, open_encoder, raw_pixels, resolve_pooling
from semmae.evaluation.linear import probe_folds
from semmae.evaluation.protocols import OWN, PROTOCOLS, RAW, TEACHER, UNTRAINED
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.shape import Figures
from semmae.evaluation.quality import read_annotations
from semmae.formats.public import public_teacher
from semmae.models.fresh import fresh_like
from semmae.options.demo import DemoOptions
from semmae.options.fields import is_given, shared
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.options.values import check_image_size
from semmae.reporting.results import write_comparison
from semmae.reporting.run_page import write_report
from semmae.run.folder import claimed, run_folder
from semmae.sizes import Size
from semmae.verbs.pretrain import pretrain, teacher_size

_log = logging.getLogger("semmae")

_PUBLIC_SIZE = 112  # pixels of the images that the public teacher sees: 8 × 8 patches, in a quarter of the time of 224
_FOLDS = 4
_MEASURED = 2 * _FOLDS  # images at least
# Recipe of one's own images: on hundreds of photos a public encoder's tokens teach more than their pixels.
_PRESET = "small-photos"

# Of drawn creatures, which a small network learns in a minute: whole parts late, as long they teach it less.
_MASKS = {"gamma": 6.0, "mask_ratio": 0.6}


def demo(options: DemoOptions) -> Path:
    """Show the whole way in minutes: a first encoder, parts, masked autoencoder, k-NN, linear probe, report."""
    if options.data is not None:
        images = open_images(options.data, limit=options.images, seed=options.seed, workers=options.num_workers)
        if options.masks is not None:
            read_annotations(images.names, options.masks)
    elif options.masks is not None:
        raise UserError(
            "--masks belongs to your own images, and drawn ones have theirs; give --data too, or leave it out"
        )
    options = with_recipe(with_teacher(options))
    check_image_size(options.image_size, options.patch_size)
    if options.teacher == OWN_TEACHER:
        check_image_size(options.teacher_image_size, options.patch_size, "teacher_image_size")
    with run_folder(options):
        data, masks = options.data, options.masks
        if data is None:
            data, masks = _creatures(options)
        first = None
        if options.teacher == OWN_TEACHER:
            with claimed(first_options(options, data)) as stage:
                first = pretrain(stage)
        learned = pretrain_options(options, data, masks, first)
        with claimed(learned) as stage:
            run = pretrain(stage)
        images = open_images(data, limit=options.images, seed=options.seed, workers=options.num_workers)
        if len(set(images.labels or ())) > 1:  # a single class has no wrong neighbour
            if len(images) >= _MEASURED:
                compare(options, data, images, run, learned)
            else:
                _log.info("not measured by k-NN and probe: %d images, which takes %d", len(images), _MEASURED)
        write_report(run)
    return options.out


def with_teacher(options: DemoOptions) -> DemoOptions:
    """The options with what --teacher auto becomes: on drawn images one's own, which needs no network."""
    if options.teacher != AUTO_TEACHER:
        return options
    teacher = OWN_TEACHER if options.data is None else public_teacher(AUTO_TEACHER, or_own=True)
    return replace(options, teacher=teacher)


def with_recipe(options: DemoOptions) -> DemoOptions:
    """The options with those of the preset for photos that are not given, where a given encoder teaches."""
    if options.teacher == OWN_TEACHER:
        return options
    recipe = {
        name: value
        for name, value in preset_options("pretrain", _PRESET).items()
        if hasattr(options, name) and not is_given(options, name)
    }
    return replace(options, **recipe)


def _creatures(options: DemoOptions) -> tuple[str, Path]:
    folder = options.out / "creatures"
    if not folder.exists():
        draw_creatures(folder, count=options.images, size=96, seed=options.seed, patterned=True)
    return str(folder / "images"), folder / "masks"


def first_options(options: DemoOptions, data: str) -> PretrainOptions:
    """The autoencoder that hides patches at random, in `teacher/`: from its encoder parts are learned."""
    unread = {"teacher": AUTO_TEACHER, "teacher_image_size": None}
    return _stage(options, data, "teacher", masking="random", epochs=options.teacher_epochs, **unread)


def pretrain_options(options: DemoOptions, data: str, masks: Path | None, first: Path | None) -> PretrainOptions:
    """The run in `run/` below the folder of the demo, which begins with the first autoencoder, if there is one."""
    if first is not None:
        own = {"teacher": str(first), "init": str(first), "parts_preset": "small-drawings", **_MASKS}
        return _stage(options, data, "run", masks=masks, **own)
    size: Size | None = options.teacher_image_size
    if not is_given(options, "teacher_image_size"):
        size = _PUBLIC_SIZE if options.teacher == PUBLIC_TEACHER else None
    unshared = {
        name: value for name, value in preset_options("pretrain", _PRESET).items() if not hasattr(options, name)
    }
    return _stage(options, data, "run", masks=masks, teacher_image_size=size, preset=_PRESET, **unshared)


def _stage(options: DemoOptions, data: str, name: str, **own: object) -> PretrainOptions:
    out = options.out / name
    begun = options.resume and (out / "config.yaml").exists()
    common = {"data": data, "out": out, "limit": options.images, "config": None, "resume": begun, "overwrite": False}
    return shared(PretrainOptions, options, **{**common, "teacher_epochs": None, **own})


def compare(options: DemoOptions, data: str, images: ImageSet, run: Path, learned: PretrainOptions) -> None:
    """k-NN and a linear probe of the encoder and of what it is compared with, kept in `run`'s results.

    Beside it: the same encoder untrained, raw pixels, and the encoder that parts were learned from.
    """
    encoder, teacher = open_encoder(run), open_encoder(learned.teacher)
    view = View(encoder.spec.image_size, "mean", workers=options.num_workers)
    whole = make_loader(
        WholeDataset(images, view.image_size, fit="centre"), view.batch_size, workers=options.num_workers
    )
    beside = view
    if learned.init is None:  # a public one, not one trained here: shown what it was shown before, as it is used
        beside = replace(view, image_size=teacher_size(learned, teacher), pooling=resolve_pooling("auto", teacher))
    encoders = {OWN: (encoder, view), UNTRAINED: (fresh_like(encoder, options.seed), view), TEACHER: (teacher, beside)}
    features = {name: image_features(each, images, how) for name, (each, how) in encoders.items()}
    features[RAW] = raw_pixels(whole)
    asked = voters(data, [images], limit=options.images)
    knn = Knn(view)
    methods = {name: _figures(knn, found, asked, options.seed) for name, found in features.items()}
    split = f"each of {_FOLDS} parts of the images by a head that learned from the others"
    about = {
        **encoder_facts(str(run), encoder), "data": data, "seed": options.seed, "teacher": beside.describe(),
        "knn": knn.describe(asked), "probe": {"method": "linear probe", **view.describe(), "split": split},
    }  # fmt: skip
    write_comparison(run, about, methods)


def _figures(knn: Knn, features: Tensor, asked: TrainVal, seed: int) -> Figures:
    """Of features (N, C): every image classified by its neighbours, and by a linear head that has not seen it."""
    ranks = probe_folds(features, asked.train_targets, folds(asked.train.labels or (), _FOLDS, seed), seed=seed)
    found = {
        "knn": knn.figures(features, features, asked, features.device),
        "probe": class_figures(ranks, asked.train_targets, len(asked.classes)),
    }
    return {PROTOCOLS[name].prefix + key: value for name, figures in found.items() for key, value in figures.items()}
