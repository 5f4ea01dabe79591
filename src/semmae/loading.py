"""The door to every encoder and masked autoencoder: a timm name, a folder of ours, a checkpoint file.

Notable here:
- a pickle can hold code: files are read by the unpickler that builds tensors and plain values only;
  beyond these `argparse.Namespace` is let in, in which released checkpoints keep their options;
- sizes are those of the weights; the number of heads, which weights do not show, is asked for,
  read beside the file, or known by the width;
- every tensor of the file is either loaded or named in the log as dropped.
"""

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from semmae import checkpoint
from semmae.errors import UserError
from semmae.interop import dino, mae
from semmae.interop import timm as timm_form
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import MODELS, Encoder
from semmae.models.weights import encoder_from_weights, load_strictly

_LOG = logging.getLogger("semmae")
# Where checkpoints of training scripts keep the weights, best first: DINO evaluates the teacher.
_WRAPPERS = ("teacher", "model", "state_dict", "student")
_HEADS = {width: heads for width, _, heads in MODELS.values()}
# The decoders of the MAE release: width 512, 16 heads.
_DECODER_HEADS = {512: 16}


def load_encoder(spec: str | Path, *, num_heads: int | None = None) -> Encoder:
    """An encoder, in eval mode, from wherever it lies.

    Args:
        spec: `timm:NAME`; a run of ours, or its `encoder` or `autoencoder` folder; a timm folder; a
            checkpoint file (.pth, .pt, .safetensors) in MAE, DINO, iBOT or timm form.
        num_heads: of a checkpoint file, where neither `config.json` beside it nor its width tells.

    Raises:
        UserError: there is no such encoder, or it is of another kind.
    """
    if str(spec).startswith("timm:"):
        encoder = timm_form.load_named(str(spec).removeprefix("timm:"))
    else:
        path = _existing(spec)
        described = path.name == checkpoint.WEIGHTS and _describes(path.parent)
        if path.is_file() and not described:
            return _encoder_of_file(path, num_heads)
        encoder = _encoder_of_folder(path.parent if described else path)
    if num_heads not in (None, encoder.spec.num_heads):
        raise UserError(f"{spec}: has {encoder.spec.num_heads} heads, not {num_heads}; leave num_heads out")
    return encoder


