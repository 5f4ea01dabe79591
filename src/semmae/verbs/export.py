"""`semmae export`: an encoder, a masked autoencoder or a classifier, in the form that other libraries load.

Notable here:
- the folder is written beside its place, read again and compared bit by bit (ONNX: run and compared), and only then
  moved there; nothing is uploaded before that;
- a form that cannot hold what the model has is refused by name, never approximated.
"""

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from semmae.errors import UserError, listed
from semmae.evaluation.classifier import crop_share
from semmae.files import Fields, check_replaceable, read_json, user_path, whole_folder, write_json, write_text
from semmae.formats import folders as checkpoint, huggingface, mae, onnx
from semmae.formats.hub import CARD, FILES, check_hub_name, push_to_hub
from semmae.formats.open import classifier_folder, find_decoder, load_classifier, load_encoder, load_mae
from semmae.formats.pooling import pooling_of
from semmae.formats.read_again import Model, compared, encoder_of
from semmae.models.classifier import Classifier, without_head
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.models.weights import MEAN_NORM, NO_QKV_BIAS, NORM_EPS, load_strictly, norm_epsilons, peculiarities
from semmae.options.export import ExportOptions
from semmae.options.values import check_image_size, check_values
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.reporting.model_card import RESULTS, Card, find_run, write_card
from semmae.reporting.page import read_facts
from semmae.run.folder import check_inputs
from semmae.run.places import check_place
from semmae.shell import python, text

Form = Literal["timm", "mae", "hf", "onnx"]

ABOUT = "export.json"  # tells what was exported; by it --overwrite knows an export
_MASK_RATIO = 0.75  # where no run tells another: MAE's
# Forms that have a place for a decoder.
_WITH_DECODER = ("mae", "hf")
# Forms that have a place for the head of a classifier.
_WITH_HEAD = ("timm", "hf", "onnx")
# What of an encoder's peculiarities a form can hold.
_HOLDS = {"mae": {MEAN_NORM}, "hf": {NO_QKV_BIAS}}
_NAMES = {"mae": "MAE's form", "hf": "transformers' ViT", "timm": "timm's ViT"}

_LOG = logging.getLogger("semmae")


@dataclass(frozen=True)
class _Subject:
    """What is exported, and what of it no tensor shows."""

    source: str  # as the user gave it
    model: Model
    ratio: float  # share of the patches that was hidden from it
    classes: Sequence[str] = ()  # of a classifier
    crop_pct: float = 1.0  # share of the short side that it was measured on
    stage: str | None = None  # of the run that trained the encoder


def export(options: ExportOptions) -> Path:
    """Write an encoder, with its decoder or the head of a classifier, for timm, MAE, Hugging Face or ONNX."""
    check_values(options)
    _check_request(options)
    run = find_run(options.encoder)
    subject = _open_subject(options, run.options.get("mask_ratio", _MASK_RATIO) if run else _MASK_RATIO)
    if pooling_of(options.encoder) == "mean":
        subject = replace(subject, stage="pretrain")
    model = subject.model
    _check_form(options, model)
    digest = checkpoint.digest(_headless(model))
    if options.image_size is not None:
        (model.encoder if isinstance(model, Classifier) else model).set_image_size(options.image_size)
    results = {} if options.results is None else {options.results.parent.name: read_facts(options.results, RESULTS)}
    title = options.push_to_hub or options.out.resolve().name
    shown = (subject.classes, subject.crop_pct)
    card = Card(title, options.to, model, options.encoder, run, results, digest, *shown)
    asked = {"form": options.to, "decoder": isinstance(model, MaskedAutoencoder), "head": isinstance(model, Classifier)}
    if _is_written(options, asked | {"weights": checkpoint.digest(model)}):
        say(f"{options.out}: already finished; nothing was written\n{lines(step=_loading(options, asked))}")
        return options.out
    with whole_folder(options.out) as folder:
        facts = _WRITERS[options.to](subject, folder)
        write_json(folder / ABOUT, {**asked, "semmae": version("semmae"), **facts})
        write_text(folder / CARD, write_card(card))
    made = [str(path) for path in sorted(options.out.iterdir())]
    if options.push_to_hub:
        made.append(_pushed(options, card))
    say(lines(made=made, step=_loading(options, asked)))
    return options.out


