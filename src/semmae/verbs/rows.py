"""The rows of a comparison: from names of maskings, and from a YAML grid whose lists are multiplied out.

    - masking: random
    - name: ours
      masking: semantic
      parts: [learned, kmeans]
      gamma: [1, 2]

are five rows: random, and ours-parts=learned-gamma=1 to ours-parts=kmeans-gamma=2. Height and width are a list in that
list: `image_size: [[64, 48]]`.
"""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semmae.errors import UserError, near_only
from semmae.names import shown, user_path
from semmae.options.compare import PART_KINDS, CompareOptions
from semmae.options.fields import flag, is_given, options_of, shared
from semmae.options.maskings import MASKINGS
from semmae.options.presets import preset_options
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import AUTO_TEACHER
from semmae.options.values import check_choice, check_fitting, check_given, check_value, converted
from semmae.verbs.pretrain import check_recipe

_USUAL = ("random", "semantic")
_NAME = re.compile(r"[^\W_][\w.=+,-]{0,99}")
_LONGEST = 200  # bytes of a name, which is a folder's: most disks take 255
_MOST = 1000  # rows: lists multiply, and each is checked and trained
# Of a whole comparison: what images are read, and what stages are made once.
_OF_STAGES = ("teacher_epochs", "parts_epochs", "parts_preset", "num_parts")
_SHARED = {
    *("data", "out", "config", "resume", "overwrite", "seed", "limit", "workers", "logger", "callbacks", "preset"),
    *(
        "check",
        "channels",
        "devices",
        "nodes",
        "strategy",
        "gradients",
        "precision",
        "masks",
        "teacher",
        "teacher_image_size",
        "num_heads",
        *_OF_STAGES,
    ),
}
ROW_OPTIONS = [name for name in options_of(PretrainOptions) if name not in _SHARED]


@dataclass(frozen=True)
class Row:
    """One of the rows that are compared: a name, and what it sets beside the shared options."""

    name: str
    given: Mapping[str, Any]  # options of pretrain, "parts" not among them
    parts: str | None = None  # a kind among `PART_KINDS`, or the folder of a run of parts; None: reads none
    variant: Mapping[str, Any] = field(default_factory=dict)  # of what is given, all but masking and target

    @property
    def masking(self) -> str:
        """What is hidden."""
        return str(self.given["masking"])

    @property
    def kind(self) -> str | None:
        """The kind of its parts, where these are made here."""
        return self.parts if self.parts in PART_KINDS else None

    def options(self, options: CompareOptions, out: Path, seed: int, parts: Path | None) -> PretrainOptions:
        """Of the run with this seed in `out`, by the part labels in `parts`."""
        own = {**self.given, "out": out, "seed": seed, "parts": parts, "config": None}
        own |= {"masks": None, "resume": False, "overwrite": False}  # of the comparison as a whole
        # What it learns from is made before.
        own |= {name: options_of(PretrainOptions)[name].default for name in _OF_STAGES}
        if self.given.get("target", options.target) != "tokens":
            own |= {"teacher": AUTO_TEACHER, "teacher_image_size": None}  # none is needed
            own["num_heads"] = None if options.names_a_teacher else options.num_heads
        return shared(PretrainOptions, options, **own)


def rows_of(options: CompareOptions) -> list[Row]:
    """The rows that --maskings and --grid ask for, all of them checked; the first is what others are compared with."""
    names = options.maskings.split(",") if options.maskings is not None else () if options.grid else _USUAL
    for name in names:
        if ":" not in name:
            check_choice("maskings", name.strip(), MASKINGS)
    rows = [_row({"masking": name.strip()}) for name in names]
    if options.grid is not None:
        rows += itertools.islice(_grid_rows(options.grid), _MOST + 1)
    if len(rows) > _MOST:
        raise UserError(f"--grid {options.grid}: more than {_MOST} rows; give fewer, or shorter lists of values")
    # As folders: on some disks names that differ in case, or in how accents are written, are one.
    folders = [unicodedata.normalize("NFKC", row.name).casefold() for row in rows]
    twice = next((row.name for row, folder in zip(rows, folders, strict=True) if folders.count(folder) > 1), None)
    if twice is not None:
        remedy = "give it once" if options.grid is None else "give one of them another name"
        raise UserError(f"two rows are called {shown(twice)}, or differ in case alone; {remedy}")
    rows = [_checked(row, options) for row in rows]
    if options.config is None and not options.resume:  # what a file says is let pass, as everywhere
        _check_effects(rows, options)
    return rows


def check_images(rows: Iterable[Row], options: CompareOptions, images: int) -> None:
    """Refuse a row that makes more batches of a step than there are images."""
    for row in rows:
        try:
            row.options(options, options.out, options.seed, None).check_images(images)
        except UserError as error:
            raise UserError(f"row {row.name}: {error}") from error


