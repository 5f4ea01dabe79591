"""Our own form on disk: a folder with `model.safetensors` and `config.json`.

Notable here:
- an encoder's folder is also a timm folder: `timm.create_model("local-dir:FOLDER", pretrained=True)`
  gives the same features; what timm does not know stands in a section of its own, "semmae";
- keys of the images learned from, 13 MB for a million, lie in `learned.txt`: timm and the hub read config.json whole;
- before an encoder is written, the model that its configuration describes is built without memory and compared;
- what a configuration claims is compared with the tensors before a network is built: it may have been edited.
"""

import hashlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.errors import UserError, listed, reason
from semmae.files import Fields, open_regular, read_json, read_text, whole, whole_folder, write_json, write_text
from semmae.formats.beside import pooling_beside
from semmae.models.classifier import Classifier
from semmae.models.head import HeadSpec, LinearHead
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.specs import read_spec
from semmae.models.timm_config import timm_config
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import fitted, vit_arguments
from semmae.names import shown
from semmae.options.shared import Pooling

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LEARNED = "learned.txt"  # a key a line of the images that it learned from
ENCODER, AUTOENCODER, LEARNER, CLASSIFIER = "encoder", "autoencoder", "learner", "classifier"
HEAD, SEGMENTER = "head", "segmenter"
AnyPartLearner = PartLearner | PublishedPartLearner
# By what they rebuild.
_LEARNERS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "tokens": (PartLearner, PartsSpec),
    "pixels": (PublishedPartLearner, PublishedPartsSpec),
}
_WITHIN = "encoder.vit."  # before the encoder's tensors in networks that hold one


