"""`semmae probe`: how well a linear head on a frozen encoder classifies, by one of two protocols.

Their figures do not compare: crops shown 90 times teach a head more than one centre crop does, and a rate chosen
for this very encoder more than a fixed one.
"""

from pathlib import Path

from semmae.data.classes import open_sets, train_val
from semmae.evaluation.features import View, encoder_facts, open_encoder, resolve_pooling
from semmae.evaluation.linear import EPOCHS
from semmae.evaluation.protocols import OWN, mae_probe, probe as fast_probe
from semmae.evaluation.protocols.mae_probe import MaeProbe
from semmae.evaluation.protocols.probe import Probe
from semmae.evaluation.protocols.shape import measure
from semmae.formats.folders import save_head
from semmae.models.vit import Encoder
from semmae.objects import described
from semmae.options.fields import shared
from semmae.options.probe import ProbeOptions, ProbeRecipe
from semmae.reporting.results import write_measured
from semmae.reporting.run_page import write_report
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import is_rank_zero
from semmae.train.batches import Training

_AT_A_TIME = 256  # images that the encoder sees when nothing is learned
_CROP_PCT = {"features": fast_probe.CROP_PCT, "mae": mae_probe.CROP_PCT}


def probe(options: ProbeOptions) -> Path:
    """Measure an encoder by a linear head on its features: MAE's linear probe, or a fast one."""
    shared(Training, options, config=kept_values(options)).check()
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    facts = encoder_facts(options.encoder, encoder)
    protocol = protocol_of(options, encoder)
    sets = open_sets(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    data = train_val(options.data, sets, val_share=options.val_share, limit=options.limit, seed=options.seed)
    protocol.check(data)
    with run_folder(options) as out:
        untrained = options.seed if options.untrained else None
        methods = measure(protocol, encoder, data, out, untrained_seed=untrained)
        if is_rank_zero():
            about = {**protocol.describe(data), **facts, "data": described(options.data), "seed": options.seed}
            head = methods[OWN].head
            assert head is not None, "a probe trains one"
            save_head(head, out / "head", about)
            write_measured(out, about, methods, data.sets)
            write_report(out)
    return options.out


def protocol_of(options: ProbeOptions, encoder: Encoder) -> Probe | MaeProbe:
    """The protocol that was chosen."""
    view = shared(
        View,
        options,
        image_size=options.image_size or encoder.spec.image_size,
        pooling=resolve_pooling(options.pooling, encoder),
        crop_pct=options.crop_pct or _CROP_PCT[options.protocol],
        batch_size=min(options.batch_size, _AT_A_TIME),
    )
    if options.protocol == "mae":
        training = shared(Training, options, config=kept_values(options))
        recipe, epochs = shared(ProbeRecipe, options), options.epochs or mae_probe.EPOCHS
        return shared(MaeProbe, options, view=view, training=training, recipe=recipe, epochs=epochs)
    return shared(Probe, options, view=view, epochs=options.epochs or EPOCHS)
