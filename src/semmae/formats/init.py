"""`--init`: to begin with weights that are already there, of an encoder or of a whole masked autoencoder."""

import logging

from torch import nn

from semmae.errors import UserError
from semmae.formats.open import find_decoder, load_encoder, load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import MODELS, Encoder
from semmae.models.weights import NORM_EPS, norm_epsilons, set_norm_eps
from semmae.objects import described
from semmae.options.shared import Model
from semmae.sizes import Size

_LOG = logging.getLogger("semmae")


def init_encoder(
    init: str | Encoder, *, model: Model, image_size: Size, patch_size: int, num_heads: int | None, channels: int = 3
) -> Encoder:
    """The encoder of --init, its positions resampled to this run's image size."""
    encoder = load_encoder(init, num_heads=num_heads)
    _check_sizes(init, encoder, model, patch_size, channels)
    encoder.set_image_size(image_size)
    _usual_norms(init, encoder)
    return encoder


def init_autoencoder(
    init: str | Encoder,
    decoder: DecoderSpec,
    norm_pix_loss: bool,
    *,
    model: Model,
    image_size: Size,
    patch_size: int,
    num_heads: int | None,
    channels: int = 3,
) -> MaskedAutoencoder:
    """The encoder of --init with the decoder that lies beside it if it is of these sizes, else with a new one.

    A new decoder draws from torch's global generator, as every new network. `norm_pix_loss` is the run's, whatever
    --init was trained to.
    """
    found = find_decoder(init, num_heads=decoder.num_heads)
    name = described(init)
    if not isinstance(init, Encoder) and found == decoder:
        mae = load_mae(init, num_heads=num_heads, decoder_num_heads=decoder.num_heads)
        _check_sizes(init, mae.encoder, model, patch_size, channels)
        mae.set_image_size(image_size)
        _usual_norms(init, mae)
        mae.norm_pix_loss = norm_pix_loss
        _LOG.info("%s: encoder and decoder taken", name)
        return mae.train()
    encoder = init_encoder(
        init, model=model, image_size=image_size, patch_size=patch_size, num_heads=num_heads, channels=channels
    )
    reason = f"its decoder ({_sizes(found, decoder)}) is not what this run asks for" if found else "it has no decoder"
    _LOG.info("%s: encoder taken; %s: a new one begins (%s)", name, reason, _sizes(decoder, found))
    try:
        return MaskedAutoencoder(encoder, decoder, norm_pix_loss).train()
    except ValueError as error:
        raise UserError(f"--init {name}: {error}; choose another encoder") from error


def _check_sizes(init: str | Encoder, encoder: Encoder, model: Model, patch_size: int, channels: int) -> None:
    found, (width, depth, _) = encoder.spec, MODELS[model]
    if found.channels != channels:
        raise UserError(
            f"--init {described(init)}: sees images of {found.channels} channels, and --channels is {channels}; use "
            f"--channels {found.channels}"
        )
    if (found.width, found.depth, found.patch_size) != (width, depth, patch_size):
        names = [name for name, sizes in MODELS.items() if sizes[:2] == (found.width, found.depth)]
        remedy = f"use --model {names[0]} --patch-size {found.patch_size}" if names else "choose another encoder"
        raise UserError(
            f"--init {described(init)}: width {found.width}, depth {found.depth}, patch {found.patch_size}, but "
            f"--model {model} is {width}, {depth}, {patch_size}; {remedy}"
        )


def _usual_norms(init: str | Encoder, module: nn.Module) -> None:
    """Give the layer norms the epsilon of timm and MAE: what is trained on must load there, which hold no other."""
    found = norm_epsilons(module)
    if found != {NORM_EPS}:
        set_norm_eps(module, NORM_EPS)
        before = " and ".join(map(str, found))
        _LOG.info("%s: epsilon of the layer norms set from %s to %g", described(init), before, NORM_EPS)


def _sizes(decoder: DecoderSpec, other: DecoderSpec | None) -> str:
    """In words; with what it predicts where that is different, or else, where nothing but they is, with the heads."""
    sizes = f"width {decoder.width}, depth {decoder.depth}"
    if other is not None and decoder.token_width != other.token_width:
        return sizes + (f", tokens of width {decoder.token_width}" if decoder.token_width else ", pixels")
    heads = other is not None and (decoder.width, decoder.depth) == (other.width, other.depth)
    return sizes + (f", heads {decoder.num_heads}" if heads else "")
