"""`semmae probe`: how well a linear head on a frozen encoder classifies, by one of two protocols.

Their figures do not compare: crops shown 90 times teach a head more than one centre crop does, and a rate chosen
for this very encoder more than a fixed one.
"""

from dataclasses import replace
from pathlib import Path

from semmae.evaluation.features import open_encoder
from semmae.evaluation.protocols.mae_probe import MaeProbe
from semmae.evaluation.protocols.probe import Probe
from semmae.models.vit import Encoder
from semmae.options.fields import shared
from semmae.options.probe import USUAL_CROP_PCT, USUAL_EPOCHS, MaeProbeRecipe, ProbeOptions, ProbeRecipe
from semmae.run.config import kept_values
from semmae.run.folder import run_folder
from semmae.run.ranks import check_alone
from semmae.train.batches import Training
from semmae.verbs.measuring import divided, facts_of, measure_encoder, open_class_sets, view_of

_AT_A_TIME = 256  # images that the encoder sees when nothing is learned


def probe(options: ProbeOptions) -> Path:
    """Measure an encoder by a linear head on its features: MAE's linear probe, or a fast one."""
    if options.protocol == "features":  # which several devices compute, and one trains on
        check_alone(options.devices)
        Training.alone(options).check()
    else:
        shared(Training, options).check()
    encoder = open_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    return measure_encoder(
        run_folder(options),
        protocol_of(options, encoder),
        encoder,
        lambda: divided(options, open_class_sets(options, encoder.spec.channels)),
        facts_of(options, encoder),
        untrained=options.untrained,
    )


def protocol_of(options: ProbeOptions, encoder: Encoder) -> Probe | MaeProbe:
    """The protocol that was chosen."""
    crop_pct = options.crop_pct or USUAL_CROP_PCT[options.protocol]
    view = view_of(options, encoder, crop_pct=crop_pct, batch_size=min(options.batch_size, _AT_A_TIME))
    epochs = options.epochs or USUAL_EPOCHS[options.protocol]
    if options.protocol == "features":
        return Probe(view, epochs, shared(ProbeRecipe, options))
    view = replace(view, devices=1)  # the first of those that have trained measures
    training = shared(Training, options, hyperparameters=kept_values(options))
    return MaeProbe(view, training, epochs, shared(MaeProbeRecipe, options))
