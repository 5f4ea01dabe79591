"""Options of all verbs: their limits, and what is refused alike on the command line and in a Python call."""

import dataclasses
import enum
import math
import os
import typing
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from refusals import refused

from semmae.masking import random_mask
from semmae.options import VERBS, kind_of
from semmae.options.fields import Facts, Option, command_options, flag, options_of
from semmae.options.values import check_given, check_value, check_values, given_options
from semmae.run.config import read_config, to_yaml, with_defaults


def numbers(verb: str) -> Iterator[tuple[str, Any]]:
    """Fields of a verb's options that are numbers, and their annotations."""
    kind = kind_of(verb)
    hints = {name: option.type for name, option in options_of(kind).items()}
    yield from (
        (name, hint) for name, hint in hints.items() if {int, float} & set(tuple(typing.get_args(hint) or (hint,)))
    )


def by_command(verb: str, name: str, text: str) -> str:
    """How the command line refuses a value."""
    with refused(flag(name)) as raised:
        tiny.options_from(kind_of(verb), [flag(name), text])
    return str(raised.value)


def by_call(verb: str, name: str, value: Any) -> str:
    """How the Python call refuses a value."""
    with refused(flag(name)) as raised:
        with_defaults(kind_of(verb), given_options(kind_of(verb), {name: value}))
    return str(raised.value)


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_has_limits_and_no_more_is_taken(verb: str) -> None:
    for name, _ in numbers(verb):
        facts = options_of(kind_of(verb))[name].facts
        low, high = facts.low, facts.high
        assert -math.inf < low < high < math.inf, name
        wrong = [10**20, 10**400, -(10**400), math.nan, math.inf, -math.inf, *([-1] if low >= 0 else [])]
        for value in wrong:
            by_call(verb, name, value)
            by_command(verb, name, str(value))
        for value in (True, "many", [1], 10**5000):
            by_call(verb, name, value)
        for text in ("many", "", " ", "1,5", "0x10", "1 2", "9" * 5000):
            by_command(verb, name, text)


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_and_both_limits_are_taken(verb: str) -> None:
    kind = kind_of(verb)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, hint in numbers(verb):
        for value in {defaults[name], *limits(verb, name)} - {None, dataclasses.MISSING}:
            if options_of(kind)[name].facts.open and value in limits(verb, name):
                assert "between" in by_call(verb, name, value)
            elif int not in tuple(typing.get_args(hint) or (hint,)) or isinstance(value, int):
                assert with_defaults(kind, given_options(kind, {name: value}))[name] == value


def limits(verb: str, name: str) -> tuple[float, float]:
    facts = options_of(kind_of(verb))[name].facts
    return facts.low, facts.high


def test_a_number_without_limits_must_be_finite_all_the_same() -> None:
    free = Option("new", float, 0.0, Facts())
    for value in (math.nan, math.inf, -math.inf):
        with refused("--new", value, "finite"):
            check_value(free, value)
    check_value(free, 1e300)


def test_a_class_of_options_made_by_hand_is_checked_too() -> None:
    kind = kind_of("knn")
    with refused("--temperature nan", "from 0.0001 to 1000"):
        check_values(kind(out=Path("o"), data="d", encoder="e", temperature=math.nan))


def test_a_value_that_is_no_choice_is_named_with_the_choices() -> None:
    for value in ("cks", "clss", 3, None):
        line = by_call("knn", "pooling", value)
        assert line.startswith(f"--pooling {value!r}: must be one of auto, cls, mean"), line
    assert 'did you mean "cls"' in by_call("knn", "pooling", "clss")


def test_scalars_of_numpy_are_numbers() -> None:
    kind = kind_of("knn")
    given = given_options(kind, {"k": np.int64(5), "temperature": np.float32(0.5), "untrained": np.bool_(True)})
    assert given == {"k": 5, "temperature": 0.5, "untrained": True}
    assert [type(value) for value in given.values()] == [int, float, bool]
    assert "--k 5.0" in by_call("knn", "k", np.float64(5))
    assert "--k" in by_call("knn", "k", np.array([5]))


class Text(str):
    """As libraries derive from text."""

    def __str__(self) -> str:
        return "another text"


class Kind(str, enum.Enum):  # noqa: UP042  its str() is its name, unlike that of a StrEnum
    BASE = "vit_base"


class Few(enum.IntEnum):
    FIVE = 5


