"""The command `semmae VERB`: arguments → options → the verb, and errors → one line and an exit code.

Exit codes: 0; 2 for what the user must mend, told in one line; 130 after Ctrl-C; 1, with a traceback,
for our own faults.
"""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import re
import sys
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any

import tyro

from semmae import VERBS, __version__, load_verb
from semmae.commands.options import GOING_ON, beneath, check_choice, check_number, choices, flag, run_of
from semmae.errors import UserError, near
from semmae.presets import preset_list, preset_options

# The verbs whose only required option has no name: `semmae report RUN`; and what to call it.
_POSITIONAL = {"report": "the folder of a run"}
# Lines of tyro's boxes that tell nothing.
_NOISE = re.compile(r"(For full helptext|Parsing error).*|Missing argument|Unrecognized options|semmae \w+ --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = logging.StreamHandler()
    console.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[console])
    logging.getLogger("semmae").setLevel(logging.DEBUG)  # train.log tells more than the console
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in ("-h", "--help", "help"):
            print(overview())
            return 0
        if verb == "--version":
            print(f"semmae {__version__}")
            return 0
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}{near(verb, VERBS)}")
        return _run_verb(verb, arguments[1:])
    except UserError as error:
        print(f"semmae: {_last_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _last_line(error: UserError) -> str:
    """The message itself, also where a loader's worker has wrapped it in its traceback."""
    return str(error).strip().splitlines()[-1].removeprefix("semmae.errors.UserError: ")


def _run_verb(verb: str, arguments: list[str]) -> int:
    # Imported late: the networks' libraries take seconds, an unknown verb should not.
    kind, function = load_verb(verb)
    options = parse(verb, kind, function.__doc__ or "", arguments)
    if options is None:
        return 0
    from semmae.tasks.trainer import Interrupted

    try:
        function(options)
    except (Interrupted, KeyboardInterrupt):
        out = getattr(options, "out", None)
        begun = out is not None and (run_of(out) / "config.yaml").is_file()
        remedy = f"; go on with: semmae {verb} --out {out} --resume" if begun else "; nothing was written"
        print(f"\nsemmae: stopped{remedy}", file=sys.stderr)
        return 130
    return 0


def overview() -> str:
    """The text of `semmae --help`."""
    verbs = "\n".join(f"  {verb:12}{text}" for verb, text in VERBS.items())
    return (
        "usage: semmae VERB [options]\n\n"
        "Semantic-guided masking for masked autoencoders: from a folder of images to a ViT encoder.\n\n"
        f"{verbs}\n\n"
        "semmae VERB --help tells the options of a verb; semmae demo --out DIR shows the whole way."
    )


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
