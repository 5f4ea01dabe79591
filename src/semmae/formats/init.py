"""`--init`: to begin with weights that are already there, of an encoder or of a whole masked autoencoder."""

import logging

from torch import nn

from semmae.errors import UserError
from semmae.formats.open import find_decoder, load_encoder, load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import MODELS, Encoder, EncoderSpec
from semmae.models.weights import NORM_EPS, norm_epsilons, set_norm_eps
from semmae.options.shared import SizeOptions

_LOG = logging.getLogger("semmae")


def init_encoder(init: str, options: SizeOptions, num_heads: int | None) -> Encoder:
    """The encoder of --init, its positions resampled to this run's image size.

    Raises:
        UserError: there is none, or it is of another size than the options tell.
    """
    encoder = load_encoder(init, num_heads=num_heads)
    _check_sizes(init, encoder, options)
    encoder.set_image_size(options.image_size)
    _usual_norms(init, encoder)
    return encoder


def init_autoencoder(
    init: str, options: SizeOptions, decoder: DecoderSpec, norm_pix_loss: bool, num_heads: int | None
) -> MaskedAutoencoder:
    """The encoder of --init with the decoder that lies beside it if it is of these sizes, else with a new one.

    A new decoder draws from torch's global generator, as every new network.

    Args:
        init: whatever `load_encoder` takes.
        options: of the run; tells the sizes of the encoder.
        decoder: sizes of the run's decoder.
        norm_pix_loss: what the run predicts, whatever --init was trained to.
        num_heads: of the encoder, where its file does not tell.

    Raises:
        UserError: there is none, it is of another size than the options tell, or MAE has no such encoder.
    """
    found = find_decoder(init, num_heads=decoder.num_heads)
    if found == decoder:
        mae = load_mae(init, num_heads=num_heads, decoder_num_heads=decoder.num_heads)
        _check_sizes(init, mae.encoder, options)
        mae.set_image_size(options.image_size)
        _usual_norms(init, mae)
        mae.norm_pix_loss = norm_pix_loss
        _LOG.info("%s: encoder and decoder taken", init)
        return mae.train()
    encoder = init_encoder(init, options, num_heads)
    told = f"its decoder ({_sizes(found, decoder)}) is not of this run's sizes" if found else "it has no decoder"
    _LOG.info("%s: encoder taken; %s: a new one begins (%s)", init, told, _sizes(decoder, found))
    try:
        return MaskedAutoencoder(encoder, decoder, norm_pix_loss).train()
    except ValueError as error:
        raise UserError(f"--init {init}: {error}; choose another encoder") from error


def _check_sizes(init: str, encoder: Encoder, options: SizeOptions) -> None:
    """Refuse an encoder of another size than the options tell."""
    wanted = EncoderSpec.named(options.model, options.image_size, options.patch_size)
    found = encoder.spec
    if (found.width, found.depth, found.patch_size) != (wanted.width, wanted.depth, wanted.patch_size):
        names = [name for name, (width, depth, _) in MODELS.items() if (width, depth) == (found.width, found.depth)]
        remedy = f"use --model {names[0]} --patch-size {found.patch_size}" if names else "choose another encoder"
        raise UserError(
            f"--init {init}: width {found.width}, depth {found.depth}, patch {found.patch_size}, but --model "
            f"{options.model} is {wanted.width}, {wanted.depth}, {wanted.patch_size}; {remedy}"
        )


def _usual_norms(init: str, module: nn.Module) -> None:
    """Give the layer norms the epsilon of timm and MAE: what is trained on must load there, which hold no other."""
    found = norm_epsilons(module)
    if found != {NORM_EPS}:
        set_norm_eps(module, NORM_EPS)
        _LOG.info("%s: epsilon of the layer norms set from %s to %g", init, " and ".join(map(str, found)), NORM_EPS)


def _sizes(decoder: DecoderSpec, other: DecoderSpec | None) -> str:
    """In words; with the heads, of which not every file tells, where nothing else is different."""
    heads = other is not None and (decoder.width, decoder.depth) == (other.width, other.depth)
    return f"width {decoder.width}, depth {decoder.depth}" + (f", heads {decoder.num_heads}" if heads else "")
