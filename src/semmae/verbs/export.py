"""`semmae export`: an encoder, a masked autoencoder or a classifier, in the form that other libraries load.

Notable here:
- the folder is written beside its place, read again and compared bit by bit (ONNX: run and compared), and only then
  moved there; nothing is uploaded before that;
- a form that cannot hold what the model has is refused by name, never approximated.
"""

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semmae.errors import UserError, listed
from semmae.evaluation.classifier import crop_share
from semmae.files import Fields, check_replaceable, file_digest, read_json, whole_folder, write_json, write_text
from semmae.formats import folders as checkpoint
from semmae.formats.form import Subject, encoder_of
from semmae.formats.hub import CARD, FILES, check_hub_name, push_to_hub
from semmae.formats.open import find_decoder, load_encoder, load_mae, own_folder
from semmae.formats.table import WRITINGS
from semmae.formats.write import check_form, write_form
from semmae.models.classifier import Classifier, without_head
from semmae.models.mae import MaskedAutoencoder
from semmae.names import user_path
from semmae.objects import described
from semmae.options.export import ExportOptions
from semmae.options.values import check_image_size, check_values
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.reporting.model_card import RESULTS, Card, find_run, write_card
from semmae.reporting.page import read_facts
from semmae.run.finished import is_written
from semmae.run.folder import check_inputs, locked_beside
from semmae.run.places import check_place

ABOUT = "export.json"  # what was exported; by it --overwrite knows an export
_OF_FILES = (".onnx", ".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # endings that no folder of an export bears
_MASK_RATIO = 0.75  # MAE's, where no run gives another


def export(options: ExportOptions) -> Path:
    """Write an encoder, with its decoder or the head of a classifier, for timm, MAE, Hugging Face or ONNX."""
    check_values(options)
    _check_request(options)
    with locked_beside(options.out):
        return _exported(options)


def _exported(options: ExportOptions) -> Path:
    run = find_run(options.encoder)
    subject = _open_subject(options, run.options.get("mask_ratio", _MASK_RATIO) if run else _MASK_RATIO)
    model = subject.model
    source = described(options.encoder)
    check_form(options.to, model, source)
    headless = without_head(copy.deepcopy(model)) if isinstance(model, Classifier) else encoder_of(model)
    digest = checkpoint.digest(headless)  # figures are of the encoder alone
    if options.image_size is not None:
        (model.encoder if isinstance(model, Classifier) else model).set_image_size(options.image_size)
    results = {} if options.results is None else {options.results.parent.name: read_facts(options.results, RESULTS)}
    title = options.push_to_hub or options.out.resolve().name
    shown = (subject.classes, subject.crop_pct)
    card = Card(title, options.to, model, source, run, results, digest, *shown)
    asked = {"form": options.to, "decoder": isinstance(model, MaskedAutoencoder), "head": isinstance(model, Classifier)}
    known, out = asked | {"weights": checkpoint.digest(model)}, options.out
    if not options.overwrite and is_written(out / ABOUT, known, "another export", lambda there: _damaged(out, there)):
        say(f"{options.out}: already finished; nothing was written\n{lines(step=_loading(options, asked))}")
        return options.out
    check = functools.partial(_check_there, options) if options.overwrite else None
    with whole_folder(options.out, check) as folder:
        facts = write_form(options.to, subject, folder)
        files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        write_json(folder / ABOUT, {**asked, "semmae": version("semmae"), **facts, "files": files})
        write_text(folder / CARD, write_card(card))
    made = [str(path) for path in sorted(options.out.iterdir())]
    if options.push_to_hub:
        made.append(_pushed(options, card))
    say(lines(made=made, step=_loading(options, asked)))
    return options.out


def _loading(options: ExportOptions, kind: Mapping[str, Any]) -> str:
    """How to load the export, as a command; `kind` holds whether it has a "decoder", or a "head"."""
    return WRITINGS[options.to].command(options.out.resolve(), kind["decoder"], kind["head"])


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
    if out.suffix in _OF_FILES and not out.is_dir():
        fault = f"is the name of a file, and --to {options.to} writes a folder"
        raise UserError(f"--out {out}: {fault}; use --out {out.with_suffix('')}")
    _check_there(options, out)
    writing = WRITINGS[options.to]
    if options.decoder == "with" and writing.decoder == "never":
        others = " or ".join(f"--to {name}" for name, other in WRITINGS.items() if other.decoder != "never")
        raise UserError(f"--decoder with: --to {options.to} has no place for a decoder; use {others}")
    if options.private and not options.push_to_hub:
        raise UserError("--private is of the repository on the hub; give --push-to-hub OWNER/NAME too, or leave it out")
    if options.push_to_hub:
        check_hub_name(options.push_to_hub)
    if options.results is not None and not options.results.is_file():
        raise UserError(f"--results {options.results}: no such file; give the results.json of an evaluation")
    if missing := writing.missing():
        raise UserError(f'--to {options.to} needs {" and ".join(missing)}; pip install "semmae[{options.to}]"')


def _check_there(options: ExportOptions, there: Path) -> None:
    """Refuse what holds anything but an export: only that is replaced. It may have been moved aside."""
    out = options.out
    names = {path.name for path in there.iterdir()} if there.is_dir() else set()
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


def _damaged(out: Path, there: Mapping[str, Any]) -> list[str]:
    """The files of an export that are gone or have other bytes; one that lists none proves nothing."""
    files = Fields(out / ABOUT, there).get("files", dict, {ABOUT: ""})
    return [name for name, wanted in files.items() if not (out / name).is_file() or file_digest(out / name) != wanted]


def _open_subject(options: ExportOptions, ratio: float) -> Subject:
    """The autoencoder or the classifier where its other half is wanted, else the encoder; its image size is checked."""
    source, is_loaded = described(options.encoder), not isinstance(options.encoder, str)
    wanted = options.head and WRITINGS[options.to].head and not is_loaded
    folder = own_folder(user_path(options.encoder, "--encoder"), checkpoint.CLASSIFIER) if wanted else None
    if folder is not None:
        classifier, classes = checkpoint.read_classifier(folder)
        heads = classifier.encoder.spec.num_heads
        if options.num_heads not in (None, heads):
            raise UserError(f"--num-heads {options.num_heads}: {source} has {heads}; leave it out")
        config = folder / checkpoint.CONFIG
        crop_pct = crop_share(config, Fields(config, read_json(config)).need("pretrained_cfg", dict))
        subject = Subject(source, classifier, ratio, classes, crop_pct)
    elif _takes_decoder(options):
        mae_model = load_mae(options.encoder, num_heads=options.num_heads, decoder_num_heads=options.decoder_num_heads)
        subject = Subject(source, mae_model, ratio)
    else:
        subject = Subject(source, load_encoder(options.encoder, num_heads=options.num_heads), ratio)
    if options.image_size is not None:
        check_image_size(options.image_size, encoder_of(subject.model).patch_size)
    return subject


def _takes_decoder(options: ExportOptions) -> bool:
    by_itself = WRITINGS[options.to].decoder == "always"
    if options.decoder == "without" or (options.decoder == "auto" and not by_itself):
        return False
    found = find_decoder(options.encoder, num_heads=options.decoder_num_heads or 1) is not None
    if options.decoder == "with" and not found:
        raise UserError(
            f"--decoder with: {described(options.encoder)} has no decoder; use --decoder without, or a run of pretrain"
        )
    return found
