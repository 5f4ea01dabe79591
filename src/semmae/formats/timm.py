"""timm's models: by name with the weights of its hub, or as a flat state dict."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open

from semmae.errors import UserError, listed, near, reason
from semmae.files import Fields, read_json
from semmae.formats import dino, folders as checkpoint, mae
from semmae.formats.files import damaged_download
from semmae.formats.form import Form, Model, Reading, Subject, Writing, encoder_of
from semmae.models.classifier import Classifier
from semmae.models.specs import check_count
from semmae.models.vit import Encoder
from semmae.models.weights import not_finite, wrap_vit
from semmae.names import shown
from semmae.progress import quiet
from semmae.shell import python, text

_LOG = logging.getLogger("semmae")
_LOCAL, _HUB = "local-dir:", "hf-hub:"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".tar")  # endings of what timm looks for in a folder


def _tag(config: Mapping[str, Any]) -> object:
    """What follows the architecture in a model's name: whose weights they are."""
    cfg = config.get("pretrained_cfg")
    return cfg.get("tag") if isinstance(cfg, Mapping) else None


def load_named(name: str) -> Encoder:
    """The encoder, in eval mode, of a name as `timm.create_model` takes it (also `local-dir:DIR`, `hf-hub:OWNER/NAME`).

    UserError where there is no such name, no ViT with a class token, or no weights.
    """
    if name.startswith(_LOCAL):
        _check_folder(Path(name.removeprefix(_LOCAL)))
    elif ":" not in name:
        _check_name(name)
        # Refused before anything is downloaded, and without memory for what may be refused.
        with torch.device("meta"):
            _wrap(name, _create(name, pretrained=False))
    encoder = _wrap(name, _create(name, pretrained=True)).eval()
    if broken := not_finite(encoder.state_dict()):
        raise UserError(
            f"timm:{name}: tensors with values that are infinite or no numbers: {listed(broken)}; give other weights"
        )
    return encoder


def cached(name: str) -> Path | None:
    """The weights of a model of timm's hub, by its name there, in the Hugging Face cache; None where they are not."""
    config = None if ":" in name else timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or config.hf_hub_filename or config.custom_load:
        return None
    found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, checkpoint.WEIGHTS)
    return Path(found) if isinstance(found, str) else None


