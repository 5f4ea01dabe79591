"""`semmae knn`: how well classes can be read off an encoder's features, without training anything."""

from pathlib import Path

from semmae.data.classes import open_sets, voters
from semmae.evaluation.features import View, encoder_facts, open_encoder, resolve_pooling
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.shape import measure
from semmae.objects import described
from semmae.options.fields import shared
from semmae.options.knn import KnnOptions
from semmae.reporting.results import write_measured
from semmae.reporting.run_page import write_report
from semmae.run.folder import run_folder
from semmae.train.precision import check_precision


def knn(options: KnnOptions) -> Path:
    """Measure an encoder by k-NN: classes are the first folders, or the label column."""
    check_precision(options.precision)
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    facts = encoder_facts(options.encoder, encoder)
    view = shared(
        View,
        options,
        image_size=options.image_size or encoder.spec.image_size,
        pooling=resolve_pooling(options.pooling, encoder),
    )
    protocol = Knn(view, options.k, options.temperature)
    sets = open_sets(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    data = voters(options.data, sets, limit=options.limit)
    with run_folder(options) as out:
        untrained = options.seed if options.untrained else None
        methods = measure(protocol, encoder, data, out, untrained_seed=untrained)
        about = {**protocol.describe(data), **facts, "data": described(options.data), "seed": options.seed}
        write_measured(out, about, methods, data.sets)
        write_report(out)
    return options.out
