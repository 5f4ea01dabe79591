"""`semmae knn`: how well classes can be read off an encoder's features, without training anything."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from semmae.data.manifest import ImageSet, write_skipped
from semmae.evaluation.accuracy import rank_report
from semmae.evaluation.knn import knn_ranks
from semmae.models.vit import Encoder
from semmae.options.knn import KnnOptions
from semmae.options.shared import FeatureOptions, NeighbourOptions
from semmae.reporting.results import write_results
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.train.precision import check_precision, resolve_precision
from semmae.verbs.features import (
    Look,
    check_classes,
    class_indices,
    device_of,
    feature_size,
    image_features,
    open_encoder,
    open_sets,
    pooled,
    pooling_for,
    told_encoder,
    untrained_like,
    warn_of_single_images,
)


def knn(options: KnnOptions) -> Path:
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""
    check_precision(options.precision)
    encoder = open_encoder(options)
    sets = open_knn_sets(options)
    with run_folder(options) as out:
        options = pooled(options)
        figures = knn_figures(options, encoder, sets)
        others = {}
        if options.untrained:
            others["untrained"] = knn_figures(options, untrained_like(encoder, options.seed), sets)
        write_results(out, knn_protocol(options, encoder, sets), figures, others)
        write_skipped(sets, out / "skipped.csv")
        write_report(out)
    return options.out


def open_knn_sets(options: FeatureOptions) -> list[ImageSet]:
    """The images that vote and those that ask; one set where --data has no splits: all but itself vote for each."""
    sets = open_sets(options)
    check_classes(options, sets)
    if len(sets) == 1:
        warn_of_single_images(options, sets[0])
    return sets


def knn_figures(options: NeighbourOptions, encoder: Encoder, sets: list[ImageSet]) -> dict[str, Any]:
    """`measure_knn` of an encoder that looks at the images for this alone."""
    return measure_knn(options, sets, partial(image_features, options, encoder), device_of(encoder))


def measure_knn(options: NeighbourOptions, sets: list[ImageSet], look: Look, device: torch.device) -> dict[str, Any]:
    """What val's neighbours in train tell of its classes, or every image's among all others.

    Args:
        options: tell k and temperature.
        sets: those that vote, and those that ask; one set does both.
        look: gives the features of a set.
        device: where the search is computed.
    """
    features = [look(images) for images in sets]
    targets, names = class_indices(sets)
    ranks = knn_ranks(
        features[0].to(device),
        targets[0],
        features[-1],
        targets[-1],
        num_classes=len(names),
        k=options.k,
        temperature=options.temperature,
        leave_one_out=len(sets) == 1,
    )
    report = rank_report(ranks, targets[-1], len(names))
    del report["per_class"]  # a thousand numbers, where one figure is asked for
    return {**report, "images": len(sets[-1]), "classes": len(names)}


def knn_protocol(options: NeighbourOptions, encoder: Encoder, sets: list[ImageSet]) -> dict[str, Any]:
    """How it is measured."""
    split = "leave one out" if len(sets) == 1 else f"{len(sets[0])} train, {len(sets[1])} val"
    return {
        "method": "k-NN, cosine similarity",
        "k": options.k,
        "temperature": options.temperature,
        "pooling": pooling_for(options),
        "image_size": feature_size(options, encoder),
        "crop_pct": options.crop_pct,
        "precision": resolve_precision(options.precision),
        "interval": "95 %, Wilson",
        "split": split,
        **told_encoder(options, encoder),
        "data": options.data,
        "seed": options.seed,
    }