def _loading(options: ExportOptions, kind: Mapping[str, Any]) -> str:
    """How to load the export, as a command; `kind` holds whether it has a "decoder", or a "head"."""
    place = options.out.resolve()
    if options.to == "timm":
        return python(f"import timm; print(timm.create_model({text(f'local-dir:{place}')}, pretrained=True))")
    if options.to == "hf":
        if kind["decoder"] or kind["head"]:
            name, more = "ViTMAEForPreTraining" if kind["decoder"] else "ViTForImageClassification", ""
        else:
            name, more = "ViTModel", ", add_pooling_layer=False"  # a pooler is none of ours, and would be random
        return python(f"import transformers; print(transformers.{name}.from_pretrained({text(place)}{more}))")
    if options.to == "onnx":
        session = f"onnxruntime.InferenceSession({text(place / onnx.FILE)})"
        return python(f"import onnxruntime; print([each.name for each in {session}.get_outputs()])")
    return python(f'import torch; print(*torch.load({text(place / mae.FILE)}, weights_only=True)["model"])')


def _pushed(options: ExportOptions, card: Card) -> str:
    """The address on the hub to which the export was uploaded."""
    assert options.push_to_hub is not None
    return push_to_hub(
        options.out,
        options.push_to_hub,
        private=options.private,
        message=f"semmae {version('semmae')}: export to {options.to}",
        card=lambda name: write_card(replace(card, title=name)),
    )


def _check_request(options: ExportOptions) -> None:
    """Refuse options that contradict each other, and a folder in the way, before anything is loaded."""
    out = options.out
    check_place("--out", out)
    check_inputs(options)
    check_place("--out", out.absolute().parent, out)  # it is written beside its place, and moved there
    check_replaceable(out)
    _check_there(options)
    if options.decoder == "with" and options.to not in _WITH_DECODER:
        raise UserError(f"--decoder with: --to {options.to} has no place for a decoder; use --to mae or --to hf")
    if options.private and not options.push_to_hub:
        raise UserError("--private is of the repository on the hub; give --push-to-hub OWNER/NAME too, or leave it out")
    if options.push_to_hub:
        check_hub_name(options.push_to_hub)
    if options.results is not None and not options.results.is_file():
        raise UserError(f"--results {options.results}: no such file; give the results.json of an evaluation")
    missing = onnx.missing_libraries() if options.to == "onnx" else []
    if missing:
        raise UserError(f'--to onnx needs {" and ".join(missing)}; pip install "semmae[onnx]"')


def _check_there(options: ExportOptions) -> None:
    """Refuse a folder that holds anything but an export: only that is replaced."""
    out = options.out
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(names - {ABOUT, CARD, *FILES})
    if not names:
        return
    if not options.overwrite and (ABOUT not in names or foreign or options.push_to_hub or options.results):
        raise UserError(f"--out {out}: not empty; use --overwrite to replace it, or another folder")
    if ABOUT not in names:
        raise UserError(f"--out {out}: holds no export of semmae: --overwrite will not delete it; use another")
    if foreign:
        raise UserError(
            f"--out {out}: holds {listed(foreign)} beside its export: --overwrite will not delete that; move it away"
        )


def _is_written(options: ExportOptions, facts: Mapping[str, Any]) -> bool:
    """Whether --out holds just this export; UserError where it holds another, which is not to be replaced."""
    if options.overwrite or not (options.out / ABOUT).is_file():
        return False
    there = read_json(options.out / ABOUT)
    if any(there.get(name) != value for name, value in facts.items()):
        raise UserError(f"--out {options.out}: holds another export; use --overwrite to replace it, or another folder")
    return True


