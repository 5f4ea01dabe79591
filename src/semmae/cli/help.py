"""`semmae VERB --help`: the verb's own options first, then those that it shares, by subject; drawn by argparse.

A subject is a class of options: its docstring begins with the heading, and what it declares stands below.
"""

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semmae.options import shared
from semmae.options.fields import Option, command_options, verb_of
from semmae.options.presets import preset_list
from semmae.options.texts import texts_of

_NAMES = {bool: "", int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
_WIDEST = 100  # columns: longer lines are hard to read


def help_text(kind: type[Any]) -> str:
    """The help of a verb: usage with what it requires, description, presets, its options in groups."""
    width = min(_WIDEST, shutil.get_terminal_size().columns - 2)
    about = textwrap.fill(inspect.cleandoc(kind.__doc__ or ""), width)
    page = argparse.ArgumentParser(
        usage=_usage(kind),
        description=f"{about}\n\n{preset_list(verb_of(kind))}".rstrip(),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width),
        add_help=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for declared_by, options in _declared(kind):
        first = re.split(r"[.:;](?:\s|$)", declared_by.__doc__ or "")[0]  # behind it stands where that is from
        heading = f"options of {verb_of(kind)}" if declared_by is kind else first
        group = groups.setdefault(heading, page.add_argument_group(heading))
        texts = texts_of(declared_by)
        for option in options:
            _add(group, option, f"{texts.get(option.name, '')} {_facts(option)}".strip())
    return page.format_help().rstrip()


def _usage(kind: type[Any]) -> str:
    """One line: the verb and what it cannot do without."""
    every = command_options(kind).values()
    required = [option for option in every if option.is_required]
    if len(required) == len(every) == 1:
        return f"semmae {verb_of(kind)} {_kind_of(required[0])}"
    given = " ".join(f"{option.flag} {_kind_of(option)}" for option in reversed(required))
    return f"semmae {verb_of(kind)} {given} [options]"


def _declared(kind: type[Any]) -> Iterator[tuple[type[Any], list[Option]]]:
    """Classes and the options that they declare, each once: first those beside the verb, last what all share."""
    left = dict(command_options(kind))
    order = (kind.__module__, "", shared.__name__)  # "": of any other module
    for group in sorted(
        kind.__mro__, key=lambda group: order.index(group.__module__ if group.__module__ in order else "")
    ):
        own = [left.pop(name) for name in vars(group).get("__annotations__", {}) if name in left]
        if own:
            yield group, own


def _add(group: argparse._ArgumentGroup, option: Option, text: str) -> None:
    flags = [option.flag, option.flag.replace("--", "--no-")] if option.is_switch else [option.flag]
    shown = {"action": "store_true"} if option.is_switch else {"metavar": _kind_of(option)}
    group.add_argument(*flags, help=text.replace("%", "%%"), **shown)  # type: ignore[arg-type]


def _kind_of(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    if option.is_size:
        return "INT [INT]"
    return "|".join([next(word for kind, word in _NAMES.items() if kind in option.kinds), *option.literals])


def _facts(option: Option) -> str:
    """`(default: 20; from 1 to 256)`."""
    if option.is_required:
        facts = ["required"]
    elif isinstance(option.default, bool):
        facts = ["default: on" if option.default else "default: off"]
    else:
        facts = [] if option.default is None else [f"default: {option.default}"]
    if option.limits:
        facts.append(option.limits)
    return f"({'; '.join(facts)})" if facts else ""
