"""`semmae VERB --help`: the verb's own options first, then those that it shares, by subject; drawn by tyro.

A subject is a class of options: its first sentence is the heading, and what it declares stands below.
"""

import ast
import codecs
import contextlib
import dataclasses
import inspect
import io
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from semmae.presets import preset_list
from semmae.verbs import options
from semmae.verbs.limits import limits_of
from semmae.verbs.options import choices, flag, kinds

_NAMES = {bool: "", int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}


def help_text(verb: str, kind: type[Any], description: str) -> str:
    """The help of a verb: usage with what it requires, description, presets, its options in groups."""
    groups = [
        (verb if group is kind else group.__name__.removesuffix("Options").lower(), _group(group, fields))
        for group, fields in _declared(kind)
    ]
    tree = dataclasses.make_dataclass(
        "Options", [(name, Annotated[group, tyro.conf.OmitArgPrefixes]) for name, group in groups]
    )
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name  # tyro draws boxes of letters where it is not utf-8
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        about = f"{description}\n\n{preset_list(verb)}".rstrip()
        tyro.cli(tree, prog=f"semmae {verb}", description=about, args=["--help"])
    page.seek(0)
    _, rest = page.read().split("\n\n", 1)  # tyro's own usage lists all options, or none
    return f"{usage(verb, kind)}\n\n{rest.rstrip()}"


def usage(verb: str, kind: type[Any]) -> str:
    """One line: the verb and what it cannot do without."""
    hints = typing.get_type_hints(kind)
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if len(required) == len(hints) == 1:
        return f"usage: semmae {verb} {_kind_of(hints[required[0]])}"
    given = " ".join(f"{flag(name)} {_kind_of(hints[name])}" for name in reversed(required))
    return f"usage: semmae {verb} {given} [options]"


def _declared(kind: type[Any]) -> Iterator[tuple[type[Any], list["dataclasses.Field[Any]"]]]:
    """Classes and the fields that they declare, each field once: first those beside the verb, last what all share."""
    left = {field.name: field for field in dataclasses.fields(kind)}
    order = (kind.__module__, "", options.__name__)  # "": of any other module
    for group in sorted(
        kind.__mro__, key=lambda group: order.index(group.__module__ if group.__module__ in order else "")
    ):
        own = [left.pop(name) for name in vars(group).get("__annotations__", {}) if name in left]
        if own:
            yield group, own


def _group(group: type[Any], fields: list["dataclasses.Field[Any]"]) -> type[Any]:
    """The same options as tyro draws them: kind, default and limits in our words."""
    hints, texts = typing.get_type_hints(group), _texts(group)
    members: list[Any] = []
    for field in fields:
        hint = hints[field.name]
        argument = tyro.conf.arg(
            metavar=_kind_of(hint) or None,
            help=texts.get(field.name, ""),
            help_behavior_hint=_hint(field),
        )
        drawn = bool if kinds(hint) == (bool,) else str  # which needs no value of ours: nothing is read here
        members.append((field.name, Annotated[drawn, argument], dataclasses.field(default=drawn())))
    made = dataclasses.make_dataclass(group.__name__, members, kw_only=True)
    made.__doc__ = inspect.getdoc(group)
    return made


def _kind_of(hint: Any) -> str:
    known = choices(hint)
    if known:
        return "{" + ",".join(known) + "}"
    return next(word for kind, word in _NAMES.items() if kind in kinds(hint))


def _hint(field: "dataclasses.Field[Any]") -> str:
    """`(default: 20; from 1 to 256)`."""
    if field.default is dataclasses.MISSING:
        facts = ["required"]
    elif isinstance(field.default, bool):
        facts = ["default: on" if field.default else "default: off"]
    else:
        facts = [] if field.default is None else [f"default: {field.default}"]
    limits = limits_of(field.name)
    if limits:
        facts.append(limits)
    return f"({'; '.join(facts)})" if facts else ""


def _texts(group: type[Any]) -> dict[str, str]:
    """The text under each field of a class, in one line."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(declared, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(declared.body, declared.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
