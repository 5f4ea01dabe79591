"""Options that several verbs share, and what holds for all of them.

An option is declared once, here or at its verb, as a field of a frozen dataclass: the command line,
the Python call, `config.yaml` and `--help` all read that declaration. The text under a field is its help.
"""

import contextlib
import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import yaml

from semmae.errors import UserError, near, near_only
from semmae.files import read_yaml, shown, user_path
from semmae.train.precision import Precision
from semmae.verbs.limits import check_limits

Model = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]

# What the folder is called that a verb works in until the file --out is whole.
PARTIAL = ".partial"
# In a field's metadata: a Python call may give it a function too, which the options turn into text.
FUNCTION = "function"
# Each of them goes on with the run in --out, by its own options.
GOING_ON = ("resume", "labels_only", "quality_only")
# What may differ between the first run and the one that resumes it: none of them changes weights or labels, or
# (compile) only as another processor would, in the last bits.
_FREE_ON_RESUME = {
    *GOING_ON,
    "overwrite",
    "workers",
    "config",
    "export_png",
    "export_size",
    "masks",
    "keypoints",
    "quality_images",
    "knn_every",
    "pictures",
    "val_every",
    "untrained",
    "checkpointing",
    "compile",
}

OptionsT = TypeVar("OptionsT", bound="RunOptions")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every verb that writes a folder takes."""

    out: Path
    """Folder to write; must be new or empty, or see --resume and --overwrite."""
    seed: int = 0
    """Seed of everything random."""
    workers: int = 2
    """Processes that load images."""
    config: Path | None = None
    """YAML file with options, such as the config.yaml of an earlier run; options given beside it win."""
    resume: bool = False
    """Go on with the run in --out, with its own options."""
    overwrite: bool = False
    """Delete the run that lies in --out first."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """What every verb that trains takes."""

    data: str
    """Images: a folder of any depth, Parquet file(s) with an `image` column, or hf:NAME."""
    limit: int | None = None
    """Use only so many of the images, drawn by the seed."""
    batch_size: int = 64
    """Images per optimiser step, over all devices."""
    accumulate: int = 1
    """Batches that make one optimiser step on each device, which hold the fewer images for it: less memory."""
    precision: Precision = "auto"
    """Arithmetic: auto is bf16 where the processor computes in it, else float32; fp16 needs a GPU."""
    devices: int = 1
    """GPUs, or processes on a CPU; of each node."""
    nodes: int = 1
    """Machines that train together, each with --devices; started by torchrun or srun, with one --out for all."""

    @property
    def processes(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices

    @property
    def batches(self) -> int:
        """Batches that make one optimiser step, over all devices."""
        return self.processes * self.accumulate


@dataclass(frozen=True, kw_only=True)
class SizeOptions(TrainOptions):
    """What every verb that trains a new encoder takes."""

    model: Model = "vit_small"
    """Size of the encoder."""
    image_size: int = 224
    """Pixels a side of the crops the encoder sees; divisible by the patch size."""
    patch_size: int = 16
    """Pixels a side of a patch."""


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """What verbs take that have named recipes."""

    preset: str | None = None
    """Recipe to begin with, by name; options given beside it, or in --config, win."""


def check_values(options: object) -> None:
    """Check every field: of the declared kind, among the choices, within the limits.

    Raises:
        UserError: names the value, the limit and the near choices.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        check_value(field.name, getattr(options, field.name), hints[field.name])


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check the value of a field: of the declared kind, among the choices, within the limits.

    Raises:
        UserError: names the value, the limit and the near choices.
    """
    check_choice(name, value, choices(annotation))
    _check_kind(name, value, annotation)
    check_limits(flag(name), name, value)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _check_kind(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value, from a file of options or a Python call, of another kind than declared."""
    wanted = kinds(annotation)
    # Of classes derived from these YAML writes none, and True is no whole number.
    fits = type(value) in wanted or (Path in wanted and isinstance(value, Path))
    if wanted and not fits and not (float in wanted and type(value) is int):
        told = " or ".join(words for kind, words in _KINDS.items() if kind in wanted)
        raise UserError(f"{flag(name)} {shown(value)}: must be {told}")


