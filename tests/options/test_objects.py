"""Data and encoders given as objects of Python: what config.yaml keeps of them, and how such a run is resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from refusals import check_refusal, refused

from semmae.cli import run
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options import VERBS
from semmae.options.finetune import FinetuneOptions
from semmae.options.teacher import TeacherOptions
from semmae.options.values import check_given, check_values, given_options
from semmae.reporting.model_card import Card, find_run, write_card
from semmae.reporting.next_steps import next_steps
from semmae.reporting.run_page import write_report
from semmae.run.config import CONFIG, UNFINISHED, began_alike, check_resumed, made, to_yaml
from semmae.run.finished import is_done, is_finished
from semmae.run.folder import claimed


class ImageFolder:
    """As that of torchvision: so many images, each with a class."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        raise AssertionError("no image is looked at when options are checked")


DESCRIBED = "ImageFolder of 300 images"


class Loader:
    """As torch's `DataLoader`."""

    dataset = ()

    def __iter__(self) -> Any:
        raise AssertionError("no batch is loaded when options are checked")


def test_a_value_of_no_kind_that_an_option_takes_says_what_it_takes() -> None:
    for wrong in (3, None, {1, 2}, iter("ab")):
        with refused("--data", "a path", "map-style data set"):
            given_options(TeacherOptions, {"data": wrong})
    with refused("--init 3", "a path", "semmae.load_encoder"):
        given_options(TeacherOptions, {"init": 3})
    given_options(TeacherOptions, {"data": Loader()})  # refused by its name where data is opened


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was begun with an object, and killed."""
    out = tmp_path / "out"
    out.mkdir()
    (out / CONFIG).write_text(to_yaml(TeacherOptions(data=ImageFolder(300), out=out, epochs=7)))
    (out / UNFINISHED).touch()
    return out


def resumed(out: Path, **given: Any) -> TeacherOptions:
    options = made(TeacherOptions, {"out": out, "resume": True, **given})
    check_resumed(options)
    check_values(options)
    check_given(options, given)
    assert isinstance(options, TeacherOptions)
    return options


def test_the_file_keeps_what_it_was(begun: Path) -> None:
    assert yaml.safe_load((begun / CONFIG).read_text())["data"] == {"object": DESCRIBED}


def test_it_is_resumed_with_an_object_alike(begun: Path) -> None:
    data = ImageFolder(300)
    options = resumed(begun, data=data)
    assert options.data is data and options.epochs == 7
    with claimed(TeacherOptions(data=data, out=begun, epochs=7)) as own:  # the same call again
        assert own.resume and own.data is data


@pytest.mark.parametrize("other", [ImageFolder(301), "photos", ["a.jpg", "b.jpg"], np.zeros((4, 3, 8, 8))])
def test_other_data_is_refused(other: Any, begun: Path) -> None:
    with refused("--data", DESCRIBED):
        resumed(begun, data=other)


def test_its_options_are_taken_with_other_data(begun: Path) -> None:
    given = {"config": begun / CONFIG, "out": begun.parent / "other"}
    with refused(f"--config {begun / CONFIG}", DESCRIBED, "give --data"):
        made(TeacherOptions, given)
    assert made(TeacherOptions, given | {"data": "photos"}).epochs == 7


def test_no_command_line_can_resume_it(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["teacher", "--out", str(begun), "--resume"]) == 2
    check_refusal(capsys.readouterr().err, "--data: ", DESCRIBED, "data=")


def test_nobody_knows_that_two_objects_of_one_description_are_the_same(begun: Path) -> None:
    """So a finished run is not said to be of the very images that are given now."""
    (begun / UNFINISHED).unlink()
    (begun / "encoder").mkdir()
    for name in VERBS["teacher"].product:
        (begun / name).touch()
    (begun / "summary.json").write_text(json.dumps({"stage": "teacher", "finished": True}))
    options = TeacherOptions(data=ImageFolder(300), out=begun, epochs=7)
    assert is_finished(begun) and began_alike(options) and not is_done(options)


def test_lists_of_paths_are_kept_as_such(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    out = tmp_path / "out"
    out.mkdir()
    (out / CONFIG).write_text(to_yaml(TeacherOptions(data=paths, out=out)))
    assert resumed(out).data == [str(path) for path in paths]
    assert resumed(out, data=tuple(paths)).data == tuple(paths)
    with refused("--data"):
        resumed(out, data=paths[:1])


def test_an_array_is_data(tmp_path: Path) -> None:
    """Which compares itself with a default entry by entry."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    options = made(TeacherOptions, {"data": images, "out": tmp_path / "out"})
    check_given(options, ["data"])
    assert yaml.safe_load(to_yaml(options))["data"] == {"object": "ndarray of 4 images"}


def test_pages_steps_and_cards_say_what_it_was(tmp_path: Path) -> None:
    encoder = Encoder(EncoderSpec.named("vit_tiny", 16, 8))
    options = FinetuneOptions(data=ImageFolder(300), encoder=encoder, out=tmp_path)
    (tmp_path / CONFIG).write_text(to_yaml(options))
    assert DESCRIBED in write_report(tmp_path).read_text()
    (tmp_path / "encoder").mkdir()
    card = write_card(Card("x", "timm", encoder, str(tmp_path), find_run(str(tmp_path / "encoder")), {}))
    assert f"`{DESCRIBED}`" in card and "object" not in card
    commands = [step.command for step in next_steps(tmp_path)]
    assert commands and not [command for command in commands if "ImageFolder" in command or "{" in command]
