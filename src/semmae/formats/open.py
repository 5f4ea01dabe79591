"""The door to every encoder and masked autoencoder: a name of timm or of the hub, a folder, a checkpoint file.

Notable here:
- forms of others are rows of `table.FORMS`, and none is named here;
- sizes are those of the weights; the number of heads, which weights do not show, is asked for, read beside the file, or
  known by the width;
- every tensor of the file is loaded, or named in the log as dropped; nothing in a file is executed;
- an encoder carries what no weight shows: where it came from, which vector fits it, how images become its input.
"""

import copy
import logging
from os import PathLike
from pathlib import Path

import timm
from torch import Tensor, nn

from semmae.data.transform import ImageTransform
from semmae.errors import UserError, listed, reason
from semmae.formats import beside, folders as checkpoint, mae, timm as timm_form
from semmae.formats.choose import Chosen, without_heads
from semmae.formats.files import read_weights
from semmae.formats.form import Reading
from semmae.formats.hub import downloaded
from semmae.formats.pooling import pooling_by_name, pooling_of_file, pooling_of_folder
from semmae.formats.table import projects, reading_of, reading_of_folder
from semmae.formats.unfinished import is_unfinished, read_unfinished
from semmae.models.classifier import Classifier, without_head
from semmae.models.head import LinearHead
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.segmenter import Segmenter
from semmae.models.vit import Encoder, EncoderSpec, build_vit
from semmae.models.weights import (
    NORM_EPS,
    encoder_from_weights,
    fitted,
    load_strictly,
    norm_epsilons,
    set_norm_eps,
    vit_arguments,
)
from semmae.names import user_path
from semmae.sizes import Size, patch_grid, sides, size_text

_LOG = logging.getLogger("semmae")
_ENCODERS = "a checkpoint file, a run of semmae, timm:NAME or hf:NAME"


def load_encoder(
    spec: str | Path | Encoder, *, num_heads: int | None = None, image_size: Size | None = None
) -> Encoder:
    """An encoder, in eval mode, from wherever it lies.

    That is `timm:NAME`; `hf:OWNER/NAME` of the Hugging Face hub; a run of ours (of teacher or pretrain: finished or
    not), or a folder in it; a folder of timm or of Hugging Face, or an export of ours; a checkpoint file in one of the
    forms that `docs/checkpoints.md` lists; or an encoder that is loaded already, of which a copy is returned.
    `num_heads` is for files whose width does not show it; `image_size` is in pixels, a square's side or (height,
    width), where images to come are not of the size it was trained at.
    """
    if isinstance(spec, Encoder):
        encoder = _named(copy.deepcopy(spec).eval(), spec.source)
    else:
        encoder = _named(_find_encoder(spec, num_heads), spec)
    if num_heads not in (None, encoder.spec.num_heads):
        raise UserError(f"{spec}: has {encoder.spec.num_heads} heads, not {num_heads}; leave num_heads out")
    if isinstance(encoder.vit.norm, nn.Identity) and not isinstance(encoder.vit.fc_norm, nn.Identity):
        _LOG.warning("%s: trained with mean pooling; its final norm follows the pooling, not the tokens", spec)
    if image_size is not None:
        _check_image_size(spec, encoder, image_size)
    return encoder


def _named(encoder: Encoder, spec: str | Path) -> Encoder:
    """The encoder, carrying where it came from and how images become its input."""
    encoder.source, encoder.make_transform = str(spec), _transform_of
    return encoder


def _transform_of(spec: EncoderSpec) -> ImageTransform:
    return ImageTransform(spec.image_size, spec.mean, spec.std)


def _find_encoder(spec: str | Path, num_heads: int | None) -> Encoder:
    if str(spec).startswith("timm:"):
        encoder = timm_form.load_named(str(spec).removeprefix("timm:"))
        encoder.pooling = pooling_by_name(str(spec))
        return encoder
    path = _existing(spec)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or _is_of_folder(path):
        encoder = _encoder_of_folder(folder, num_heads)
    else:
        encoder = _encoder_of_file(path, num_heads)
    if path.is_dir() or path.name == checkpoint.WEIGHTS:
        encoder.pooling = pooling_of_folder(folder) or encoder.pooling
    return encoder


