"""The door to every encoder and masked autoencoder: a timm name, a folder, a checkpoint file.

Notable here:
- a pickle can hold code: files are read by the unpickler that builds tensors and plain values only;
  beyond these `argparse.Namespace` is let in, in which released checkpoints keep their options;
- sizes are those of the weights; the number of heads, which weights do not show, is asked for,
  read beside the file, or known by the width;
- every tensor of the file is either loaded or named in the log as dropped, and so are positions that will be
  interpolated.
"""

import argparse
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from semmae import checkpoint
from semmae.errors import UserError
from semmae.interop import dino, huggingface, mae
from semmae.interop import timm as timm_form
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import MODELS, Encoder
from semmae.models.weights import encoder_from_weights, load_strictly

_LOG = logging.getLogger("semmae")
# Where checkpoints of training scripts keep the weights, best first: DINO evaluates the teacher.
_WRAPPERS = ("teacher", "model", "state_dict", "student")
# Beyond our own sizes: DINOv2's ViT-g, and the ViT-g and ViT-G of "Scaling Vision Transformers".
_HEADS = {width: heads for width, _, heads in MODELS.values()} | {1536: 24, 1408: 16, 1664: 16}
# Names of weights in a folder of transformers, and of what normalises the images.
_WEIGHTS = (checkpoint.WEIGHTS, "pytorch_model.bin")
_PREPROCESSOR = "preprocessor_config.json"
# First bytes of pickles: bare, and in the archive that torch writes.
_PICKLES = (b"\x80", b"P")
# The decoders of the MAE release: width 512, 16 heads.
_DECODER_HEADS = {512: 16}


def load_encoder(spec: str | Path, *, num_heads: int | None = None, image_size: int | None = None) -> Encoder:
    """An encoder, in eval mode, from wherever it lies.

    Args:
        spec: `timm:NAME`; a run of ours, or its `encoder` or `autoencoder` folder; a folder of timm or of
            Hugging Face; a checkpoint file (.pth, .pt, .bin, .safetensors) in MAE, DINO, iBOT, timm or
            Hugging Face form.
        num_heads: of a checkpoint file, where neither `config.json` beside it nor its width tells.
        image_size: pixels a side of the images it will be shown, where that is not the size it was trained at.

    Raises:
        UserError: there is no such encoder, or it is of another kind, or cannot take images of that size.
    """
    encoder = _find_encoder(spec, num_heads)
    if num_heads not in (None, encoder.spec.num_heads):
        raise UserError(f"{spec}: has {encoder.spec.num_heads} heads, not {num_heads}; leave num_heads out")
    if isinstance(encoder.vit.norm, nn.Identity) and not isinstance(encoder.vit.fc_norm, nn.Identity):
        _LOG.warning("%s: trained with mean pooling; its final norm follows the pooling, not the tokens", spec)
    if image_size is not None:
        _check_image_size(spec, encoder, image_size)
    return encoder


def _find_encoder(spec: str | Path, num_heads: int | None) -> Encoder:
    if str(spec).startswith("timm:"):
        return timm_form.load_named(str(spec).removeprefix("timm:"))
    path = _existing(spec)
    if path.is_file() and not (path.name == checkpoint.WEIGHTS and _describes(path.parent)):
        return _encoder_of_file(path, num_heads)
    return _encoder_of_folder(path.parent if path.is_file() else path, num_heads)


def _check_image_size(spec: str | Path, encoder: Encoder, image_size: int) -> None:
    """Refuse images that do not divide into patches; tell where positions are interpolated."""
    patch, trained = encoder.patch_size, encoder.spec.image_size
    if image_size < patch or image_size % patch:
        below = image_size // patch * patch
        sizes = f"{below} or {below + patch}" if below > 0 else f"{patch}"
        raise UserError(f"{spec}: images of {image_size} pixels do not divide into patches of {patch}; use {sizes}")
    if image_size != trained and encoder.vit.pos_embed is not None:
        old, new = trained // patch, image_size // patch
        _LOG.info(
            "%s: resized, to take images of %d pixels: pos_embed %d×%d to %d×%d", spec, image_size, old, old, new, new
        )


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