def from_text(name: str, text: str, annotation: Any) -> Any:
    """What a text of the command line means for a field: a number where one is declared, None, or the text.

    Raises:
        UserError: it is no number.
    """
    wanted = kinds(annotation)
    if text == "None" and type(None) in wanted:
        return None
    kind = int if int in wanted else float
    try:
        return kind(text) if kind in wanted else text
    except ValueError as error:
        raise UserError(f"{flag(name)} {shown(text)}: must be {_KINDS[kind]}") from error


def kinds(annotation: Any) -> tuple[type[Any], ...]:
    """The types that an annotation such as `int | None` allows; empty for a `Literal`."""
    return tuple(kind for kind in typing.get_args(annotation) or (annotation,) if isinstance(kind, type))


def choices(annotation: Any) -> tuple[str, ...]:
    """The choices of a `Literal` annotation; empty for any other."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices, where there are any."""
    if known and (type(value) is not str or value not in known):
        raise UserError(f"{flag(name)}: unknown {name.replace('_', ' ')} {shown(value)}{near(str(value)[:80], known)}")


def check_image_size(image_size: int, patch_size: int, name: str = "image_size") -> None:
    """Refuse an image that does not divide into patches; `name` is the option that told its size."""
    if image_size % patch_size:
        below = image_size - image_size % patch_size
        sizes = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise UserError(f"{flag(name)} {image_size} is not divisible by the patch size {patch_size}; use {sizes}")


def flag(name: str) -> str:
    """A field's name as it is written on the command line."""
    return "--" + name.replace("_", "-")


def to_yaml(options: object) -> str:
    """Options as YAML that `read_config` reads; where to write and how to begin are not part of it."""
    values = dataclasses.asdict(options)  # type: ignore[call-overload]
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    for name in ("config", "overwrite", *GOING_ON):
        plain.pop(name, None)
    return yaml.safe_dump(plain, sort_keys=False)


