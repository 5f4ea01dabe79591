"""`semmae VERB --help`: the verb's own options first, then those that it shares, by subject; drawn by tyro.

A subject is a class of options: its first sentence is the heading, and what it declares stands below.
"""

import codecs
import contextlib
import dataclasses
import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from semmae.options import shared
from semmae.options.fields import Option, command_options, verb_of
from semmae.options.presets import preset_list
from semmae.options.texts import texts_of

_NO_SOURCE = "builtins"  # tyro would look for comments in the source of the classes that are made here
_NAMES = {bool: "", int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}


def help_text(kind: type[Any]) -> str:
    """The help of a verb: usage with what it requires, description, presets, its options in groups."""
    groups = [
        (verb_of(kind) if group is kind else group.__name__.removesuffix("Options").lower(), _group(group, options))
        for group, options in _declared(kind)
    ]
    tree = dataclasses.make_dataclass(
        "Options", [(name, Annotated[group, tyro.conf.OmitArgPrefixes]) for name, group in groups]
    )
    tree.__module__ = _NO_SOURCE
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name  # tyro draws boxes of letters where it is not utf-8
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        about = f"{kind.__doc__}\n\n{preset_list(verb_of(kind))}".rstrip()
        tyro.cli(tree, prog=f"semmae {verb_of(kind)}", description=about, args=["--help"])
    page.seek(0)
    _, rest = page.read().split("\n\n", 1)  # tyro's own usage lists all options, or none
    return f"{usage(kind)}\n\n{rest.rstrip()}"


def usage(kind: type[Any]) -> str:
    """One line: the verb and what it cannot do without."""
    every = command_options(kind).values()
    required = [option for option in every if option.is_required]
    if len(required) == len(every) == 1:
        return f"usage: semmae {verb_of(kind)} {_kind_of(required[0])}"
    given = " ".join(f"{option.flag} {_kind_of(option)}" for option in reversed(required))
    return f"usage: semmae {verb_of(kind)} {given} [options]"


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


def _group(group: type[Any], options: list[Option]) -> type[Any]:
    """The same options as tyro draws them: kind, default and limits in our words."""
    texts = texts_of(group)
    members: list[Any] = []
    for option in options:
        argument = tyro.conf.arg(
            metavar=_kind_of(option) or None, help=texts.get(option.name, ""), help_behavior_hint=_hint(option)
        )
        drawn = bool if option.is_switch else str  # which needs no value of ours: nothing is read here
        members.append((option.name, Annotated[drawn, argument], dataclasses.field(default=drawn())))
    made = dataclasses.make_dataclass(group.__name__, members, kw_only=True)
    made.__doc__, made.__module__ = inspect.getdoc(group), _NO_SOURCE
    return made


def _kind_of(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    return next(word for kind, word in _NAMES.items() if kind in option.kinds)


def _hint(option: Option) -> str:
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