def find_decoder(spec: str | Path, *, num_heads: int) -> DecoderSpec | None:
    """Sizes of the decoder that `load_mae` would find there; None where there is none.

    Args:
        spec: as for `load_encoder`.
        num_heads: of the decoder, where neither the file, nor `config.json` beside it, nor its width tells.
    """
    if str(spec).startswith("timm:"):
        return None
    path = _existing(spec)
    if path.is_file() and path.name == checkpoint.WEIGHTS and checkpoint.kind(path.parent):
        path = path.parent
    if path.is_dir():
        folder = next((f for f in (path, path / checkpoint.AUTOENCODER) if _holds_autoencoder(f)), None)
        return None if folder is None else checkpoint.read_decoder_spec(folder)
    state = {dino.strip(name): tensor for name, tensor in _read_weights(path)[0].items()}
    if not mae.is_mae(state):
        return None
    width = state["decoder_embed.weight"].shape[0]
    told = _beside(path).get("decoder_num_heads", _DECODER_HEADS.get(width, num_heads))
    return mae.decoder_spec(state, told if width % told == 0 else 1)


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
    try:
        kept, dropped = _to_encoder(state)
        if dropped:
            _LOG.info("%s: dropped, not part of an encoder: %s", path, ", ".join(dropped))
        heads = _num_heads("num_heads", num_heads, path, kept.get("cls_token"), _HEADS)
        if huggingface.is_huggingface(state):
            return _huggingface_encoder(path, state, kept, heads)
        return encoder_from_weights(kept, heads)
    except ValueError as error:
        forms = "MAE, DINO, iBOT, timm or Hugging Face"
        raise UserError(f"{path}: {error}; give a ViT checkpoint in {forms} form, or timm:NAME") from error


def _huggingface_encoder(path: Path, state: Mapping[str, Tensor], kept: Mapping[str, Tensor], heads: int) -> Encoder:
    config = _beside(path)
    huggingface.check_config(config)
    colours = huggingface.normalisation(_beside(path, _PREPROCESSOR))
    if colours is None:
        _LOG.warning("%s: no image_mean and image_std in %s beside it; ImageNet's are taken", path, _PREPROCESSOR)
    mean, std = colours or (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return encoder_from_weights(kept, heads, mean, std, norm_eps=huggingface.norm_eps(state, config))


def _encoder_of_folder(folder: Path, num_heads: int | None) -> Encoder:
    for candidate in (folder, folder / checkpoint.ENCODER, folder / checkpoint.AUTOENCODER):
        kind = checkpoint.kind(candidate)
        if kind == checkpoint.ENCODER:
            return checkpoint.read_encoder(candidate)
        if kind == checkpoint.AUTOENCODER:
            return checkpoint.read_autoencoder(candidate).encoder
    if _describes(folder):
        return timm_form.load_named(f"local-dir:{folder}")
    if "model_type" in _beside(folder / checkpoint.CONFIG):
        weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
        if weights is None:
            raise UserError(f"{folder}: holds a config.json without weights; add {' or '.join(_WEIGHTS)}, in one file")
        return _encoder_of_file(weights, num_heads)
    raise UserError(f"{folder}: holds no encoder; give a run of semmae, its encoder folder, or a checkpoint file")


def _autoencoder_of_folder(folder: Path) -> MaskedAutoencoder:
    for candidate in (folder, folder / checkpoint.AUTOENCODER):
        if _holds_autoencoder(candidate):
            return checkpoint.read_autoencoder(candidate)
    raise UserError(f"{folder}: holds no masked autoencoder; give a run of semmae pretrain, or a file in MAE's form")


def _holds_autoencoder(folder: Path) -> bool:
    return checkpoint.kind(folder) == checkpoint.AUTOENCODER


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
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol: what matters is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail in as many ways as there are bytes.
        raise UserError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(content, Mapping):
        held = type(content).__name__
        raise UserError(f"{path}: holds a {held}, not tensors by name; save model.state_dict()")
    return content


def _fault(path: Path, error: Exception) -> str:
    """Why a file failed to load with this error, and the remedy."""
    remedy = "save the tensors alone: torch.save(model.state_dict(), FILE)"
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds code ({code[1]}), which is never run; {remedy}"
    if isinstance(error, pickle.UnpicklingError):
        with path.open("rb") as file:
            if file.read(1) in _PICKLES:
                return f"holds objects other than tensors, which are never loaded; {remedy}"
    return f"not readable as a checkpoint ({type(error).__name__}); give a .pth, .pt, .bin or .safetensors file"


def _to_encoder(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors in timm's names, and the names of those dropped, of any of the forms."""
    bare, heads = dino.to_encoder(state)
    if huggingface.is_huggingface(bare):
        kept, dropped = huggingface.to_encoder(bare)
    elif mae.is_mae(bare):
        kept, dropped = mae.to_encoder(bare)
    else:
        kept, dropped = timm_form.to_encoder(bare)
    return kept, heads + dropped


def _num_heads(option: str, asked: int | None, path: Path, token: Tensor | None, by_width: Mapping[int, int]) -> int:
    """Heads of a model: as asked, else by `config.json` beside the file, else by the width of its token."""
    if asked is not None:
        return asked
    config = _beside(path)
    # transformers' name for the same
    told = config.get(option, config.get("num_attention_heads") if option == "num_heads" else None)
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


def _beside(path: Path, name: str = checkpoint.CONFIG) -> dict[str, Any]:
    config = path.with_name(name)
    return checkpoint.read_json(config) if config.is_file() else {}