def load_mae(
    path: str | Path, *, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> MaskedAutoencoder:
    """A masked autoencoder, in eval mode: a run of ours, its `autoencoder` folder, or a file in MAE's form.

    Args:
        path: where it lies.
        num_heads: of a file's encoder, where neither `config.json` beside it nor its width tells.
        decoder_num_heads: likewise of its decoder.

    Raises:
        UserError: there is none, e.g. the file holds an encoder without a decoder.
    """
    path = _existing(path)
    if path.is_file() and path.name == checkpoint.WEIGHTS and checkpoint.kind(path.parent):
        path = path.parent
    if path.is_dir():
        return _autoencoder_of_folder(path)
    state, options = _read_weights(path)
    state = {dino.strip(name): tensor for name, tensor in state.items()}
    if not mae.is_mae(state):
        raise UserError(f"{path}: no decoder_embed.weight, so no masked autoencoder; load_encoder reads encoders")
    encoder_heads = _num_heads("num_heads", num_heads, path, state.get("cls_token"), _HEADS)
    width = state.get("mask_token")
    decoder_heads = _num_heads("decoder_num_heads", decoder_num_heads, path, width, _DECODER_HEADS)
    try:
        encoder = encoder_from_weights(mae.to_encoder(state)[0], encoder_heads)
        decoder = mae.decoder_spec(state, decoder_heads)
        autoencoder = MaskedAutoencoder(encoder, decoder, _norm_pix_loss(path, options))
        load_strictly(autoencoder, mae.from_mae(state))
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a checkpoint in the form of the MAE release") from error
    return autoencoder.eval()


def _existing(spec: str | Path) -> Path:
    path = Path(spec).expanduser()
    if path.exists():
        return path
    name = str(spec)
    if name in timm.list_models() or name in timm.list_pretrained():
        raise UserError(f'{name}: no such file or folder; did you mean "timm:{name}"?')
    raise UserError(f"{name}: no such file or folder; give a checkpoint file, a run of semmae, or timm:NAME")


def _describes(folder: Path) -> bool:
    """Whether the folder's config.json says how to build its model: ours, or timm's."""
    config = folder / checkpoint.CONFIG
    return config.is_file() and "architecture" in checkpoint.read_json(config)


def _encoder_of_file(path: Path, num_heads: int | None) -> Encoder:
    state, _ = _read_weights(path)
    kept, dropped = _to_encoder(state)
    if dropped:
        _LOG.info("%s: dropped, not part of an encoder: %s", path, ", ".join(dropped))
    if "fc_norm.weight" in kept:
        _LOG.warning("%s: trained with mean pooling; its final norm follows the pooling, not the tokens", path)
    heads = _num_heads("num_heads", num_heads, path, kept.get("cls_token"), _HEADS)
    try:
        return encoder_from_weights(kept, heads)
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a ViT checkpoint in MAE, DINO, iBOT or timm form") from error


def _encoder_of_folder(folder: Path) -> Encoder:
    for candidate in (folder, folder / checkpoint.ENCODER, folder / checkpoint.AUTOENCODER):
        kind = checkpoint.kind(candidate)
        if kind == checkpoint.ENCODER:
            return checkpoint.read_encoder(candidate)
        if kind == checkpoint.AUTOENCODER:
            return checkpoint.read_autoencoder(candidate).encoder
    if _describes(folder):
        return timm_form.load_named(f"local-dir:{folder}")
    raise UserError(f"{folder}: holds no encoder; give a run of semmae, its encoder folder, or a checkpoint file")


def _autoencoder_of_folder(folder: Path) -> MaskedAutoencoder:
    for candidate in (folder, folder / checkpoint.AUTOENCODER):
        if checkpoint.kind(candidate) == checkpoint.AUTOENCODER:
            return checkpoint.read_autoencoder(candidate)
    raise UserError(f"{folder}: holds no masked autoencoder; give a run of semmae pretrain, or a file in MAE's form")


def _read_weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors by name, out of whatever they were wrapped in, and the options saved beside them."""
    content = _read_file(path)
    options = vars(content["args"]) if isinstance(content.get("args"), argparse.Namespace) else {}
    state = content
    while wrapper := next((key for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None):
        others = [key for key in _WRAPPERS if key != wrapper and isinstance(state.get(key), Mapping)]
        _LOG.info("%s: weights taken from %r%s", path, wrapper, f", not from {others}" if others else "")
        state = state[wrapper]
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(str(key) for key in list(state)[:3]) or "nothing"
        raise UserError(f"{path}: holds no tensors by name (found {found}); give a state dict of a ViT")
    return tensors, options


def _read_file(path: Path) -> Mapping[str, Any]:
    """The dictionary that a checkpoint file holds; nothing of it is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail in as many ways as there are bytes.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise UserError(
                f"{path}: holds code ({code[1]}), which is never run; save the tensors alone: "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        reason = type(error).__name__
        raise UserError(
            f"{path}: not readable as a checkpoint ({reason}); give a .pth, .pt or .safetensors file"
        ) from error
    if not isinstance(content, Mapping):
        held = type(content).__name__
        raise UserError(f"{path}: holds a {held}, not tensors by name; save model.state_dict()")
    return content


def _to_encoder(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors in timm's names, and the names of those dropped, of any of the forms."""
    bare, heads = dino.to_encoder(state)
    form = mae if mae.is_mae(bare) else timm_form
    kept, dropped = form.to_encoder(bare)
    return kept, heads + dropped


def _num_heads(option: str, asked: int | None, path: Path, token: Tensor | None, by_width: Mapping[int, int]) -> int:
    """Heads of a model: as asked, else by `config.json` beside the file, else by the width of its token."""
    if asked is not None:
        return asked
    told = _beside(path).get(option)
    if isinstance(told, int):
        return told
    if token is None:
        return 1  # no ViT at all; building it will say so
    width = token.shape[-1]
    if width not in by_width:
        raise UserError(f"{path}: weights of width {width} do not show the number of heads; give {option}")
    return by_width[width]


def _norm_pix_loss(path: Path, options: Mapping[str, Any]) -> bool:
    """Whether the model predicts normalised pixels, by its own options or `config.json` beside it."""
    told = options.get("norm_pix_loss", _beside(path).get("norm_pix_loss"))
    if told is None:
        _LOG.warning("%s: does not say norm_pix_loss; taken as true, as the MAE paper trains", path)
        return True
    return bool(told)


def _beside(path: Path) -> dict[str, Any]:
    config = path.with_name(checkpoint.CONFIG)
    return checkpoint.read_json(config) if config.is_file() else {}