class Place:
    """What leads to a file, as `pathlib` would."""

    def __init__(self, at: Any) -> None:
        self.at = at

    def __fspath__(self) -> Any:
        return self.at


def given(verb: str, **values: Any) -> Any:
    return with_defaults(kind_of(verb), given_options(kind_of(verb), values))


def test_values_of_derived_classes_are_kept_as_pythons_own() -> None:
    """YAML writes no other; a file of options holds what was given."""
    kind = kind_of("pretrain")
    options = {"out": np.str_("o"), "data": Text("d"), "model": Kind.BASE, "epochs": Few.FIVE, "limit": Few.FIVE}
    found = given("pretrain", **options)
    assert found == {"out": Path("o"), "data": "d", "model": "vit_base", "epochs": 5, "limit": 5}
    assert [type(value) for value in found.values() if not isinstance(value, Path)] == [str, str, int, int]
    assert yaml.safe_load(to_yaml(kind(**found)))["epochs"] == 5


def test_whatever_leads_to_a_file_is_a_path() -> None:
    for at in (PurePosixPath("a/b"), Path("a/b"), Place("a/b"), Place(b"a/b"), "a/b", Text("a/b"), np.str_("a/b")):
        assert given("knn", out=at, data=at, encoder=at) == {"out": Path("a/b"), "data": "a/b", "encoder": "a/b"}
    for name in ("out", "data"):
        for wrong in (Place(1), Place(""), Place("a\0b"), b"a", 1):
            by_call("knn", name, wrong)
    for name in ("k", "temperature"):
        by_call("knn", name, Place("1"))


def test_options_made_by_hand_hold_nothing_that_yaml_cannot_write() -> None:
    kind = kind_of("pretrain")
    for name, value in (("epochs", Few.FIVE), ("model", Kind.BASE), ("data", Text("d")), ("blr", np.float64(1e-3))):
        with refused(flag(name)):
            check_values(kind(**{"out": Path("o"), "data": "d", name: value}))


def test_only_a_mask_function_is_taken_as_a_function() -> None:
    for verb in VERBS:
        kind = kind_of(verb)
        for name in command_options(kind).keys() - ({"masking"} if verb == "pretrain" else set()):
            for function in (print, int, by_call):
                by_call(verb, name, function)
    assert given("pretrain", masking=random_mask) == {"masking": "semmae.masking:random_mask"}


@pytest.mark.parametrize(
    ("verb", "given", "beside"),
    [
        ("pretrain", {"num_parts": 4}, {"masking": "random"}),
        ("pretrain", {"num_parts": 4}, {"parts": Path("labels")}),
        ("pretrain", {"parts_epochs": 4}, {}),  # tokens are learned from by steps
        ("pretrain", {"parts_epochs": 4}, {"masking": "block"}),
        ("pretrain", {"parts_preset": "semmae-published"}, {"parts": Path("labels")}),
        ("pretrain", {"teacher_epochs": 4}, {"teacher": "timm:vit_small_patch16_dinov3"}),
        ("pretrain", {"teacher_epochs": 4}, {}),  # nobody knows yet whether one is trained
        ("pretrain", {"teacher": "own"}, {"masking": "random"}),
        ("pretrain", {"teacher_image_size": 64}, {"masking": "random"}),
        ("pretrain", {"num_heads": 4}, {}),
        ("pretrain", {"num_heads": 4}, {"teacher": "own"}),
        ("pretrain", {"statistics": "data"}, {"init": "runs/a", "teacher": "runs/a"}),
        ("pretrain", {"statistics": "data"}, {"init": "runs/a"}),  # nobody knows yet whether a teacher is trained
        ("compare", {"statistics": "data"}, {"init": "runs/a", "teacher": "runs/a"}),
        ("teacher", {"statistics": "data"}, {"init": "runs/a"}),
        *(
            ("parts", {name: value}, {"tokens": Path("tokens")})
            for name, value in (
                *(("grid", 16), ("image_size", 64), ("precision", "bf16"), ("devices", 2), ("nodes", 2)),
                *(("batch_size", 8), ("num_heads", 4), ("num_parts", 3), ("sample", 5)),
            )
        ),
        ("parts", {"export_size": "image"}, {}),
        ("parts", {"quality_images": 10}, {}),
        ("teacher", {"num_heads": 4}, {}),
        ("teacher", {"local_size": 32}, {}),
        ("teacher", {"mask_ratio": 0.4}, {"ibot": 0.0}),
        ("teacher", {"shared_head": False}, {"ibot": 0.0}),
    ],
)
def test_what_has_no_effect_beside_the_others_is_refused(
    verb: str, given: dict[str, Any], beside: dict[str, Any]
) -> None:
    options = kind_of(verb)(**{"data": "photos", "out": Path("out"), **beside, **given})
    (name,) = given
    with refused(flag(name) if given[name] is not False else "--no-shared-head"):
        check_given(options, [name, *beside])
    check_given(options, beside)  # as it comes from a preset or a file
    check_given(dataclasses.replace(options, **{name: options_of(type(options))[name].default}), [name, *beside])