def _check_effects(rows: Sequence[Row], options: CompareOptions) -> None:
    """Refuse an option beside the rows that has no effect in any of them; what a preset says is let pass."""
    recipe = preset_options("pretrain", options.preset)
    for name in options_of(CompareOptions).keys() & {*ROW_OPTIONS} - {*recipe, "parts"}:
        if not is_given(options, name):
            continue
        faults = [_without_effect(name, row, options) for row in rows]
        if all(faults):
            raise UserError(faults[0])
    if options.parts is not None and not any(
        row.kind or row.given.get("target", options.target) == "tokens" for row in rows
    ):
        raise UserError(f"--parts {options.parts}: no row reads parts; leave it out, or give a row that does")


def _without_effect(name: str, row: Row, options: CompareOptions) -> str:
    """Why an option beside the rows has no effect in this one, said of all of them; empty where it has one."""
    if name in row.given:
        return f"{flag(name)}: row {row.name}, and so all others, has a {name} of its own; leave one of the two out"
    made = row.options(options, options.out, options.seed, None if row.parts is None else Path("parts"))
    try:
        check_given(made, [name])
    except UserError as error:
        return f"row {row.name}, and so all others: {error}"
    return ""


def _grid_rows(path: Path) -> Iterator[Row]:
    from semmae.files.yaml import read_yaml_rows  # as elsewhere: most mistakes are answered without

    for number, values in enumerate(read_yaml_rows(path), 1):
        try:
            yield from _multiplied(values)
        except UserError as error:
            raise UserError(f"--grid {path}, row {number}: {error}") from error


def _multiplied(values: Mapping[str, Any]) -> Iterator[Row]:
    """The rows that a row with lists of values stands for."""
    for name, value in values.items():
        if name in _SHARED:
            raise UserError(f"{name} is alike in all rows; give it as an option beside --grid")
        if name not in ("name", *ROW_OPTIONS):
            hint = near_only(name[:80], ROW_OPTIONS) or "; it takes name, and options of semmae pretrain with _ for -"
            raise UserError(f"unknown option {shown(name)}{hint}")
        if value == [] or (name == "name" and not isinstance(value, str)):
            raise UserError(
                f"{name}: {shown(value)}; give a {'text' if name == 'name' else 'value, or some in a list'}"
            )
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    for chosen in itertools.product(*lists.values()):
        yield _row({**values, **dict(zip(lists, chosen, strict=True))}, tuple(lists))


def _row(values: Mapping[str, Any], lists: Collection[str] = ()) -> Row:
    """A row of single values: in its name stand those of `lists`, or without a name of its own all of them."""
    every = options_of(PretrainOptions)
    masking, parts = values.get("masking", every["masking"].default), values.get("parts")
    given = {"masking": masking}
    for name, value in values.items():
        if name not in ("name", "parts"):
            given[name] = converted(every[name], value)
            check_value(every[name], given[name])
    if ":" not in masking:
        check_choice("masking", masking, MASKINGS)
    if "masking" not in values and values.get("name") in {*MASKINGS} - {masking}:
        raise UserError(f"name {values['name']}: is only a name, and the row would mask by {masking}; give masking too")
    if parts is not None and parts not in PART_KINDS:
        folder = user_path(parts, "--parts") if isinstance(parts, str) else None
        if folder is None or not folder.is_dir():
            raise UserError(f"--parts {shown(parts)}: must be one of {', '.join(PART_KINDS)}, or a run of semmae parts")
    base = values.get("name", masking.replace(":", "."))
    own = [name for name in values if name != "name"] if "name" not in values else lists
    named = [name for name in own if "name" in values or name != "masking"]
    label = "-".join([base, *(f"{name}={_worded(values[name])}" for name in named)])
    if not _NAME.fullmatch(label) or len(label.encode()) > _LONGEST:
        raise UserError(
            f"name {shown(label)}: must be letters, digits and - _ . = + , no more than 100, and {_LONGEST} bytes; "
            "give another name"
        )
    variant = {name: value for name, value in given.items() if name not in ("masking", "target")}
    return Row(label, given, parts, variant)


def _worded(value: Any) -> str:
    """A value as it stands in the name of a row."""
    if isinstance(value, list | tuple):  # height and width
        return "x".join(map(str, value))
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def _checked(row: Row, options: CompareOptions) -> Row:
    """The row with the parts that it reads; refused where it contradicts itself, or they lack what it reads."""
    try:
        made = row.options(options, options.out / "runs" / row.name, options.seed, None)
        if row.parts is None and made.learns_parts:  # one's own mask function, too, gets some beside a named teacher
            row = replace(row, parts="learned")
        made = replace(made, parts=None if row.parts is None else Path("parts"))
        check_fitting(made)
        check_given(made, [name for name in row.given if name != "masking"])
        made.check_division()
        check_recipe(made)
        if row.parts in ("grid", "annotations") and "attention" in made.needs:
            raise UserError(f"parts {row.parts}: hold no attention, which it reads; use learned, kmeans or shuffled")
        if row.parts == "grid" and made.keep_background:
            raise UserError("parts grid: have no background to keep; leave out keep_background, or use other parts")
        if row.parts == "annotations" and options.masks is None:
            raise UserError("parts annotations: are those of --masks, which is not given; give it")
    except UserError as error:
        raise UserError(f"row {row.name}: {error}") from error
    return row
