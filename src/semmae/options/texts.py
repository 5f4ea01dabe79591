"""The help of every option: the text below its field, read from the file that declares it."""

import ast
import functools
import sys
from pathlib import Path
from typing import Any


def texts_of(kind: type[Any]) -> dict[str, str]:
    """By name, the texts of the options that a class declares itself, each in one line."""
    declared = _classes(str(sys.modules[kind.__module__].__file__))[kind.__name__]
    own = vars(kind).get("__annotations__", {})
    elsewhere = {name: kind.__dataclass_fields__[name].metadata.get("text_of") for name in own if name != "GROUP"}
    return {name: help_of(other)[name] for name, other in elsewhere.items() if other} | {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(declared.body, declared.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def help_of(kind: type[Any]) -> dict[str, str]:
    """By name, the texts of all options of a verb."""
    return {name: text for group in reversed(kind.__mro__[:-1]) for name, text in texts_of(group).items()}


@functools.cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """The classes of a file, by name: several are looked at, and `inspect` would read it anew for each."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