def _open_subject(options: ExportOptions, ratio: float) -> _Subject:
    """The autoencoder or the classifier where its other half is wanted, else the encoder; its image size is checked."""
    wanted = options.head and options.to in _WITH_HEAD
    folder = classifier_folder(user_path(options.encoder, "--encoder")) if wanted else None
    if folder is not None:
        classifier, classes = checkpoint.read_classifier(folder)
        heads = classifier.encoder.spec.num_heads
        if options.num_heads not in (None, heads):
            raise UserError(f"--num-heads {options.num_heads}: {options.encoder} has {heads}; leave it out")
        config = folder / checkpoint.CONFIG
        crop_pct = crop_share(config, Fields(config, read_json(config)).need("pretrained_cfg", dict))
        subject = _Subject(options.encoder, classifier, ratio, classes, crop_pct)
    elif _takes_decoder(options):
        mae_model = load_mae(options.encoder, num_heads=options.num_heads, decoder_num_heads=options.decoder_num_heads)
        subject = _Subject(options.encoder, mae_model, ratio)
    else:
        subject = _Subject(options.encoder, load_encoder(options.encoder, num_heads=options.num_heads), ratio)
    if options.image_size is not None:
        check_image_size(options.image_size, encoder_of(subject.model).patch_size)
    return subject


def _takes_decoder(options: ExportOptions) -> bool:
    if options.decoder == "without" or (options.decoder == "auto" and options.to != "mae"):
        return False
    found = find_decoder(options.encoder, num_heads=options.decoder_num_heads or 1) is not None
    if options.decoder == "with" and not found:
        raise UserError(
            f"--decoder with: {options.encoder} has no decoder; use --decoder without, or a run of pretrain"
        )
    return found


def _headless(model: Model) -> Encoder:
    """The encoder alone, of a classifier a copy: whose digest figures are of."""
    return without_head(copy.deepcopy(model)) if isinstance(model, Classifier) else encoder_of(model)


def _check_form(options: ExportOptions, model: Model) -> None:
    """Refuse a model with parts that the form has no place for."""
    form = options.to
    if form == "onnx":
        return
    others = "--to onnx" if form == "timm" else "--to timm or --to onnx"
    if form in _HOLDS:
        faults = [words for words in peculiarities(encoder_of(model)) if words not in _HOLDS[form]]
        if faults:
            raise UserError(
                f"{options.encoder}: has {' and '.join(faults)}, which {_NAMES[form]} has not; use {others}"
            )
    found = norm_epsilons(model)
    told = " and ".join(f"{eps:g}" for eps in sorted(found))
    if form == "hf" and len(found) > 1:
        raise UserError(
            f"{options.encoder}: its layer norms have epsilons {told}, {_NAMES[form]} but one; use {others}"
        )
    # Of timm's own models the name tells another epsilon.
    named = form == "timm" and "architecture" in getattr(encoder_of(model).vit, "pretrained_cfg", {})
    if form != "hf" and found != {NORM_EPS} and not named:
        raise UserError(
            f"{options.encoder}: its layer norms have epsilon {told}, those of {_NAMES[form]} {NORM_EPS:g}; "
            "use --to hf or --to onnx"
        )


def _write_timm(subject: _Subject, folder: Path) -> Mapping[str, Any]:
    model = subject.model
    if isinstance(model, Classifier):
        # By this --eval-only measures it again. Which images it learned from is not for whoever gets the export.
        about = {"crop_pct": subject.crop_pct}
        checkpoint.save_classifier(model, folder, subject.classes, subject.crop_pct, about)
        return compared(subject.source, model, lambda: load_classifier(folder)[0])
    encoder = encoder_of(model)
    # By it `pooling_of` knows a masked autoencoder's encoder again.
    checkpoint.save_encoder(encoder, folder, {"stage": subject.stage} if subject.stage else None)
    return compared(subject.source, encoder, lambda: load_encoder(folder))