def save_encoder(encoder: Encoder, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write an encoder as a folder that timm loads too, in place of an older one; `extra`: JSON, for `read_extra`.

    UserError where timm's arguments cannot describe it, or the folder holds other files.
    """
    _write(folder, ENCODER, encoder.vit, encoder.spec, extra, timm_config(encoder), {"pooling": encoder.pooling})


def read_encoder(folder: Path) -> Encoder:
    """The encoder of a folder by `save_encoder`, in eval mode; UserError where it holds none, or not what it says."""
    with _explained(folder):
        config, state = _read(folder, ENCODER)
        spec, build = _builder(config, state)
        encoder = Encoder(spec, fitted(build, state)).eval()
    encoder.pooling = pooling_beside(folder / CONFIG) or "cls"
    return encoder


def save_autoencoder(autoencoder: MaskedAutoencoder, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write encoder and decoder, under our own tensor names; otherwise as `save_encoder`."""
    encoder = autoencoder.encoder
    own = {"decoder": asdict(autoencoder.decoder), "norm_pix_loss": autoencoder.norm_pix_loss}
    _write(folder, AUTOENCODER, autoencoder, encoder.spec, extra, timm_config(encoder), own)


def read_autoencoder(folder: Path) -> MaskedAutoencoder:
    """The masked autoencoder of a folder by `save_autoencoder`, in eval mode; errors as `read_encoder`."""
    with _explained(folder):
        config, state = _read(folder, AUTOENCODER)
        own = _own(folder, config)
        spec, build = _builder(config, state, _WITHIN)
        decoder, norm_pix_loss = read_spec(DecoderSpec, own.need("decoder", dict)), own.need("norm_pix_loss", bool)
        return fitted(lambda: MaskedAutoencoder(Encoder(spec, build()), decoder, norm_pix_loss), state).eval()


def read_decoder_spec(folder: Path) -> DecoderSpec:
    """Sizes of the decoder in a folder by `save_autoencoder`."""
    with _explained(folder):
        return read_spec(DecoderSpec, _own(folder, _read_config(folder, AUTOENCODER)).need("decoder", dict))


def save_learner(learner: AnyPartLearner, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write a part learner, without the encoder that it was trained on; otherwise as `save_encoder`."""
    (rebuilds,) = (name for name, (network, _) in _LEARNERS.items() if type(learner) is network)
    _write(folder, LEARNER, learner, learner.spec, extra, own={"rebuilds": rebuilds})


def read_learner(folder: Path) -> AnyPartLearner:
    """The part learner of a folder by `save_learner`, in eval mode; errors as `read_encoder`."""
    with _explained(folder):
        config, state = _read(folder, LEARNER)
        rebuilds = _own(folder, config).need("rebuilds", str)
        if rebuilds not in _LEARNERS:
            raise ValueError(f"rebuilds is {shown(rebuilds)}; one of {', '.join(_LEARNERS)}")
        network, kind_of_spec = _LEARNERS[rebuilds]
        spec = read_spec(kind_of_spec, config["semmae"].get("spec"))
        learner: AnyPartLearner = fitted(lambda: network(spec), state).eval()
        return learner


def save_classifier(
    classifier: Classifier,
    folder: Path,
    classes: Sequence[str],
    crop_pct: float = 0.875,
    extra: dict[str, Any] | None = None,
    learned: Sequence[str] | None = None,
) -> None:
    """Write encoder and head as a folder that timm loads with its head; otherwise as `save_encoder`.

    timm crops images by `crop_pct`; `learned` has a key of each image that it learned from, for `read_learned`.
    """
    config = timm_config(classifier.encoder, classes)
    config["pretrained_cfg"]["crop_pct"] = crop_pct
    own = {"pooling": classifier.pooling}
    _write(folder, CLASSIFIER, classifier.vit, classifier.encoder.spec, extra, config, own, learned)


def read_classifier(folder: Path) -> tuple[Classifier, list[str]]:
    """The classifier of a folder by `save_classifier`, in eval mode, and its classes; errors as `read_encoder`."""
    with _explained(folder):
        config, state = _read(folder, CLASSIFIER)
        classes = Fields(folder / CONFIG, config).need("label_names", list)
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"label_names is {shown(classes)}, not names of classes")
        pooling = _own(folder, config).need("pooling", str)
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is {shown(pooling)}; one of {', '.join(get_args(Pooling))}")
        spec, build = _builder(config, state)
        named = {_WITHIN + name: tensor for name, tensor in state.items()}
        classifier = fitted(lambda: Classifier(Encoder(spec, build()), len(classes), pooling), named)
        return classifier.eval(), classes


def save_head(head: LinearHead, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write a linear head and the names of its classes, without the encoder below it; otherwise as `save_encoder`."""
    _write(folder, HEAD, head, head.spec, extra)


def read_head(folder: Path) -> LinearHead:
    """The linear head of a folder by `save_head`, in eval mode; errors as `read_encoder`."""
    with _explained(folder):
        config, state = _read(folder, HEAD)
        spec = read_spec(HeadSpec, config["semmae"].get("spec"))
        return fitted(lambda: LinearHead(spec), state).eval()


def save_segmenter(
    segmenter: Segmenter, folder: Path, extra: dict[str, Any] | None = None, learned: Sequence[str] | None = None
) -> None:
    """Write encoder and segmentation head, under our own tensor names; otherwise as `save_classifier`."""
    encoder, own = segmenter.encoder, {"segmenter": asdict(segmenter.spec)}
    _write(folder, SEGMENTER, segmenter, encoder.spec, extra, timm_config(encoder), own, learned)


def check_saveable(encoder: Encoder) -> None:
    """UserError where the encoder could not be saved in the end, alone or below a head."""
    timm_config(encoder)


def read_segmenter(folder: Path) -> Segmenter:
    """The segmenter of a folder by `save_segmenter`, in eval mode; errors as `read_encoder`."""
    with _explained(folder):
        config, state = _read(folder, SEGMENTER)
        head = read_spec(SegmenterSpec, config["semmae"].get("segmenter"))
        spec, build = _builder(config, state, _WITHIN)
        return fitted(lambda: Segmenter(Encoder(spec, build()), head), state).eval()


def kind(folder: Path) -> str | None:
    """Which of ours the folder holds: `ENCODER`, `AUTOENCODER`, `LEARNER`, `CLASSIFIER`, … or None."""
    if not (folder / CONFIG).is_file():
        return None
    found = _own(folder, read_json(folder / CONFIG)).get("kind", str)
    return found if found in (ENCODER, AUTOENCODER, LEARNER, CLASSIFIER, HEAD, SEGMENTER) else None


def read_extra(folder: Path) -> dict[str, Any]:
    """What was given as `extra` when the folder was written."""
    extra: dict[str, Any] = _own(folder, read_json(folder / CONFIG)).need("extra", dict)
    return extra


def read_learned(folder: Path) -> list[str] | None:
    """What was given as `learned` when the folder was written; None where nothing was."""
    path = folder / LEARNED
    return read_text(path).split() if path.is_file() else None


def digest(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the module's tensors: names, types, shapes and bytes.

    The same in every process and on every device; the order of the tensors does not matter.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(flat.view(torch.uint8).numpy())
    return sha.hexdigest()


def _builder(
    config: dict[str, Any], state: Mapping[str, Tensor], prefix: str = ""
) -> tuple[EncoderSpec, Callable[[], VisionTransformer]]:
    """What a folder's encoder is, and what builds it; ValueError where its tensors, named `prefix` …, are others."""
    spec = read_spec(EncoderSpec, config["semmae"].get("spec"))
    if not spec.std or len(spec.mean) != len(spec.std):
        raise ValueError(f"mean is of {len(spec.mean)} channels, std of {len(spec.std)}")
    if min(spec.std) <= 0:
        raise ValueError(f"std is {spec.std}, not positive")
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    classes = config.get("label_names", [])
    if not isinstance(classes, list):
        raise ValueError(f"label_names is {shown(classes)}, not a list of names")
    shown_by_weights = vit_arguments(bare, spec.num_heads, spec.grid) | {"num_classes": len(classes)}
    arguments, architecture = config.get("model_args"), config.get("architecture")
    if not isinstance(arguments, dict) or not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(f"architecture {shown(architecture)} with model_args {shown(arguments)} is no model of timm")
    if isinstance(arguments.get("img_size"), list):
        arguments = {**arguments, "img_size": tuple(arguments["img_size"])}
    sizes = {"img_size": spec.image_size, "patch_size": spec.patch_size, "embed_dim": spec.width, "depth": spec.depth}
    for name in {**shown_by_weights, **arguments}:
        wanted = shown_by_weights.get(name)
        given = arguments.get(name) if arguments.get(name) != wanted else sizes.get(name, wanted)
        if given != wanted:
            raise ValueError(f"{shown(name)} is {shown(given)}, and by the weights {wanted}")
    return spec, lambda: _create(architecture, config.get("pretrained_cfg"), arguments)


def _create(architecture: str, pretrained_cfg: Any, arguments: dict[str, Any]) -> VisionTransformer:
    try:
        vit = timm.create_model(architecture, pretrained=False, pretrained_cfg=pretrained_cfg, **arguments)
    except (TypeError, AttributeError, KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm cannot build {architecture} as it says ({reason(error)})") from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"architecture {architecture} is no Vision Transformer")
    return vit


def _own(folder: Path, config: Mapping[str, Any]) -> Fields:
    """The section of a configuration that is ours; empty where it has none."""
    return Fields(folder / CONFIG, Fields(folder / CONFIG, config).get("semmae", dict, {}))


def _read(folder: Path, wanted: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder of ours that is to hold this kind."""
    config, path = _read_config(folder, wanted), folder / WEIGHTS
    try:
        open_regular(path).close()
        return config, load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {reason(error)}; restore the folder or save it again") from error


def _read_config(folder: Path, wanted: str) -> dict[str, Any]:
    if kind(folder) != wanted:
        raise UserError(f"{folder}: no {wanted} of semmae; give a folder that holds {WEIGHTS} and its {CONFIG}")
    return read_json(folder / CONFIG)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Faults of what a folder holds, as UserError."""
    try:
        yield
    except ValueError as error:
        fault = f"{WEIGHTS} or {CONFIG} was changed: {reason(error, 300)}"
        raise UserError(f"{folder}: {fault}; restore the folder or save it again") from error


def _write(
    folder: Path,
    kind: str,
    network: nn.Module,
    spec: Any,
    extra: Mapping[str, Any] | None,
    config: Mapping[str, Any] = MappingProxyType({}),
    own: Mapping[str, Any] = MappingProxyType({}),
    learned: Sequence[str] | None = None,
) -> None:
    """A folder of a network: `config` is what timm reads, our section holds the dataclass `spec` and `own`."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; give a folder")

    def check(there: Path) -> None:
        others = sorted(path.name for path in there.iterdir() if path.name not in (WEIGHTS, CONFIG, LEARNED))
        if others:
            raise UserError(f"{folder} holds other files ({listed(others)}); give a new folder, or move them away")

    if folder.exists():
        check(folder)
    with whole_folder(folder, check) as fresh:
        save_tensors(network.state_dict(), fresh / WEIGHTS)
        section = {"kind": kind, "spec": asdict(spec), **own, "extra": extra or {}}
        write_json(fresh / CONFIG, {**config, "semmae": section})
        if learned is not None:
            write_text(fresh / LEARNED, "".join(f"{key}\n" for key in learned))


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, at once and with the umask's mode: `save_file` lets nobody but the owner read."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole(path) as beside:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        save_file(tensors, beside, metadata={"format": "pt"})
        beside.chmod(mode)
