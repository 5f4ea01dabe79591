"""FORMS, row by row: each is complete, reads what its project released, and reads again what it writes."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from formats import test_forms
from refusals import refused
from torch import nn

from semmae.formats import huggingface
from semmae.formats.choose import choose, without_heads
from semmae.formats.files import read_weights
from semmae.formats.folders import digest
from semmae.formats.form import Model, State, Subject, pooling_of
from semmae.formats.hub import FILES
from semmae.formats.mae import to_mae
from semmae.formats.open import load_encoder, load_mae
from semmae.formats.table import FORMS, READINGS, WRITINGS, reading_of
from semmae.formats.write import check_form, write_form
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options import kind_of
from semmae.options.shared import Pooling

SPEC = EncoderSpec(32, 8, 48, 2, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CLASSES = ["cat", "dog", "cow & calf"]


def filled(model: Any) -> Any:
    for parameter in model.parameters():  # nothing may agree only because it is zero
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pooled(pooling: Pooling) -> Encoder:
    encoder = Encoder(SPEC)
    encoder.pooling = pooling
    return encoder


KINDS: dict[str, Callable[[], Model]] = {
    "encoder": lambda: filled(Encoder(SPEC)),
    "encoder of a masked autoencoder": lambda: filled(pooled("mean")),
    "decoder": lambda: filled(MaskedAutoencoder(Encoder(SPEC), DecoderSpec(32, 1, 4), norm_pix_loss=False)),
    "head": lambda: filled(Classifier(Encoder(SPEC), len(CLASSES), "cls")),
}


def held(form: str) -> list[str]:
    """What of a model a form has a place for."""
    encoders = dict.fromkeys((kind for kind in KINDS if kind.startswith("encoder")), True)
    kinds = encoders | {"decoder": WRITINGS[form].decoder != "never", "head": WRITINGS[form].head}
    return [kind for kind, holds in kinds.items() if holds]


WRITTEN = [(form, kind) for form in WRITINGS for kind in held(form)]


def recognising(state: State) -> list[str]:
    return [name for name, reading in READINGS.items() if reading.recognise(without_heads(state)[0])]


def test_every_row_has_a_name_a_title_and_a_way() -> None:
    for name, form in FORMS.items():
        assert form.name == name and form.title
        assert form.reading or form.writing
        assert bool(form.projects) == bool(form.reading)
    assert set(FILES) == {name for writing in WRITINGS.values() for name in writing.files}


def test_export_offers_the_forms_that_are_written() -> None:
    options = kind_of("export")

    assert sorted(get_args(get_type_hints(options)["to"])) == sorted(WRITINGS)


@pytest.mark.parametrize(("form", "kind"), WRITTEN)
def test_what_a_row_writes_is_read_bit_for_bit(form: str, kind: str, tmp_path: Path) -> None:
    if WRITINGS[form].missing():
        pytest.skip("needs libraries that are not installed")
    model, reading = KINDS[kind](), FORMS[form].reading
    check_form(form, model, "given")

    facts = write_form(form, Subject("given", model, 0.75, CLASSES if kind == "head" else ()), tmp_path)

    assert facts["weights"] == digest(model)
    assert {path.name for path in tmp_path.iterdir()} <= set(WRITINGS[form].files)
    if reading is None:
        assert facts["difference"] < 1e-4  # it was run and compared
        return
    encoder = model if isinstance(model, Encoder) else model.encoder
    (file,) = [tmp_path / name for name in reading.weights if (tmp_path / name).exists()]
    for place in (tmp_path, file):
        read = load_encoder(place)
        tensors = read.vit.state_dict()
        assert all(torch.equal(tensor, encoder.vit.state_dict()[name]) for name, tensor in tensors.items())
        assert (read.spec, read.pooling) == (SPEC, pooling_of(model))
    if isinstance(model, MaskedAutoencoder):
        assert digest(load_mae(tmp_path)) == digest(model)
    # An encoder alone bears timm's names in MAE's form too.
    assert recognising(read_weights(file).tensors) == ["timm" if form == "mae" and isinstance(model, Encoder) else form]


@pytest.mark.parametrize("form", WRITINGS)
def test_what_a_row_has_no_place_for_is_refused_and_others_named(form: str) -> None:
    for kind in set(KINDS) - set(held(form)):
        with refused() as raised:
            check_form(form, KINDS[kind](), "given")
        for other in WRITINGS:
            assert (f"--to {other}" in str(raised.value)) == (kind in held(other))


@pytest.mark.parametrize(("form", "kind"), WRITTEN)
def test_the_lines_that_load_it_are_python(form: str, kind: str) -> None:
    writing = WRITINGS[form]
    program, flag, code = shlex.split(writing.command(Path('/it\'s "here"'), kind == "decoder", kind == "head"))

    assert (program, flag) == ("python", "-c")
    compile(code, "command", "exec")
    compile("\n".join(writing.use("me/birds", KINDS[kind](), kind == "head")), "use", "exec")


def test_every_row_that_is_read_reads_a_released_layout() -> None:
    """Each layout is recognised by exactly one row, and no row waits for a layout that nobody saves."""
    wanted, other = (test_forms.network(seed).state_dict() for seed in (1, 2))
    layouts = [choose(form(wanted, other)).tensors for form in test_forms.FORMS if form not in test_forms.MMENGINE]
    mae = to_mae(KINDS["decoder"]().state_dict())
    layouts += [mae, huggingface.from_mae(mae), huggingface.from_encoder(wanted), test_forms.in_mmpretrain(wanted)]

    found = [recognising(layout) for layout in layouts]

    assert all(len(names) == 1 for names in found), found
    assert {names[0] for names in found} == set(READINGS)


def test_what_no_row_recognises_is_taken_for_timm_s() -> None:
    assert reading_of({"conv1.weight": torch.zeros(1)}) is FORMS["timm"].reading