def _write_mae(subject: _Subject, folder: Path) -> Mapping[str, Any]:
    """`mae.pth`, and what its tensors do not show in a config.json beside it."""
    model, spec = subject.model, encoder_of(subject.model).spec
    config: dict[str, Any] = {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_heads": spec.num_heads,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    if isinstance(model, MaskedAutoencoder):
        config |= {"decoder_num_heads": model.decoder.num_heads, "norm_pix_loss": model.norm_pix_loss}
    path = folder / mae.FILE
    torch.save({"model": _plain(_released(model))}, path)
    write_json(folder / checkpoint.CONFIG, config)
    return compared(
        subject.source, model, lambda: load_mae(path) if isinstance(model, MaskedAutoencoder) else load_encoder(path)
    )


def _write_hf(subject: _Subject, folder: Path) -> Mapping[str, Any]:
    """`model.safetensors`, `config.json` and `preprocessor_config.json`, for a ViT of transformers."""
    model, spec, state = subject.model, encoder_of(subject.model).spec, _released(subject.model)
    eps = next(iter(norm_epsilons(model)))
    if isinstance(model, MaskedAutoencoder):
        how: dict[str, Any] = {"mask_ratio": subject.ratio, "norm_pix_loss": model.norm_pix_loss}
        config = huggingface.mae_config(spec, model.decoder, state, eps, **how)
        tensors = huggingface.from_mae(state)
    elif isinstance(model, Classifier):
        config = huggingface.classifier_config(spec, state, eps, subject.classes)
        tensors = huggingface.from_classifier(state)
    else:
        config, tensors = huggingface.encoder_config(spec, state, eps), huggingface.from_encoder(state)
    checkpoint.save_tensors(tensors, folder / checkpoint.WEIGHTS)
    write_json(folder / checkpoint.CONFIG, config)
    write_json(folder / huggingface.PREPROCESSOR, huggingface.preprocessor_config(spec, subject.crop_pct))
    return compared(subject.source, model, lambda: _read_hf(model, folder))


def _read_hf(like: Model, folder: Path) -> Model:
    """What a folder of transformers holds, of the kind of `like`."""
    if isinstance(like, MaskedAutoencoder):
        return load_mae(folder)
    encoder = load_encoder(folder)
    if not isinstance(like, Classifier):
        return encoder
    classifier = Classifier(encoder, like.num_classes, "cls")
    head = huggingface.to_head(load_file(folder / checkpoint.WEIGHTS))
    load_strictly(classifier.vit, classifier.vit.state_dict() | head)
    return classifier


def _write_onnx(subject: _Subject, folder: Path) -> Mapping[str, Any]:
    model, spec = subject.model, encoder_of(subject.model).spec
    assert not isinstance(model, MaskedAutoencoder), "ONNX has no place for a decoder"
    metadata = {
        "mean": json.dumps(list(spec.mean)),
        "std": json.dumps(list(spec.std)),
        "image_size": str(spec.image_size),
        "patch_size": str(spec.patch_size),
        "semmae": version("semmae"),
    }
    if isinstance(model, Classifier):
        metadata |= {"classes": json.dumps(list(subject.classes)), "crop_pct": str(subject.crop_pct)}
    _LOG.info("writing the graph, then comparing what onnxruntime computes; a large model takes a minute")
    onnx.write_onnx(model, folder / onnx.FILE, metadata)
    difference = onnx.check_onnx(model, folder / onnx.FILE)
    _LOG.info("onnxruntime and torch differ by %.1e at most", difference)
    return {"weights": checkpoint.digest(model), "difference": difference}


_WRITERS: Mapping[str, Callable[[_Subject, Path], Mapping[str, Any]]] = {
    "timm": _write_timm,
    "mae": _write_mae,
    "hf": _write_hf,
    "onnx": _write_onnx,
}


def _released(model: Model) -> dict[str, Tensor]:
    """Tensors under the names of the MAE release, an encoder's being timm's."""
    return mae.to_mae(model.state_dict()) if isinstance(model, MaskedAutoencoder) else model.vit.state_dict()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they go to disk: on the CPU, without gaps."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