def test_colours_are_of_whatever_encoder_begins_anew() -> None:
    """Of a teacher too that is trained first, though the autoencoder begins with --init."""
    pretrain = kind_of("pretrain")(data="photos", out=Path("out"), init="runs/a", statistics="data")
    for beside in ({"teacher": "own"}, {"channels": 1}, {"init": None}):
        check_given(dataclasses.replace(pretrain, **beside), ["statistics", *beside])


def test_what_an_option_needs_beside_it_is_there() -> None:
    for verb in VERBS:
        kind = kind_of(verb)
        for option in options_of(kind).values():
            assert all(hasattr(kind, other) or other in options_of(kind) for other in option.facts.beside), option.name


# Paths


@pytest.mark.parametrize("name", ["out", "data", "encoder", "config"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for text in ("", "  ", "a" * 300, "a/" * 3000, "~nobody-of-this-name/x", str(tmp_path / "loop"), "\ud800"):
        by_call("knn", name, text)
        by_command("knn", name, text)
    for value in ("a\0b", Path("a\0b")):
        assert "NUL" in by_call("knn", name, value)


def test_the_home_of_the_user_is_meant_by_a_tilde_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: ~/photos\nparts: ~/parts\n")
    kind = kind_of("embed")
    options = tiny.options_from(kind, ["--config", "~/a.yaml", "--out", "~/o.npz", "--encoder=~/run"])
    home = Path(tmp_path)
    assert (options.out, options.parts, options.config) == (home / "o.npz", home / "parts", home / "a.yaml")
    assert (options.data, options.encoder) == (str(home / "photos"), str(home / "run"))
    assert with_defaults(kind, given_options(kind, {"out": Path("~/o")})) == {"out": home / "o"}


def test_options_with_names_that_are_no_text_are_read_again(tmp_path: Path) -> None:
    kind = kind_of("knn")
    odd = os.fsdecode(b"\xff \xc3\xa4")
    options = kind(out=Path("out"), data=odd, encoder="ä", k=3)
    (tmp_path / "config.yaml").write_bytes(os.fsencode(to_yaml(options)))
    again = kind(**read_config(tmp_path / "config.yaml", kind) | {"out": Path("out")})
    assert again == options


# What YAML itself may not hold is in `test_files.py`.
YAML = {
    "list": b"- 1\n",
    "empty": b"",
    "unknown": b"neighbours: 3\n",
    "wrong kind": b"k: [1]\n",
    "wrong number": b"temperature: .nan\n",
    "huge": b"k: 1" + b"0" * 400 + b"\n",
    "digits": b"k: " + b"9" * 5000 + b"\n",
    "nothing": b"k:\n",
    "bool": b"k: yes\n",
    "date": b"data: 2020-01-01\n",
    "empty name": b"out: ''\n",
    "no preset": b"preset: best\n",
    "no choice": b"pooling: max\n",
}


@pytest.mark.parametrize("case", YAML)
def test_files_of_options_that_are_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(YAML[case])
    kind = kind_of("knn")
    given = {"out": tmp_path / "out", "encoder": "e", "data": "d", "config": tmp_path / "a.yaml"}
    with refused(f"--config {tmp_path / 'a.yaml'}: "):  # not an option that nobody typed
        with_defaults(kind, given_options(kind, given))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "folder", tmp_path / "none", Path("/dev/zero")):
        with refused(f"--config {path}"):
            with_defaults(kind_of("knn"), given_options(kind_of("knn"), {"config": path}))


def test_an_unknown_option_in_yaml_is_named_without_all_others(tmp_path: Path) -> None:
    for name, hint in (("workerz", '"workers"'), ("zzz", "--help")):
        (tmp_path / "c.yaml").write_text(f"{name}: 1\n")
        with refused(hint, name):
            read_config(tmp_path / "c.yaml", kind_of("pretrain"))