def _is_of_folder(path: Path) -> bool:
    """Whether a file is the weights of a folder whose config.json says how to build its model: ours, or timm's."""
    if path.name != checkpoint.WEIGHTS:
        return False
    reading = reading_of_folder(beside.read_beside(path))
    return reading is not None and reading.open_folder is not None


def _check_image_size(spec: str | Path | Encoder, encoder: Encoder, image_size: Size) -> None:
    """Refuse images that do not divide into patches; log where positions are interpolated."""
    patch, pixels = encoder.patch_size, size_text(image_size)
    for side in sides(image_size):
        if side < patch or side % patch:
            below = side // patch * patch
            sizes = f"{below} or {below + patch}" if below > 0 else f"{patch}"
            raise UserError(f"{spec}: images of {pixels} pixels do not divide into patches of {patch}; use {sizes}")
    if image_size != encoder.spec.image_size and encoder.vit.pos_embed is not None:
        grids = (*encoder.spec.grid, *patch_grid(image_size, patch))
        _LOG.info("%s: resized, to take images of %s pixels: pos_embed %d×%d to %d×%d", spec, pixels, *grids)


def load_mae(
    path: str | Path, *, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> MaskedAutoencoder:
    """A masked autoencoder, in eval mode: a run of ours, or of the forms of MAE, SemMAE and Hugging Face's ViTMAE.

    Numbers of heads are for files whose widths, of encoder and decoder, do not show them.
    """
    place = _existing(path)
    folder, file = own_folder(place, checkpoint.AUTOENCODER), _foreign_file(place)
    if folder is not None:
        found = checkpoint.read_autoencoder(folder)
    elif file is not None:
        found = _autoencoder_of_file(file, num_heads, decoder_num_heads)
    else:
        remedy = "give a run of semmae pretrain, or a file or folder in MAE's or ViTMAE's form"
        raise UserError(f"{path}: holds no masked autoencoder; {remedy}")
    _named(found.encoder, path)
    return found


def find_decoder(spec: str | Path | Encoder, *, num_heads: int) -> DecoderSpec | None:
    """Sizes of the decoder that `load_mae` would find there, with `num_heads` where nothing shows it; None: none."""
    if isinstance(spec, Encoder) or str(spec).startswith("timm:"):
        return None
    path = _existing(spec)
    folder = own_folder(path, checkpoint.AUTOENCODER)
    if folder is not None:
        return checkpoint.read_decoder_spec(folder)
    file = _foreign_file(path)
    state = {} if file is None else _released(read_weights(file), file)
    if file is None or not mae.is_mae(state):
        return None
    width = state["decoder_embed.weight"].shape[0]
    return mae.decoder_spec(state, beside.likely_decoder_heads(file, width, num_heads))


def load_head(path: str | Path) -> LinearHead:
    """The linear head of a run of `semmae probe`, or of its `head` folder, in eval mode: `head(encoder(images))`."""
    return checkpoint.read_head(_needed(path, checkpoint.HEAD, "linear head; give a run of semmae probe"))


def load_segmenter(path: str | Path) -> Segmenter:
    """The network of a run of `semmae segment`, in eval mode: images → logits of `spec.classes` for every pixel."""
    segmenter = checkpoint.read_segmenter(find_segmenter(path))
    _named(segmenter.encoder, path).pooling = "mean"
    return segmenter


def find_segmenter(path: str | Path) -> Path:
    """The folder that `load_segmenter` reads; UserError where there is none."""
    return _needed(path, checkpoint.SEGMENTER, "segmenter; give a run of semmae segment")


def own_folder(path: Path, kind: str) -> Path | None:
    """The folder of ours with what is of this kind that is meant by a run, that folder, or the weights in it."""
    if path.is_file() and path.name != checkpoint.WEIGHTS:
        return None
    candidates = [path.parent] if path.is_file() else [path, path / kind]
    return next((folder for folder in candidates if checkpoint.kind(folder) == kind), None)


def _needed(spec: str | Path, kind: str, words: str) -> Path:
    """As `own_folder`, but UserError where there is none."""
    folder = None if str(spec).startswith("timm:") else own_folder(_existing(spec), kind)
    if folder is None:
        raise UserError(f"{spec}: holds no {words}")
    return folder


def _foreign_file(path: Path) -> Path | None:
    """The file itself, or the weights in a folder of a form that is read as a file."""
    if path.is_file():
        return path
    reading = reading_of_folder(beside.read_beside(path / checkpoint.CONFIG))
    names = () if reading is None or reading.open_folder else reading.weights
    return next((path / name for name in names if (path / name).is_file()), None)


def _autoencoder_of_file(path: Path, num_heads: int | None, decoder_num_heads: int | None) -> MaskedAutoencoder:
    chosen = read_weights(path)
    state, reading, options = _released(chosen, path), reading_of(chosen.tensors), chosen.options
    if not mae.is_mae(state):
        raise UserError(f"{path}: no decoder_embed.weight, so no masked autoencoder; load_encoder reads encoders")
    try:
        decoder_heads = beside.decoder_heads(path, _width(state, "mask_token"), decoder_num_heads)
        kept, _ = mae.to_encoder(state)
        encoder = _built(path, chosen, kept, reading, num_heads)
        norm_pix_loss = beside.norm_pix_loss(path, options, reading.norm_pix_loss)
        spec = mae.decoder_spec(state, decoder_heads)
        autoencoder = fitted(lambda: MaskedAutoencoder(encoder, spec, norm_pix_loss), mae.from_mae(state))
        set_norm_eps(autoencoder, *norm_epsilons(encoder))  # one for both, in all forms
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a checkpoint in the form of the MAE release or of ViTMAE") from error
    if (shown := mae.patches_shown(state, options)) and not mae.is_doubtful(path, state, options):
        trained = "%s: trained on %d of the %d patches of an image; to go on like that: --token-subset %d"
        _LOG.info(trained, path, *shown, shown[0])
    return autoencoder.eval()


def _released(chosen: Chosen, path: Path) -> dict[str, Tensor]:
    """Tensors under the names of the MAE release, where they are a masked autoencoder's; else none."""
    to_autoencoder = reading_of(chosen.tensors).to_autoencoder
    state, dropped = ({}, []) if to_autoencoder is None else to_autoencoder(chosen.tensors)
    if not mae.is_mae(state):
        return {}
    if dropped:
        _LOG.info("%s: dropped, not part of a masked autoencoder: %s", path, listed(dropped))
    return state


def _built(path: Path, chosen: Chosen, state: dict[str, Tensor], reading: Reading, num_heads: int | None) -> Encoder:
    """The encoder of tensors in timm's names, by what lies in the file and beside it."""
    of_form = reading.num_heads(chosen.tensors) if reading.num_heads else None
    heads = beside.encoder_heads(path, chosen, _width(state, "cls_token"), num_heads, of_form)
    unseen = reading.unseen(path, chosen.tensors)
    size, kernel = unseen.image_size or beside.oblong(chosen.options), state.get("patch_embed.proj.weight")
    grid = None if size is None or kernel is None or not kernel.ndim else patch_grid(size, max(kernel.shape[-1], 1))
    return encoder_from_weights(state, heads, unseen.mean, unseen.std, norm_eps=unseen.norm_eps, grid=grid)


def _width(state: dict[str, Tensor], token: str) -> int | None:
    return state[token].shape[-1] if token in state and state[token].ndim else None


def load_classifier(path: str | Path) -> tuple[Classifier, list[str]]:
    """A classifier, in eval mode, and the names of its classes: a run of `semmae finetune`, or its folder of that."""
    classifier, classes = checkpoint.read_classifier(find_classifier(path))
    _named(classifier.encoder, path).pooling = classifier.pooling
    return classifier, classes


def find_classifier(spec: str | Path) -> Path:
    """The folder that `load_classifier` reads; UserError where there is none."""
    return _needed(spec, checkpoint.CLASSIFIER, "classifier of semmae; give a finished run of semmae finetune")


def _existing(spec: str | Path) -> Path:
    """The file or folder that is meant; UserError where there is none."""
    if not isinstance(spec, str | PathLike):
        kind = type(spec).__name__[:40]
        raise UserError(f"{kind}: no encoder that semmae has loaded; give {_ENCODERS}")
    name = str(spec)
    if name.startswith("hf:"):
        return downloaded(name.removeprefix("hf:"))
    try:
        path = user_path(spec)
        if path.is_file() or path.is_dir():
            return path
        path.stat()
    except FileNotFoundError:
        if name in timm.list_models() or name in timm.list_pretrained():
            raise UserError(f'{name}: no such file or folder; did you mean "timm:{name}"?') from None
        raise UserError(f"{name}: no such file or folder; give {_ENCODERS}") from None
    except (OSError, RuntimeError, ValueError) as error:  # no right to look, too long, an unknown ~user
        raise UserError(f"{name[:200]}: cannot be read ({reason(error)}); give {_ENCODERS}") from error
    raise UserError(f"{name}: neither a file nor a folder; give {_ENCODERS}")


def _encoder_of_file(path: Path, num_heads: int | None) -> Encoder:
    chosen = read_weights(path)
    state, heads = without_heads(chosen.tensors)
    reading = reading_of(state)
    try:
        kept, dropped = reading.to_encoder(state)
        mae.is_doubtful(path, kept, chosen.options)
        if dropped := chosen.dropped + heads + dropped:
            _LOG.info("%s: dropped, not part of an encoder: %s", path, listed(dropped))
        encoder = _built(path, chosen, kept, reading, num_heads)
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a ViT checkpoint of {projects()}, or timm:NAME") from error
    encoder.pooling = pooling_of_file(path, chosen.has_decoder)
    return encoder


def _encoder_of_folder(folder: Path, num_heads: int | None) -> Encoder:
    for candidate in (folder, folder / checkpoint.ENCODER, folder / checkpoint.AUTOENCODER):
        kind = checkpoint.kind(candidate)
        if kind == checkpoint.ENCODER:
            return checkpoint.read_encoder(candidate)
        if kind == checkpoint.AUTOENCODER:
            return checkpoint.read_autoencoder(candidate).encoder
    classifier = own_folder(folder, checkpoint.CLASSIFIER)
    if classifier is not None:
        _LOG.info("%s: dropped, not part of an encoder: its head", classifier)
        return without_head(checkpoint.read_classifier(classifier)[0])
    segmenter = own_folder(folder, checkpoint.SEGMENTER)
    if segmenter is not None:
        _LOG.info("%s: dropped, not part of an encoder: its segmentation head", segmenter)
        return checkpoint.read_segmenter(segmenter).encoder
    if is_unfinished(folder):
        return _encoder_under_way(folder)
    reading, file = reading_of_folder(beside.read_beside(folder / checkpoint.CONFIG)), _foreign_file(folder)
    if reading is not None and reading.open_folder is not None:
        return reading.open_folder(folder)
    if file is not None:
        return _encoder_of_file(file, num_heads)
    if reading is not None and (folder / checkpoint.CONFIG).is_file():
        if shards := [name for name in reading.weights if (folder / f"{name}.index.json").is_file()]:
            raise UserError(
                f"{folder}: its weights are sharded ({shards[0]}.index.json), which is not read; save them as one: "
                'model.save_pretrained(FOLDER, max_shard_size="100GB")'
            )
        remedy = f"add {' or '.join(reading.weights)}, in one file"
        raise UserError(f"{folder}: holds a config.json without weights; {remedy}")
    raise UserError(f"{folder}: holds no encoder; give a run of semmae, its encoder folder, or a checkpoint file")


def _encoder_under_way(folder: Path) -> Encoder:
    """The encoder that a run of teacher or pretrain would leave behind if it ended at its last checkpoint."""
    run = read_unfinished(folder)
    try:
        if run.init is None:
            encoder = Encoder(run.spec, fitted(lambda: build_vit(run.spec), run.state))
        else:  # what weights do not show is as it was there
            encoder = load_encoder(run.init, num_heads=run.num_heads)
            size = vit_arguments(run.state, encoder.spec.num_heads, run.spec.grid)["img_size"]
            if size != run.spec.image_size:
                raise ValueError(f"image_size is {run.spec.image_size}, and {size} by its positions")
            encoder.set_image_size(size)
            set_norm_eps(encoder, NORM_EPS)
            load_strictly(encoder.vit, run.state)
    except ValueError as error:
        raise UserError(f"{folder}: its checkpoint does not fit its config.yaml ({error}); restore them") from error
    _LOG.warning("%s: %s", folder, run.progress)
    return encoder.eval()