def read_config(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Options of a YAML file, for the dataclass `kind`.

    Raises:
        UserError: no such file, no mapping, or a key that is no option, with the near ones named.
    """
    values = read_yaml(path)
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(f"{path}: unknown option {shown(name)}{_near_option(name, kind)}")
    return {name: _converted(name, value, hints[name]) for name, value in values.items()}


def _near_option(name: str, kind: type[Any]) -> str:
    """The hint to append to an unknown option: the near ones, else where all of them, which are many, are listed."""
    known = [field.name for field in dataclasses.fields(kind)]
    return near_only(name[:80], known) or "; the options are those of --help, with _ for -"


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """A value as its field declares it, from whichever door: text as a path and the other way round, with the user's
    folder for `~`; 1e-3, which YAML takes for text, as a number; a scalar of NumPy, and a value of a class derived from
    one of Python's, such as an enumeration's, as Python's own, which alone YAML can write.

    Raises:
        UserError: a text that is empty, or names nothing that can be.
    """
    wanted = kinds(annotation)
    named = Path in wanted or str in wanted
    if named and isinstance(value, os.PathLike):
        with contextlib.suppress(TypeError):  # of a class that gives no text after all
            value = os.fsdecode(value)
    value = _own_scalar(value)
    if isinstance(value, str) and float in wanted:
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, str) and named:
        text = _plain_text(name, value)
        return Path(text) if Path in wanted else text
    return value


def _own_scalar(value: Any) -> Any:
    """A scalar as Python's own: of NumPy, or of a class that derives from int, float or str; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, bool):
            # An enumeration's own __str__ may give its name.
            return value if type(value) is kind else str.__str__(value) if isinstance(value, str) else kind(value)
    return value


def _plain_text(name: str, text: str) -> str:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(f"{flag(name)} {shown(text)}: is no text (half of a surrogate pair); check the name") from error
    path = user_path(text, flag(name))
    return str(path) if text.startswith("~") else text  # as a path, hf:NAME or a URL would be written otherwise


def first_told(options: object, names: Iterable[str]) -> str | None:
    """The first of these options that is not as it is by default; None where all are."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    return next((name for name in names if getattr(options, name) != defaults[name]), None)


def goes_on(options: object) -> bool:
    """Whether these options mean the run that is already in --out."""
    return any(getattr(options, name, False) for name in GOING_ON)


def resumed(options: OptionsT) -> OptionsT:
    """The options of the run in `options.out`, to go on with.

    Raises:
        UserError: no run is there, or an option was given that the run was not started with.
    """
    path = Path(options.out) / "config.yaml"
    if not path.is_file():
        asked = next(flag(name) for name in GOING_ON if getattr(options, name, False))
        raise UserError(f"{options.out}: no run to resume (no config.yaml); start it without {asked}")
    changed = _changed_since(options, path)
    if changed:
        name, was = changed
        raise UserError(
            f"{flag(name)} {getattr(options, name)}: the run in {options.out} began with {was}; "
            "leave it out, or use another --out"
        )
    return options


def begun_alike(options: OptionsT) -> bool:
    """Whether the run in `options.out` was begun with options of the same result."""
    try:
        return _changed_since(options, Path(options.out) / "config.yaml") is None
    except UserError:
        return False  # of another verb, or not written by one


def _changed_since(options: OptionsT, path: Path) -> tuple[str, Any] | None:
    """The first option that differs from those in a config.yaml in a way that matters, and what it was there."""
    saved = read_config(path, type(options))
    free = {*_FREE_ON_RESUME, "out"}
    if getattr(options, "labels_only", False) or getattr(options, "quality_only", False):
        free |= {"devices", "nodes"}  # labels are the same from any number of processes; training is not
    for field in dataclasses.fields(options):
        was = saved.get(field.name, field.default)
        if field.name not in free and getattr(options, field.name) != was:
            return field.name, was
    return None


def run_of(out: Path | str) -> Path:
    """The folder in which a run keeps its options: `out` itself, or beside it where a file is being written."""
    beside = Path(f"{out}{PARTIAL}")
    return beside if (beside / "config.yaml").is_file() else Path(out)


def begun_with(kind: type[Any], out: Path | str | None) -> dict[str, Any]:
    """What a resumed run need not be told again: the options of the run in `out`.

    Where no run is, stand-ins for the required options, so that `resumed` can tell what is wrong.
    """
    path = run_of(out or "") / "config.yaml"
    if out and path.is_file():
        return {name: value for name, value in read_config(path, kind).items() if name != "out"}
    required = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
    return {name: "" for name in required if name != "out"}


def beneath(
    kind: type[Any], given: Mapping[str, Any], preset: Callable[[str | None], Mapping[str, Any]]
) -> dict[str, Any]:
    """What lies beneath the options given: those of --config, or of the run to resume; beneath these a preset's.

    Args:
        kind: the dataclass of the verb's options.
        given: what the user gave: of it are read `config`, `out`, `preset` and those of `GOING_ON`.
        preset: the options of a preset, by name; none for None.
    """
    told: dict[str, Any] = {}
    if given.get("config"):
        told = read_config(Path(given["config"]), kind)
        told["config"] = Path(given["config"])
    elif any(map(given.get, GOING_ON)):
        told = begun_with(kind, given.get("out"))
    return {**preset(given.get("preset") or told.get("preset")), **told}


def as_kwargs(
    values: Mapping[str, Any], kind: type[Any], preset: Callable[[str | None], Mapping[str, Any]]
) -> dict[str, Any]:
    """Options given by name, in a Python call or on the command line, with what lies beneath them: see `beneath`.

    Raises:
        UserError: an unknown option, or a value that its field does not take.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    functions = {field.name for field in dataclasses.fields(kind) if field.metadata.get(FUNCTION)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown option {shown(name)}{_near_option(name, kind)}")
    given = {name: _converted(name, value, hints[name]) for name, value in values.items()}
    for name, value in given.items():
        if name not in functions or not callable(value):  # a function is turned into text by the options
            check_value(name, value, hints[name])
    return {**beneath(kind, given, preset), **given}
