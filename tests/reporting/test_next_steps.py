"""The commands that a finished run names: each is of a verb, with its options, on data that it takes."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from semmae.data.classes import voters
from semmae.data.manifest import open_images
from semmae.options import VERBS, kind_of
from semmae.options.fields import options_of
from semmae.options.shared import PUBLIC_TEACHER
from semmae.reporting.next_steps import _STEPS, next_steps
from semmae.run.start import check_start
from semmae.verbs import evaluate, segment
from semmae.verbs.measuring import divided, open_class_sets

# As the verbs open them; all others take any images.
OPENED: dict[str, Callable[[Any], object]] = {
    "knn": lambda options: voters(options.data, open_class_sets(options, channels=3), limit=None),
    "probe": lambda options: divided(options, open_class_sets(options, channels=3)),
    "finetune": lambda options: divided(options, open_class_sets(options, channels=3)),
    "segment": lambda options: segment.open_data(options, channels=3),
    "evaluate": lambda options: evaluate.open_data(evaluate.with_annotations(options), channels=3),
}


def finished(folder: Path, verb: str, **options: Any) -> Path:
    """A run that names its next steps by what it was begun with; nothing in it was computed."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"verb": verb, "out": str(folder), **options}))
    (folder / "summary.json").write_text(json.dumps({"stage": verb, "classes": 2}))
    return folder


def commands(run: Path) -> list[list[str]]:
    lines = [shlex.split(step.command) for step in next_steps(run) if step.command.startswith("semmae ")]
    return [words[1:] for words in lines]


def opened(words: list[str]) -> str:
    """Parse a command, check it as its verb does at once, and open its data; the verb."""
    verb, *given = words
    options = tiny.options_from(kind_of(verb), given)
    assert verb in VERBS
    if "IMAGES" in given or "DATA" in given:  # for the reader to fill in
        return verb
    check_start(options, [])
    if hasattr(options, "data"):
        options = dataclasses.replace(options, workers=0)
        OPENED.get(verb, lambda own: open_images(own.data, workers=0))(options)
    return verb


@pytest.mark.parametrize("verb", _STEPS)
@pytest.mark.parametrize("masks", [False, True])
def test_every_command_opens_its_data(verb: str, masks: bool, creatures: Path, encoder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": str(creatures / "images"), "encoder": str(encoder)}
    if masks:
        options["masks"] = str(creatures / "masks")
    known = options_of(kind_of(verb))
    run = finished(tmp_path / "run", verb, **{name: value for name, value in options.items() if name in known})
    for own in ({"knn_top1": 1.0}, {})[: 1 + masks]:  # without annotations there were classes
        (run / "results.json").write_text(json.dumps({"this encoder": own}))
        found = [opened(words) for words in commands(run)]
        assert found or verb in ("probe", "segment")


@pytest.mark.parametrize(
    ("teacher", "named"), [(PUBLIC_TEACHER, None), ("own", "own"), ("timm:vit_tiny", "timm:vit_tiny")]
)
def test_after_the_demo_the_teacher_stays(teacher: str, named: str | None, creatures: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "demo", data=str(creatures / "images"), teacher=teacher)
    ((_, *words),) = commands(run)
    assert dict(zip(words[::2], words[1::2], strict=True)).get("--teacher") == named


@pytest.mark.parametrize(("own", "next_verb"), [({"knn_top1": 1.0}, "finetune"), ({}, "segment")])
def test_of_images_and_annotations_side_by_side_each_verb_gets_what_it_takes(
    own: dict[str, Any], next_verb: str, creatures: Path, encoder: Path, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run", "evaluate", data=str(creatures), encoder=str(encoder))
    (run / "results.json").write_text(json.dumps({"this encoder": own}))

    assert [opened(words) for words in commands(run)] == [next_verb]


@pytest.mark.parametrize(
    ("images", "teacher", "named"), [(341, True, True), (90_000, True, False), (341, False, False)]
)
def test_after_parts_of_few_photos_by_a_public_encoder_comes_the_recipe_for_these(
    images: int, teacher: bool, named: bool, creatures: Path, encoder: Path, tmp_path: Path
) -> None:
    own = finished(tmp_path / "teacher", "teacher", data=str(creatures / "images"))
    given = {"data": str(creatures / "images"), "teacher": str(encoder if teacher else own)}
    run = finished(tmp_path / "run", "parts", **given)
    (run / "summary.json").write_text(json.dumps({"stage": "parts", "images": images}))
    assert ("small-photos" in commands(run)[0]) is named
