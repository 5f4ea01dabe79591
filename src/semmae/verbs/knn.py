"""`semmae knn`: how well classes can be read off an encoder's features, without training anything."""

from pathlib import Path

from semmae.data.classes import voters
from semmae.evaluation.features import open_encoder
from semmae.evaluation.protocols.knn import Knn
from semmae.options.fields import shared
from semmae.options.knn import KnnOptions, KnnRecipe
from semmae.run.folder import run_folder
from semmae.run.ranks import check_alone
from semmae.train.precision import check_precision
from semmae.verbs.measuring import facts_of, measure_encoder, open_class_sets, view_of


def knn(options: KnnOptions) -> Path:
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""
    check_precision(options.precision)
    check_alone(options.devices)
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return measure_encoder(
        run_folder(options),
        Knn(view_of(options, encoder), shared(KnnRecipe, options)),
        encoder,
        lambda: voters(options.data, open_class_sets(options, encoder.spec.channels), limit=options.limit),
        facts_of(options, encoder),
        untrained=options.untrained,
    )