def _in_cache(name: str) -> Path | None:
    """The weights of `hf-hub:OWNER/NAME` in the cache, of which timm asks the hub."""
    if not name.startswith(_HUB):
        return None
    repository, _, revision = name.removeprefix(_HUB).partition("@")
    found = huggingface_hub.try_to_load_from_cache(repository, checkpoint.WEIGHTS, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose configuration describes another model than its weights can be, before it is built."""
    path = folder / "config.json"
    arguments = Fields(path, read_json(path)).get("model_args", dict, {})
    try:
        for name, value in arguments.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int) and not isinstance(one, bool):
                    check_count(str(name)[:40], one)
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore the folder") from error
    weights = [entry for entry in folder.iterdir() if entry.suffix in _WEIGHTS]
    if not all(entry.is_file() for entry in weights):
        raise UserError(f"{folder}: {next(entry.name for entry in weights if not entry.is_file())} is no regular file")
    for entry in weights:
        if entry.suffix == ".safetensors":
            _check_floats(entry)
    with torch.device("meta"):
        model = _create(f"{_LOCAL}{folder}", pretrained=False)
    needed, most = sum(tensor.numel() for tensor in model.parameters()), sum(file.stat().st_size for file in weights)
    if needed > most:  # a value takes a byte at least
        raise UserError(f"{path}: describes a model of {needed} values, and its weights are {most} bytes; restore them")


def _check_floats(path: Path) -> None:
    """Refuse whole numbers as weights, by the header: timm would cast them. A damaged file is left to timm."""
    try:
        with safe_open(path, "pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return
    if wrong := [name for name, dtype in types.items() if name.endswith((".weight", ".bias")) and "F" not in dtype]:
        raise UserError(f"{path}: weights that are whole numbers: {listed(wrong)}; save the model in float32")


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*") if tag else timm.list_models()
    if timm.is_model(architecture) and (not tag or name in known):
        return
    matches = difflib.get_close_matches(name, known or timm.list_models(), n=3)
    hint = near(name, matches) if matches else '; timm.list_pretrained("vit*") lists them'
    raise UserError(f"timm has no model {shown(name)}{hint}")


@quiet("huggingface_hub")
def _create(name: str, pretrained: bool) -> Any:
    try:
        place = cached(name) if pretrained else None
        # From the cache without asking the hub: offline that takes minutes, and the same name stays the same weights.
        overlay = {"file": str(place)} if place else None
        model: Any = timm.create_model(
            name, pretrained=pretrained, dynamic_img_size=True, pretrained_cfg_overlay=overlay
        )
        # Dropped afterwards: asked for a model without classifier, timm would not load strictly.
        before = list(model.state_dict())
        model.reset_classifier(0)
    except MemoryError:
        raise
    except TypeError as error:
        # Models of other families do not take dynamic_img_size.
        raise UserError(_refusal(name, "it is no Vision Transformer")) from error
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        fault = reason(error, 300)
        if place is None and isinstance(error, SafetensorError | RuntimeError):
            place = _in_cache(name)
        if name.startswith(_LOCAL):
            raise UserError(f"{shown(f'timm:{name}')} cannot be loaded ({fault}); restore the folder") from error
        if place is not None:
            raise damaged_download(place, shown(f"timm:{name}"), error) from error
        raise UserError(
            f"the weights of {shown(f'timm:{name}')} are not at hand ({reason(error, 150)}); download them once where "
            "the hub can be reached (its cache, HF_HOME, may be copied), or give a checkpoint file"
        ) from error
    left = model.state_dict()
    dropped = [tensor for tensor in before if tensor not in left]
    if pretrained and dropped:
        _LOG.info("timm:%s: dropped, not part of an encoder: %s", name, listed(dropped))
    return model


def _wrap(name: str, model: Any) -> Encoder:
    config = model.pretrained_cfg
    try:
        return wrap_vit(model, tuple(config["mean"]), tuple(config["std"]))
    except ValueError as error:
        raise UserError(_refusal(name, str(error))) from error


def _refusal(name: str, fault: str) -> str:
    remedy = "choose a ViT with a class token, e.g. vit_small_patch16_224.dino"
    return f"{shown(f'timm:{name}')} cannot be the encoder ({fault}); {remedy}"


def write(subject: Subject, folder: Path) -> Mapping[str, Any]:
    """A folder of ours, which timm loads too."""
    model = subject.model
    if isinstance(model, Classifier):
        # By this --eval-only measures it again. Which images it learned from is not for whoever gets the export.
        about = {"crop_pct": subject.crop_pct}
        checkpoint.save_classifier(model, folder, subject.classes, subject.crop_pct, about)
    else:
        checkpoint.save_encoder(encoder_of(model), folder)
    return {}


def _use(place: str, model: Model, classes: bool) -> Sequence[str]:
    prefix = _HUB if "/" in place else _LOCAL
    answer = ("logits = model(images)  # (B, classes): those of model.pretrained_cfg['label_names']",)
    return (
        "import timm",
        "",
        f'model = timm.create_model("{prefix}{place}", pretrained=True).eval()',
        *(answer if classes else ()),
        "tokens = model.forward_features(images)  # (B, 1 + patches, width): class token first",
    )


FORM = Form(
    name="timm",
    title="timm's ViT",
    projects=("timm", "DeiT", "DINO", "iBOT", "MoCo v3", "MSN"),
    reading=Reading(
        recognise=lambda state: (
            "patch_embed.proj.weight" in state and not mae.is_mae(state) and not dino.is_dinov2(state)
        ),
        to_encoder=lambda state: (dict(state), []),
        describes=lambda config: "architecture" in config,
        model_name=_tag,
        weights=(checkpoint.WEIGHTS,),
        open_folder=lambda folder: load_named(f"{_LOCAL}{folder}"),
    ),
    writing=Writing(
        write=write,
        files=(checkpoint.CONFIG, checkpoint.WEIGHTS),
        library="timm",
        command=lambda folder, decoder, head: python(
            f"import timm; print(timm.create_model({text(f'{_LOCAL}{folder}')}, pretrained=True))"
        ),
        use=_use,
        decoder="never",
        head=True,
        peculiar=None,
        norm_eps="named",
    ),
)
