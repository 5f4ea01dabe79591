"""Options that several verbs share, and what holds for all of them.

An option is declared once, here or at its verb, as a field of a frozen dataclass: the command line,
the Python call, `config.yaml` and `--help` all read that declaration. The text under a field is its help.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from semmae.errors import UserError, near

Model = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
Precision = Literal["auto", "float32", "bf16", "fp16"]

# What may differ between the first run and the one that resumes it: none of them changes the result.
_FREE_ON_RESUME = {"resume", "overwrite", "workers", "config"}

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
    precision: Precision = "auto"
    """Arithmetic: auto is bf16 on a GPU that has it, else float32."""
    devices: int = 1
    """GPUs, or processes on a CPU."""


@dataclass(frozen=True, kw_only=True)
class SizeOptions(TrainOptions):
    """What every verb that trains a new encoder takes."""

    model: Model = "vit_small"
    """Size of the encoder."""
    image_size: int = 224
    """Pixels a side of the crops the encoder sees; divisible by the patch size."""
    patch_size: int = 16
    """Pixels a side of a patch."""


def check_values(options: object) -> None:
    """Check every field against its declared type's choices, and the sizes for being positive.

    Raises:
        UserError: names the value, the limit and the near choices.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        check_choice(field.name, value, choices(hints[field.name]))
        smallest = _SMALLEST.get(field.name)
        if smallest is not None and value is not None and value < smallest:
            raise UserError(f"{flag(field.name)} {value}: must be at least {smallest}")


_SMALLEST = {
    "image_size": 8, "teacher_image_size": 8, "patch_size": 2, "batch_size": 1, "epochs": 1, "devices": 1, "workers": 0,
    "limit": 1, "num_parts": 1, "grid": 2, "k": 1, "teacher_epochs": 1, "parts_epochs": 1, "seed": 0,
}  # fmt: skip


def choices(annotation: Any) -> tuple[str, ...]:
    """The choices of a `Literal` annotation; empty for any other."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices, where there are any."""
    if known and value not in known:
        raise UserError(f"{flag(name)}: unknown {name.replace('_', ' ')} {value!r}{near(str(value), known)}")


def check_image_size(image_size: int, patch_size: int) -> None:
    """Refuse an image that does not divide into patches."""
    if image_size % patch_size:
        below = image_size - image_size % patch_size
        sizes = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise UserError(f"--image-size {image_size} is not divisible by the patch size {patch_size}; use {sizes}")


def flag(name: str) -> str:
    """A field's name as it is written on the command line."""
    return "--" + name.replace("_", "-")


def to_yaml(options: object) -> str:
    """Options as YAML that `read_config` reads; where to write and how to begin are not part of it."""
    values = dataclasses.asdict(options)  # type: ignore[call-overload]
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    for name in ("config", "resume", "overwrite"):
        plain.pop(name)
    return yaml.safe_dump(plain, sort_keys=False)


def read_config(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Options of a YAML file, for the dataclass `kind`.

    Raises:
        UserError: no such file, no mapping, or a key that is no option, with the near ones named.
    """
    if not path.is_file():
        raise UserError(f"--config {path}: no such file; give a YAML file of options")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]}); give a YAML file of options") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no options; write one `name: value` a line")
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(f"{path}: unknown option {name!r}{near(str(name), sorted(known))}")
    return {name: _converted(value, hints[name]) for name, value in values.items()}


def _converted(value: Any, annotation: Any) -> Any:
    takes_path = annotation is Path or Path in typing.get_args(annotation)
    return Path(value) if takes_path and value is not None else value


def resumed(options: OptionsT) -> OptionsT:
    """The options of the run in `options.out`, to go on with.

    Raises:
        UserError: no run is there, or an option was given that the run was not started with.
    """
    path = Path(options.out) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{options.out}: no run to resume (no config.yaml); start it without --resume")
    saved = read_config(path, type(options))
    for field in dataclasses.fields(options):
        given, default = getattr(options, field.name), field.default
        was = saved.get(field.name, default)
        # A resumed run needs no options; one that is given must be the one the run began with.
        if field.name in {*_FREE_ON_RESUME, "out"} or given in (default, was) or given == "":
            continue
        raise UserError(
            f"{flag(field.name)} {given}: the run in {options.out} began with {was}; leave it out, or use another --out"
        )
    free = {name: getattr(options, name) for name in _FREE_ON_RESUME}
    return dataclasses.replace(options, **{**saved, **free, "out": options.out})


def untold_on_resume(kind: type[Any]) -> dict[str, str]:
    """Stand-ins for the required options that a resumed run reads from its config.yaml: all but `out`."""
    required = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
    return {name: "" for name in required if name != "out"}


def as_kwargs(values: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Keyword arguments of a Python call for the dataclass `kind`: strings become paths where paths are declared."""
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise UserError(f"unknown option {name!r}{near(name, known)}")
    given = {name: _converted(value, hints[name]) for name, value in values.items()}
    return {**untold_on_resume(kind), **given} if given.get("resume") else given
