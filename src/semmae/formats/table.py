"""FORMS: every form of checkpoint, a row each, in the order in which they are recognised."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from semmae.formats import dino, huggingface, mae, mmpretrain, onnx, timm
from semmae.formats.form import Form, Reading, State, Writing

_ROWS = (huggingface.FORM, mmpretrain.FORM, mae.FORM, dino.FORM, timm.FORM, onnx.FORM)
FORMS: Mapping[str, Form] = MappingProxyType({row.name: row for row in _ROWS})
READINGS: Mapping[str, Reading] = MappingProxyType({row.name: row.reading for row in _ROWS if row.reading})
WRITINGS: Mapping[str, Writing] = MappingProxyType({row.name: row.writing for row in _ROWS if row.writing})


def reading_of(state: State) -> Reading:
    """The form of these tensors; of no form's, timm's: loading will name what is missing."""
    found = (reading for reading in READINGS.values() if reading.recognise(state))
    return next(found, READINGS[timm.FORM.name])


def reading_of_folder(config: Mapping[str, Any]) -> Reading | None:
    """The form of a folder, by its config.json (empty where it has none)."""
    found = (reading for reading in READINGS.values() if reading.describes and reading.describes(config))
    return next(found, None)


def projects() -> str:
    """Whose checkpoints are read, for messages."""
    *most, last = [project for form in FORMS.values() for project in form.projects]
    return f"{', '.join(most)} or {last}"
