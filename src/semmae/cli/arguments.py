"""Arguments of a verb → its options; what is wrong with them is told in one line, in our words.

tyro reads the options' one declaration; unknown options and choices are looked for before it, for its own
complaints are boxes of many lines.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from functools import partial
from typing import Any

import tyro

from semmae.commands.options import GOING_ON, beneath, check_choice, check_number, choices, flag
from semmae.errors import UserError
from semmae.presets import preset_list, preset_options

# The verbs whose only required option has no name: `semmae report RUN`; and what to call it.
_POSITIONAL = {"report": "the folder of a run"}
# Lines of tyro's boxes that tell nothing.
_NOISE = re.compile(r"(For full helptext|Parsing error).*|Missing argument|Unrecognized options|semmae \w+ --help")


def parse(verb: str, kind: type[Any], description: str, arguments: list[str]) -> Any:
    """Arguments of a verb → its options; None when help was asked for and printed.

    Raises:
        UserError: an unknown option, a value of the wrong kind, a missing option.
    """
    if {"-h", "--help"} & set(arguments):
        return _parse_quietly(verb, kind, f"{description}\n\n{preset_list(verb)}", arguments, None)
    _check_arguments(verb, arguments, kind)
    # A resumed run reads its own config.yaml: nothing but --out has to be told again.
    given: dict[str, Any] = {name: _value_of(name, arguments) for name in ("config", "out", "preset")}
    going_on = any(flag(name) in arguments for name in GOING_ON)
    values = beneath(kind, {**given, "resume": going_on}, partial(preset_options, verb))
    default = _with_defaults(kind, values) if values else None
    _check_complete(verb, arguments, kind, default)
    return _parse_quietly(verb, kind, description, arguments, default)


def _check_arguments(verb: str, arguments: list[str], kind: type[Any]) -> None:
    """Unknown options and choices, told in our words: the value, and the near ones."""
    hints = typing.get_type_hints(kind)
    known = [flag(name) for name in hints] + [flag(f"no-{name}") for name in hints if hints[name] is bool]
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in known:
            # Written as the user would: the near ones only, a verb has too many options to list.
            # Without the dashes, which make all options alike.
            matches = difflib.get_close_matches(name[2:], [option[2:] for option in known], n=3, cutoff=0.6)
            near_ones = " or ".join(f"--{match}" for match in matches)
            hint = f"did you mean {near_ones}?" if matches else f"see semmae {verb} --help"
            raise UserError(f"unknown option {name}; {hint}")
    for name, hint_type in hints.items():
        value = _value_of(name, arguments)
        if value is not None:
            check_choice(name, value, choices(hint_type))
            check_number(name, value, hint_type)


def _check_complete(verb: str, arguments: list[str], kind: type[Any], default: Any) -> None:
    """Required options that neither the arguments nor a file of options tell, all of them in one line."""
    if verb in _POSITIONAL:
        missing = [] if arguments else [_POSITIONAL[verb]]
    else:
        required = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
        untold = [name for name in required if getattr(default, name, tyro.MISSING) is tyro.MISSING]
        missing = [flag(name) for name in untold if _value_of(name, arguments) is None]
    if missing:
        raise UserError(f"{verb} needs {' and '.join(missing)}; see semmae {verb} --help")


def _value_of(name: str, arguments: list[str]) -> str | None:
    """The value given for an option, the last one if there are several."""
    value = None
    for index, argument in enumerate(arguments):
        option, equals, attached = argument.partition("=")
        if option.replace("_", "-") != flag(name):
            continue
        if equals:
            value = attached
        elif index + 1 < len(arguments):
            value = arguments[index + 1]
    return value


def _with_defaults(kind: type[Any], values: dict[str, Any]) -> Any:
    """An instance with these values; required options that are not among them stay required."""
    fields = dataclasses.fields(kind)
    known = {name: value for name, value in values.items() if name in {field.name for field in fields}}
    needed = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in known]
    return kind(**{name: tyro.MISSING for name in needed}, **known)


def _parse_quietly(verb: str, kind: type[Any], description: str, arguments: list[str], default: Any) -> Any:
    """tyro's parser, its boxed complaints condensed to one line."""
    complaint = io.StringIO()
    markers = (tyro.conf.PositionalRequiredArgs,) if verb in _POSITIONAL else ()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind, prog=f"semmae {verb}", description=description, args=arguments, default=default, config=markers
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UserError(_one_line(complaint.getvalue(), verb)) from stop


def _one_line(boxed: str, verb: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    words = [re.sub(r"[│┃╭╮╰╯─━]+|-{3,}", " ", line).strip() for line in plain.splitlines()]
    kept = (word for word in words if word and not _NOISE.fullmatch(word))
    told = re.sub(r"\s+", " ", "; ".join(kept))
    return f"{told} (see semmae {verb} --help)"
